"""Fake quantization for training, a pass over the data each way: the values and gradients of `tq.quantizers`.

    tq::fake_quant_lsq    LSQ, arXiv 1902.08153 (LearnedWeight, LearnedStep)
    tq::fake_quant_pact   PACT, arXiv 1805.06085 (PACT)
    tq::scaled_sign       XNOR-Net, arXiv 1603.05279 (ScaledSign)

each with a `_backward` operator, and behind a function with the quantizer's arguments: (codes, scale), value =
codes * scale. With p the parameter, s = max(|p|, 1e-8) the step (LSQ), or s = alpha and alpha / qmax the step (PACT):

    v      = x / step (weights) or x * (1 / step) (inputs)        codes = clamp(round(v), low, high) or sign(v)
    dx     = g * [v inside] / step                                inside: with the bounds for LSQ, without for PACT
    d step = d scale - sum(g * [inside] * v) / step               LSQ; the whole times `factor`
    d s    = d scale / qmax - sum(g * [inside] * codes) / s       PACT

codes and g are of x's shape; step and scale float32 [G], one for each of G equal slices along dimension 0, or 0-dim.
CUDA tensors go to `fake_quant_kernels`; on a CPU the twins in plain torch run.

Against eager mode (LearnedStep): 1 kernel and 8 bytes an element forward, 2 and 12 backward, for 18 operators with 86
bytes and 15 with 33. Against Inductor 2.13 (from the Triton code that it writes; NOT TIMED): alone, the same bytes, in
one small kernel less forward; where no divisor of the count is near its split, Inductor reads twice, 20 bytes backward.
Inside a compiled conv-BN-ReLU-quantizer-conv it fuses the quantizer with BN: between the convolutions, without BN's
statistics, 44 bytes an element both ways (channels last: 52, of which 8 read across the memory's order), with these
operators 56. So these are for eager training; whether they also win for channels last only a GPU can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from triton_kernels.fake_quant_kernels import (
    TINY,
    Rule,
    alike,
    empty,
    triton_gradient,
    triton_quantize,
    triton_sign,
    triton_sign_gradient,
)

# `offline` looks for the cases here
from triton_kernels.fake_quant_kernels import cases as cases
from triton_kernels.layout import code_range


def learned_weight(weight: Tensor, step: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`tq.quantizers.LearnedWeight`: weight [O, ...] and step [O] or [1], float32 -> codes [O, ...], scale [O]."""
    low, high = code_range(bits)
    factor = (max(weight.numel() / step.numel(), 1) * high) ** -0.5
    codes, scale = torch.ops.tq.fake_quant_lsq(weight, step, low, high, factor, bits == 1, True)
    return codes, scale.expand(weight.shape[0])


def learned_step(
    x: Tensor, step: Tensor, qmin: int, qmax: int, zero_point: int = 0, *, binary: bool = False
) -> tuple[Tensor, Tensor]:
    """`tq.quantizers.LearnedStep`: x [B, ...] floating, step float32 0-dim -> codes float32, scale."""
    factor = (max(prod(x.shape[1:]), 1) * qmax) ** -0.5
    codes, scale = torch.ops.tq.fake_quant_lsq(x, step, qmin - zero_point, qmax - zero_point, factor, binary, False)
    return codes, scale


def pact(x: Tensor, alpha: Tensor, qmin: int, qmax: int, *, binary: bool = False) -> tuple[Tensor, Tensor]:
    """`tq.quantizers.PACT`: x [B, ...] floating, alpha float32 0-dim -> codes float32, scale."""
    codes, scale = torch.ops.tq.fake_quant_pact(x, alpha, qmin, qmax, binary)
    return codes, scale


def scaled_sign(weight: Tensor, *, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """`tq.quantizers.ScaledSign`: weight [O, ...] float32 -> codes [O, ...], scale [O] without gradient.

    Where a weight is NaN the class makes all codes of its slice NaN, this only the scale: the values are the same.
    """
    codes, scale = torch.ops.tq.scaled_sign(weight, per_channel)
    return codes, scale.expand(weight.shape[0])


def quantize_reference(x: Tensor, parameter: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """codes and scale in plain torch."""
    v, step, _ = _scaled(x, parameter, rule)
    return _codes(v, rule), step.reshape(parameter.shape)


def gradient_reference(
    grad_codes: Tensor, grad_scale: Tensor, x: Tensor, parameter: Tensor, rule: Rule
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the parameter in plain torch."""
    v, step, s = _scaled(x, parameter, rule)
    inside = (v > rule.low) & (v < rule.high) if rule.pact else (v >= rule.low) & (v <= rule.high)
    g = torch.where(inside, grad_codes.to(torch.float32), 0.0)
    grad_x = g / step if rule.divide else g * step.reciprocal()
    total = (g * (_codes(v, rule) if rule.pact else v)).reshape(parameter.numel(), -1).sum(1).view(parameter.shape)
    grad = rule.factor * (grad_scale / rule.levels - total / s.reshape(parameter.shape))
    grad = torch.where(parameter.abs() >= TINY.value, grad * parameter.sign(), 0.0)
    return grad_x.to(x.dtype), grad


def sign_reference(weight: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """codes, and scale [O] or [1], in plain torch."""
    scale = weight.abs().flatten(1 if per_channel else 0).mean(-1).reshape(-1)
    return torch.where(weight >= 0, 1.0, -1.0), scale.clamp_min(TINY.value)


def _scaled(x: Tensor, parameter: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    shape = [-1] + [1] * (x.dim() - 1) if parameter.numel() > 1 else []
    s = parameter.abs().clamp_min(TINY.value).view(shape)
    step = s / rule.levels
    x = x.to(torch.float32)
    return x / step if rule.divide else x * step.reciprocal(), step, s


def _codes(v: Tensor, rule: Rule) -> Tensor:
    return torch.where(v >= 0, 1.0, -1.0) if rule.binary else v.round().clamp(rule.low, rule.high)


_LIB = torch.library.Library("tq", "FRAGMENT")
# else Inductor copies what does not lie as it did in eager mode
_ANY_STRIDES = (torch.Tag.flexible_layout,)


def _lsq(low: int, high: int, factor: float, binary: bool = False, divide: bool = False) -> Rule:
    return Rule(low, high, binary, divide=divide, factor=factor)


def _pact(low: int, high: int, binary: bool = False) -> Rule:
    return Rule(low, high, binary, pact=True)


def _define(name: str, arguments: str, rule: Callable[..., Rule]) -> None:
    """Register tq::name and tq::name_backward; arguments: the schema of the parameter and of what `rule` takes."""
    grads = "Tensor grad_codes, Tensor grad_scale, "
    _LIB.define(f"{name}(Tensor x, {arguments}) -> (Tensor, Tensor)", tags=_ANY_STRIDES)
    _LIB.define(f"{name}_backward({grads}Tensor x, {arguments}) -> (Tensor, Tensor)", tags=_ANY_STRIDES)

    def forward(x: Tensor, parameter: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        _check(x, parameter)
        if x.is_cuda and x.numel():
            return triton_quantize(x, parameter, rule(*rest))
        codes, scale = quantize_reference(x, parameter, rule(*rest))
        return alike(codes, empty(x, torch.float32, parameter.numel())), scale

    def backward(
        grad_codes: Tensor, grad_scale: Tensor, x: Tensor, parameter: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        if x.is_cuda and x.numel():
            return triton_gradient(grad_codes, grad_scale, x, parameter, rule(*rest))
        grad_x, grad = gradient_reference(grad_codes, grad_scale, x, parameter, rule(*rest))
        return alike(grad_x, empty(x, x.dtype, parameter.numel())), grad

    def fake_forward(x: Tensor, parameter: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        _check(x, parameter)
        return empty(x, torch.float32, parameter.numel()), torch.empty_like(parameter)

    def fake_backward(
        grad_codes: Tensor, grad_scale: Tensor, x: Tensor, parameter: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        return empty(x, x.dtype, parameter.numel()), torch.empty_like(parameter)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.rest = inputs[2:]

    def gradient(ctx: Any, grad_codes: Tensor, grad_scale: Tensor) -> tuple[Tensor | None, ...]:
        grads = getattr(torch.ops.tq, f"{name}_backward")(grad_codes, grad_scale, *ctx.saved_tensors, *ctx.rest)
        return *grads, *[None] * len(ctx.rest)

    for run, fake, suffix in ((forward, fake_forward, ""), (backward, fake_backward, "_backward")):
        _implement(name + suffix, run, fake)
    torch.library.register_autograd(f"tq::{name}", gradient, setup_context=setup, lib=_LIB)


def _implement(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _LIB.impl(name, run, "CPU")
    _LIB.impl(name, run, "CUDA")
    torch.library.register_fake(f"tq::{name}", fake, lib=_LIB)


def _sign(weight: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    _check(weight, weight)
    if weight.is_cuda and weight.numel():
        return triton_sign(weight, per_channel)
    codes, scale = sign_reference(weight, per_channel)
    return alike(codes, empty(weight, torch.float32, scale.numel())), scale


def _fake_sign(weight: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    _check(weight, weight)
    groups = weight.shape[0] if per_channel else 1
    return empty(weight, torch.float32, groups), weight.new_empty(groups)


def _sign_gradient(grad_codes: Tensor, scale: Tensor) -> Tensor:
    if grad_codes.is_cuda and grad_codes.numel():
        return triton_sign_gradient(grad_codes, scale)
    grad = grad_codes / scale.view(-1, *[1] * (grad_codes.dim() - 1))
    return alike(grad, empty(grad_codes, torch.float32, scale.numel()))


def _fake_sign_gradient(grad_codes: Tensor, scale: Tensor) -> Tensor:
    return empty(grad_codes, torch.float32, scale.numel())


def _setup_sign(ctx: Any, inputs: tuple[Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient_of_sign(ctx: Any, grad_codes: Tensor, grad_scale: Tensor) -> tuple[Tensor, None]:
    return torch.ops.tq.scaled_sign_backward(grad_codes, *ctx.saved_tensors), None


def _check(x: Tensor, parameter: Tensor) -> None:
    if not x.is_floating_point() or parameter.dtype != torch.float32:
        raise ValueError(
            f"expected floats to quantize and float32 parameters, got {x.dtype} and {parameter.dtype}: convert with "
            ".to(torch.float32)"
        )
    if parameter is not x and parameter.numel() not in (1, x.shape[0] if x.dim() else 1):
        raise ValueError(
            f"expected one parameter or one for each slice of {list(x.shape)}, got {list(parameter.shape)}: slices lie "
            "along the first dimension"
        )


_define("fake_quant_lsq", "Tensor step, int low, int high, float factor, bool binary=False, bool divide=False", _lsq)
_define("fake_quant_pact", "Tensor alpha, int low, int high, bool binary=False", _pact)
_LIB.define("scaled_sign(Tensor weight, bool per_channel=True) -> (Tensor, Tensor)", tags=_ANY_STRIDES)
_LIB.define("scaled_sign_backward(Tensor grad_codes, Tensor scale) -> Tensor", tags=_ANY_STRIDES)
_implement("scaled_sign", _sign, _fake_sign)
_implement("scaled_sign_backward", _sign_gradient, _fake_sign_gradient)
torch.library.register_autograd("tq::scaled_sign", _gradient_of_sign, setup_context=_setup_sign, lib=_LIB)
