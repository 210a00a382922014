"""Read a float network with torch.fx: its conv and linear layers in the order of execution, and what is around them.

Which batch normalization follows which layer (and nothing else reads the layer's output), and which inputs cannot be
negative because they come from a ReLU. The network is read as it runs in evaluation mode. One that torch.fx cannot
read is still quantized: then no batch normalization is folded, every input is taken as signed, and a warning says so.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from tq.hooks import evaluating
from tq.traced import Unreadable, source, trace

_PASS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.Identity,
)
_PASS_NAMES = {
    *("flatten", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "dropout", "view", "reshape", "mean"),
    "contiguous",
}
_NON_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)
_NON_NEGATIVE_NAMES = {"relu", "relu_", "relu6", "sigmoid", "hardsigmoid"}
_FUNCTIONAL = {
    *(torch.conv1d, torch.conv2d, torch.conv3d, F.linear),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
}


@dataclass(frozen=True)
class Site:
    """One conv or linear layer of a network, as `sites` found it. read: the network's own code uses its tensors too."""

    name: str
    bn: str | None
    unsigned: bool
    read: bool = False


def sites(model: nn.Module) -> list[Site]:
    """Every nn.Conv2d and nn.Linear in the order of execution, each once. Shared layers and norms are not folded."""
    try:
        with evaluating(model):
            graph = trace(model, _is_plain).graph
    except Unreadable as error:
        warnings.warn(f"{error}; nothing is folded, all inputs are signed", stacklevel=3)
        return [Site(n, None, False) for n, m in model.named_modules() if _is_plain(m) and not _is_inside(n, model)]
    _warn_of_functions(graph, model)
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times_called = Counter(str(node.target) for node in calls)
    # a norm with a second name would be applied again under that name
    names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    found: dict[str, Site] = {}
    for node in calls:
        name = str(node.target)
        if isinstance(modules[name], nn.Conv2d | nn.Linear):
            unsigned = _non_negative(source(node), modules)
            if name in found:
                unsigned = unsigned and found[name].unsigned
            bn = _following_bn(node, modules) if times_called[name] == 1 else None
            if bn and (times_called[bn] > 1 or names[id(modules[bn])] > 1 or bn in read):
                bn = None
            found[name] = Site(name, bn, unsigned, name in read)
    return list(found.values())


def _is_plain(m: nn.Module) -> bool:
    """Whether a module computes what nn.Conv2d or nn.Linear does; a subclass may have another forward."""
    if isinstance(m, nn.Conv2d):
        return type(m).forward is nn.Conv2d.forward and type(m)._conv_forward is nn.Conv2d._conv_forward
    return isinstance(m, nn.Linear) and type(m).forward is nn.Linear.forward


def _is_inside(name: str, model: nn.Module) -> bool:
    """Whether a layer belongs to one of torch's modules that read its weights past its forward; or is the network."""
    above = (model.get_submodule(name[:i]) for i, letter in enumerate(name) if letter == ".")
    attention = ("torch.nn.modules.activation", "torch.nn.modules.transformer")
    return not name or any(type(m).__module__ in attention for m in (model, *above))


def _warn_of_functions(graph: fx.Graph, model: nn.Module) -> None:
    calls = [n.target.__name__ for n in graph.nodes if n.op == "call_function" and n.target in _FUNCTIONAL]
    if calls:
        counted = ", ".join(f"{name} {count} times" for name, count in Counter(calls).items())
        warnings.warn(
            f"{type(model).__name__} calls {counted} as a function, which stays float; use nn.Conv2d or nn.Linear "
            "where it shall be quantized",
            stacklevel=4,
        )


def _following_bn(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.op != "call_module":
        return None
    bn = modules[str(user.target)]
    layer = modules[str(node.target)]
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
    # on [B, T, K] BatchNorm1d normalises T, which a linear layer's K channels cannot absorb
    usable = isinstance(bn, kind) and bn.affine and bn.track_running_stats and bn.num_features == layer.weight.shape[0]
    return str(user.target) if usable else None


def _non_negative(node: object, modules: dict[str, nn.Module]) -> bool:
    """Whether a graph value can only be >= 0: walks back through pooling, reshaping, sums and concatenations."""
    if not isinstance(node, fx.Node) or node.op in ("placeholder", "get_attr"):
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, _NON_NEGATIVE):
            return True
        return isinstance(module, _PASS) and _non_negative(source(node), modules)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in _NON_NEGATIVE_NAMES:
        return True
    if name in _PASS_NAMES or node.target in (F.max_pool2d, F.avg_pool2d):
        return _non_negative(source(node), modules)
    if name == "cat":
        parts = source(node)
        return isinstance(parts, list | tuple) and all(_non_negative(part, modules) for part in parts)
    if name in ("add", "iadd", "add_"):
        parts = [*node.args, *node.kwargs.values()]  # with torch.add's alpha
        return all(part >= 0 if isinstance(part, int | float) else _non_negative(part, modules) for part in parts)
    return False
