"""Cross-layer equalization of a float network: even weight ranges in consecutive layers, the same function.

ReLU is positively homogeneous, f(s x) = s f(x) for s > 0 (Nagel et al., arXiv 1906.04721, eqs. 5 to 7), so channel i
between two layers can be divided by s_i in the first and multiplied by s_i in the second. With the ranges r1_i of the
first layer's rows (batch normalization folded) and r2_i of the second layer's columns, eq. 11 makes both equal:

    s_i = sqrt(r1_i r2_i) / r2_i = sqrt(r1_i / r2_i)

Where a batch normalization follows the first layer, its gamma and beta take the division and the weights stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tq.attach import sites
from tq.traced import Unreadable, trace

_KEEPS = (nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_KEEPS_CALLS = (F.relu, torch.relu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout)
_SWEEPS = 20


@dataclass(frozen=True)
class Chain:
    """Two layers whose channels can be rescaled against each other; `norm` is the first one's normalization."""

    first: str
    norm: str | None
    second: str


def chains(model: nn.Module) -> list[Chain]:
    """Every layer (-BN)-ReLU-layer of a network in which nothing else reads what lies between.

    Pooling and dropout may lie between as well. A network that torch.fx cannot read has none.
    """
    try:
        graph = trace(model).graph
    except Unreadable:
        return []
    modules = dict(model.named_modules())
    norms = {site.name: site.bn for site in sites(model)}
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and calls.count(name) == 1 and name in norms:
            second = _reader(node, norms[name], modules)
            if second is not None and calls.count(second) == 1:
                found.append(Chain(name, norms[name], second))
    return found


@torch.no_grad()
def equalize(model: nn.Module) -> list[Chain]:
    """Rescale a trained float network in place and return what was equalized; its predictions stay.

    Several layers in a row influence each other: all chains are repeated until the scales are within 0.1 % of 1.
    """
    found = chains(model)
    for _ in range(_SWEEPS):
        largest = max((_equalize(model, chain) for chain in found), default=1.0)
        if largest < 1.001:
            break
    return found


def _equalize(model: nn.Module, chain: Chain) -> float:
    """Rescale one chain; return the largest max(s, 1 / s)."""
    first, second = model.get_submodule(chain.first), model.get_submodule(chain.second)
    assert isinstance(first, nn.Conv2d | nn.Linear) and isinstance(second, nn.Conv2d | nn.Linear)
    norm = model.get_submodule(chain.norm) if chain.norm else None
    rows = first.weight.abs().flatten(1).amax(1)
    if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        assert norm.running_var is not None
        rows = rows * (norm.weight / torch.sqrt(norm.running_var + norm.eps)).abs()
    columns = _columns(second).abs().amax((1, 3)).flatten()
    # a channel that is zero on either side has nothing to equalize
    scale = torch.where((rows > 0) & (columns > 0), torch.sqrt(rows / columns), 1.0)
    shrunk = norm if norm is not None else first
    for parameter in (shrunk.weight, shrunk.bias):
        if isinstance(parameter, Tensor):
            parameter.div_(scale.view(-1, *[1] * (parameter.ndim - 1)))
    columns = _columns(second)
    second.weight.copy_((columns * scale.view(columns.shape[0], 1, columns.shape[2], 1)).view_as(second.weight))
    return float(torch.maximum(scale, 1 / scale).max())


def _columns(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The weights as [groups, outputs of a group, inputs of a group, taps]."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    inputs = layer.weight.shape[1]
    return layer.weight.detach().contiguous().view(groups, layer.weight.shape[0] // groups, inputs, -1)


def _reader(node: fx.Node, norm: str | None, modules: dict[str, nn.Module]) -> str | None:
    """The conv or linear layer at the end of a chain of single readers behind a layer, None where there is none."""
    kind = type(modules[str(node.target)])
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_module":
            module = modules[str(node.target)]
            if isinstance(module, nn.Conv2d | nn.Linear):
                return str(node.target) if type(module) is kind else None
            if str(node.target) != norm and not isinstance(module, _KEEPS):
                return None
        elif not (node.op == "call_function" and node.target in _KEEPS_CALLS) and not (
            node.op == "call_method" and node.target in ("relu", "relu_", "contiguous")
        ):
            return None
    return None
