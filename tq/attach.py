"""Swap the layers of a float network for their quantized training form, by name; find what can be folded.

The network is read once with torch.fx: which batch normalization follows which layer (and nothing else reads the
layer's output), and which inputs cannot be negative because they come from a ReLU. A network that torch.fx cannot
read is still quantized: then no batch normalization is folded, every input is taken as signed, and a warning says so.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from tq.config import parse_override
from tq.layers import QuantConv2d, QuantLayer, QuantLinear
from tq.quantizers import ACT_QUANTIZERS, LearnedWeight, ScaledSign
from tq.scheme import Scheme, did_you_mean

FIRST_LAST = ("16", "8", "same")
WEIGHT_QUANTIZERS = ("auto", "scaled-sign", "lsq")
GRANULARITIES = ("channel", "tensor")

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


@dataclass(frozen=True)
class Site:
    """One conv or linear layer of a network, as `sites` found it."""

    name: str
    bn: str | None
    unsigned: bool


@dataclass(frozen=True)
class Coverage:
    """One line of the account of what is quantized and what is not."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weight_bits: int
    act_bits: int


def sites(model: nn.Module) -> list[Site]:
    """Every nn.Conv2d and nn.Linear in the order of execution, each once. Shared layers and norms are not folded."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # torch.fx raises many kinds of errors for code that it cannot read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(
            f"torch.fx cannot read {type(model).__name__} ({reason}); nothing is folded, all inputs are signed",
            stacklevel=3,
        )
        # torch's own classes only, as in a traced network: a subclass may have another forward
        return [Site(n, None, False) for n, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times_called: dict[str, int] = {}
    for node in calls:
        times_called[str(node.target)] = times_called.get(str(node.target), 0) + 1
    found: dict[str, Site] = {}
    for node in calls:
        name = str(node.target)
        if isinstance(modules[name], nn.Conv2d | nn.Linear):
            unsigned = _non_negative(_input(node), modules)
            if name in found:
                unsigned = unsigned and found[name].unsigned
            bn = _following_bn(node, modules) if times_called[name] == 1 else None
            found[name] = Site(name, bn if bn and times_called[bn] == 1 else None, unsigned)
    return list(found.values())


def attach(
    model: nn.Module,
    scheme: str | Scheme,
    *,
    first_last: str = "16",
    override: Iterable[str] = (),
    stage_act_bits: Sequence[int] = (),
    act_quantizer: str = "lsq",
    weight_quantizer: str = "auto",
    granularity: str = "channel",
) -> nn.Module:
    """Quantize a float network in place and return it; train it, then `tq.convert` it.

    Args:
        model: any nn.Module with nn.Conv2d and nn.Linear layers.
        scheme: "w1a2", "w4a8", ... for every layer but the first and the last.
        first_last: bits of the first and the last layer: "16" (left alone), "8" or "same".
        override: PATTERN=SCHEME in order, the last match wins.
        stage_act_bits: activation bits of the modules layer1, layer2, ...
        act_quantizer: "clip", "pact" or "lsq".  weight_quantizer: "auto", "scaled-sign" or "lsq".
        granularity: "channel" or "tensor", of the weight scales.

    Raises:
        ValueError: nothing to quantize, already quantized, an unknown word, a pattern that matches no layer, more
            stages than the network has, a layer that has no quantized form; the network is then unchanged.
    """
    for what, word, words in (
        ("first_last", first_last, FIRST_LAST),
        ("act_quantizer", act_quantizer, tuple(ACT_QUANTIZERS)),
        ("weight_quantizer", weight_quantizer, WEIGHT_QUANTIZERS),
        ("granularity", granularity, GRANULARITIES),
    ):
        if word not in words:
            raise ValueError(
                f"unknown {what} {word!r}: expected one of {', '.join(words)}{did_you_mean(str(word), words)}"
            )
    scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
    if quant_layers(model):
        raise ValueError(f"{type(model).__name__} is already quantized; attach to a fresh float network")
    found = sites(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no nn.Conv2d or nn.Linear layer to quantize")
    plan = plan_bits(
        [s.name for s in found], scheme, first_last=first_last, override=override, stage_act_bits=stage_act_bits
    )
    found = [site for site in found if not plan[site.name].is_float]
    for site in found:
        _check_swap(model, site.name)
    for site in found:
        bits = plan[site.name]
        layer = model.get_submodule(site.name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weights: ScaledSign | LearnedWeight | None = None
        if bits.weight_bits < 16:
            learned = weight_quantizer == "lsq" or bits.weight_bits > 1
            per_channel = granularity == "channel"
            weights = (
                LearnedWeight(bits.weight_bits, layer.weight, per_channel=per_channel)
                if learned
                else ScaledSign(per_channel=per_channel)
            )
        inputs = None
        if bits.act_bits < 16:
            inputs = ACT_QUANTIZERS[act_quantizer](bits.act_bits, signed=not site.unsigned).to(layer.weight.device)
        swap(model, site, weights, inputs)
    return to_channels_last(model)


def swap(
    model: nn.Module, site: Site, weights: ScaledSign | LearnedWeight | None, inputs: nn.Module | None
) -> QuantLayer:
    """Put the quantized form of one layer into the network; its batch normalization moves into it."""
    layer = model.get_submodule(site.name)
    bn = model.get_submodule(site.bn) if site.bn else None
    kind = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
    new = kind.from_float(layer, weight_quantizer=weights, input_quantizer=inputs, bn=bn)  # type: ignore[arg-type]
    new.train(layer.training)
    model.set_submodule(site.name, new)
    if site.bn:
        model.set_submodule(site.bn, nn.Identity())
    return new


def plan_bits(
    names: Sequence[str],
    scheme: Scheme,
    *,
    first_last: str = "16",
    override: Iterable[str] = (),
    stage_act_bits: Sequence[int] = (),
) -> dict[str, Scheme]:
    """The bits of every layer, by the rules of `attach`. Raises ValueError."""
    plan = dict.fromkeys(names, scheme)
    for stage, bits in enumerate(stage_act_bits, 1):
        members = [n for n in names if re.search(rf"(^|\.)layer{stage}\.", n)]
        if not members:
            raise ValueError(f"stage_act_bits gives {len(stage_act_bits)} stages, but the network has no layer{stage}")
        plan.update(dict.fromkeys(members, Scheme(scheme.weight_bits, bits)))
    if first_last != "same":
        bits_of_ends = 8 if first_last == "8" else 16
        # what the scheme leaves float everywhere stays float at the ends too
        ends = Scheme(*(16 if bits == 16 else bits_of_ends for bits in (scheme.weight_bits, scheme.act_bits)))
        plan[names[0]] = plan[names[-1]] = ends
    for rule in override:
        pattern, bits_of = parse_override(rule)
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise ValueError(
                f"override pattern {pattern!r} matches no layer{did_you_mean(pattern, names)}; "
                f"layers: {', '.join(names)}"
            )
        plan.update(dict.fromkeys(matches, bits_of))
    return plan


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The quantized layers of a network in training form, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer)}


def coverage(model: nn.Module) -> list[Coverage]:
    """Every conv and linear layer, quantized or not (16 bits)."""
    lines = []
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            w = m.weight_quantizer.bits if isinstance(m, QuantLayer) and m.weight_quantizer is not None else 16
            a = m.input_quantizer.bits if isinstance(m, QuantLayer) and m.input_quantizer is not None else 16
            lines.append(Coverage(name, "conv" if isinstance(m, nn.Conv2d) else "linear", tuple(m.weight.shape), w, a))
    return lines


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


def _input(node: fx.Node) -> object:
    """The first argument of a call, however it was passed."""
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensors"))


def _check_swap(model: nn.Module, name: str) -> None:
    """Raise ValueError for a layer that cannot be replaced by its quantized form."""
    layer = model.get_submodule(name)
    names = [n for n, m in model.named_modules(remove_duplicate=False) if m is layer]
    if len(names) > 1:
        raise ValueError(
            f"layer {name} is also registered as {names[1]}; keep one name, or leave it float with {name}=float"
        )
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        raise ValueError(
            f"layer {name} has padding {layer.padding!r} of mode {layer.padding_mode!r}, but a quantized conv needs "
            f"zero padding given in numbers; change it, or leave the layer float with {name}=float"
        )


def _non_negative(node: object, modules: dict[str, nn.Module]) -> bool:
    """Whether a graph value can only be >= 0: walks back through pooling, reshaping, sums and concatenations."""
    if not isinstance(node, fx.Node) or node.op in ("placeholder", "get_attr"):
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, _NON_NEGATIVE):
            return True
        return isinstance(module, _PASS) and _non_negative(_input(node), modules)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in _NON_NEGATIVE_NAMES:
        return True
    if name in _PASS_NAMES or node.target in (F.max_pool2d, F.avg_pool2d):
        return _non_negative(_input(node), modules)
    if name == "cat":
        parts = _input(node)
        return isinstance(parts, list | tuple) and all(_non_negative(part, modules) for part in parts)
    if name in ("add", "iadd", "add_"):
        parts = [*node.args, *node.kwargs.values()]  # with torch.add's alpha
        return all(part >= 0 if isinstance(part, int | float) else _non_negative(part, modules) for part in parts)
    return False


def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay conv weights out as the kernels want them (NHWC); faster on CPUs and GPUs, the same numbers."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
