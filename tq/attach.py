"""Swap the layers of a float network for their quantized training form, by name; `tq.sites` says which there are.

Every layer has an input quantizer of its own, so that it is complete without its neighbours. (Quantized_ResNet has one
for both layers that read a block's input; with learned ranges, those are two here.)
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tq.config import parse_override
from tq.layers import QuantConv2d, QuantLayer, QuantLinear
from tq.quantizers import (
    ACT_QUANTIZERS,
    ActQuantizer,
    LearnedWeight,
    PowerOfTwo,
    ScaledSign,
    WeightQuantizer,
    groups_of,
)
from tq.scheme import Scheme, did_you_mean
from tq.sites import Site as Site
from tq.sites import sites as sites

FIRST_LAST = ("16", "8", "same")
WEIGHT_QUANTIZERS = ("auto", "scaled-sign", "lsq")
GRANULARITIES = ("channel", "tensor", "group")
Quantizers = tuple[WeightQuantizer | None, ActQuantizer | None]


@dataclass(frozen=True)
class Coverage:
    """One line of the account of what is quantized and what is not."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weight_bits: int
    act_bits: int
    pow2: bool = False
    group: int = 0
    """weights that share a scale, 0 for a channel or more"""

    @property
    def scheme(self) -> str:
        """w4a8, inq5, float, w4a16g32, ..."""
        return str(Scheme(self.weight_bits, self.act_bits, self.pow2)) + (f"g{self.group}" if self.group else "")


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
    group_size: int = 32,
) -> nn.Module:
    """Quantize a float network in place and return it; train it, then `tq.convert` it.

    Args:
        model: any nn.Module with nn.Conv2d and nn.Linear layers.
        scheme: "w1a2", "w4a8", "inq5", ... for every layer but the first and the last.
        first_last: bits of the first and the last layer: "16" (left alone), "8" or "same".
        override: PATTERN=SCHEME in order, the last match wins.
        stage_act_bits: activation bits of the modules layer1, layer2, ...
        act_quantizer: "clip", "pact", "lsq" or "lsq+".  weight_quantizer: "auto", "scaled-sign" or "lsq".
        granularity: "channel", "tensor" or "group", of the weight scales. Groups are `group_size` consecutive weights
            of a channel, in the order kh, kw, in; a layer whose channels have no more has one scale a channel. Layers
            with more are summed in float32 (tq.layers). Powers of two have one scale a tensor whatever this says.

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
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}; 32 weights a scale are usual")
    scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
    inside = next((name for name in ("module", "_orig_mod") if _is_wrapper(model, name)), None)
    if inside:
        raise ValueError(f"expected a plain network, got it in a {type(model).__name__}; give its .{inside} instead")
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
        _check_swap(model, site)
    make = _maker(act_quantizer, weight_quantizer, granularity, group_size)
    for site in found:
        layer = model.get_submodule(site.name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        swap(model, site, *make(plan[site.name], layer.weight, unsigned=site.unsigned))
    return to_channels_last(model)


def requantize(model: nn.Module, scheme: str | Scheme, *, like: Iterable[str], **choices: Any) -> nn.Module:
    """Give an attached network the quantizers of another scheme; weights and batch normalization stay as trained.

    Args:
        scheme: the new one, of at least the same layers.
        like: names of all conv and linear layers in order, `[s.name for s in sites(float_network)]`.
        choices: the keyword arguments of `attach`.

    Raises:
        ValueError: the scheme leaves a layer float that is quantized, or the other way round.
    """
    scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
    makers = {k: choices.pop(k) for k in ("act_quantizer", "weight_quantizer", "granularity", "group_size")}
    plan = plan_bits(list(like), scheme, **choices)
    layers = quant_layers(model)
    quantized = {name for name, bits in plan.items() if not bits.is_float}
    if odd := sorted(quantized ^ layers.keys()):
        raise ValueError(f"layer {odd[0]} is quantized in one stage and float in another; use one --override for all")
    make = _maker(**makers)
    for name, layer in layers.items():
        layer.weight_quantizer, layer.input_quantizer = make(plan[name], layer.weight, unsigned=layer.unsigned)
        layer.train(layer.training)
    return model


def _maker(act_quantizer: str, weight_quantizer: str, granularity: str, group_size: int) -> Callable[..., Quantizers]:
    """How the quantizers of one layer are made from its bits, its weight and whether its inputs are unsigned."""

    def make(bits: Scheme, weight: Tensor, *, unsigned: bool) -> Quantizers:
        weights: WeightQuantizer | None = None
        if bits.pow2:
            weights = PowerOfTwo(bits.weight_bits, weight)
        elif bits.weight_bits < 16:
            learned = weight_quantizer == "lsq" or bits.weight_bits > 1
            group = groups_of(weight, group_size) if granularity == "group" else 0
            kind: dict[str, Any] = {"per_channel": granularity != "tensor", "group": group}
            weights = LearnedWeight(bits.weight_bits, weight, **kind) if learned else ScaledSign(**kind)
        inputs = None
        if bits.act_bits < 16:
            inputs = ACT_QUANTIZERS[act_quantizer](bits.act_bits, signed=not unsigned).to(weight.device)
        return weights, inputs

    return make


def swap(model: nn.Module, site: Site, weights: WeightQuantizer | None, inputs: ActQuantizer | None) -> QuantLayer:
    """Put the quantized form of one layer into the network; its batch normalization moves into it."""
    layer = model.get_submodule(site.name)
    bn = model.get_submodule(site.bn) if site.bn else None
    kind = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
    new = kind.from_float(layer, weight_quantizer=weights, input_quantizer=inputs, bn=bn)  # type: ignore[arg-type]
    new.unsigned = site.unsigned
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
        plan.update(dict.fromkeys(members, Scheme(scheme.weight_bits, bits, scheme.pow2)))
    if first_last != "same":
        bits_of_ends = 8 if first_last == "8" else 16
        # what the scheme leaves float everywhere stays float at the ends too
        weights, inputs = (16 if bits == 16 else bits_of_ends for bits in (scheme.weight_bits, scheme.act_bits))
        ends = Scheme(weights, inputs)
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
    """Every conv and linear layer, quantized or not (16 bits), and every other weight of two or more dimensions."""
    lines: list[Coverage] = []
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            quantizer = m.weight_quantizer if isinstance(m, QuantLayer) else None
            w, pow2 = 16 if quantizer is None else quantizer.bits, isinstance(quantizer, PowerOfTwo)
            a = m.input_quantizer.bits if isinstance(m, QuantLayer) and m.input_quantizer is not None else 16
            kind = "conv" if isinstance(m, nn.Conv2d) else "linear"
            group = 0 if quantizer is None else quantizer.group
            lines.append(Coverage(name, kind, tuple(m.weight.shape), w, a, pow2, group))
            continue
        # a transposed convolution, an embedding, a parameter for torch.nn.functional.conv2d: always float
        lines += [
            Coverage(
                name if key == "weight" else f"{name}.{key}".lstrip("."),
                type(m).__name__.lower(),
                tuple(p.shape),
                16,
                16,
            )
            for key, p in m.named_parameters(recurse=False)
            if p.ndim > 1 and not isinstance(m, ActQuantizer | WeightQuantizer)
        ]
    return lines


def _is_wrapper(model: nn.Module, name: str) -> bool:
    """Whether DataParallel or torch.compile keeps the network under this name; it is the only thing in them."""
    wrappers = ("torch.nn.parallel.", "torch._dynamo.")
    return type(model).__module__.startswith(wrappers) and [n for n, _ in model.named_children()] == [name]


def _check_swap(model: nn.Module, site: Site) -> None:
    """Raise ValueError for a layer that cannot be replaced by its quantized form."""
    name, layer = site.name, model.get_submodule(site.name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    leave = f"leave the layer float with {name}=float"
    names = [n for n, m in model.named_modules(remove_duplicate=False) if m is layer]
    if len(names) > 1:
        raise ValueError(
            f"layer {name} is also registered as {names[1]}; keep one name, or leave it float with {name}=float"
        )
    if site.read:
        raise ValueError(f"the tensors of layer {name} are also read by the network's own code; {leave}")
    if not isinstance(layer.weight, nn.Parameter):
        raise ValueError(
            f"the weight of layer {name} is computed anew in each call (weight or spectral norm, pruning); make it a "
            f"plain parameter, e.g. with torch.nn.utils.parametrize.remove_parametrizations, or {leave}"
        )
    if layer.weight.dtype != torch.float32:
        kind = str(layer.weight.dtype).removeprefix("torch.")
        raise ValueError(f"expected float32 weights, got {kind} in layer {name}; call model.float() first, or {leave}")
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        raise ValueError(
            f"layer {name} has padding {layer.padding!r} of mode {layer.padding_mode!r}, but a quantized conv needs "
            f"zero padding given in numbers; change it, or {leave}"
        )


def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay conv weights out as the kernels want them (NHWC); faster on CPUs and GPUs, the same numbers."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
