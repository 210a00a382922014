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
Each program adds up its share of a sum and writes it down, and a second kernel adds these and ends the formula: no
atomics, so the same numbers give the same result. On a CPU the twins in plain torch run.

Against eager mode (LearnedStep): 1 kernel and 8 bytes an element forward, 2 and 12 backward, for 18 operators with 86
bytes and 15 with 33. Against Inductor 2.13 (from the Triton code that it writes; NOT TIMED): alone, the same bytes, in
one small kernel less forward; where no divisor of the count is near its split, Inductor reads twice, 20 bytes backward.
Inside a compiled conv-BN-ReLU-quantizer-conv it fuses the quantizer with BN: between the convolutions, without BN's
statistics, 44 bytes an element both ways (channels last: 52, of which 8 read across the memory's order), with these
operators 56. So these are for eager training; whether they also win for channels last only a GPU can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.launch import Case, Launch

_TINY = tl.constexpr(1e-8)
# 1.5 * 2^23: adding and subtracting it rounds a small float32 to an integer, half to even
_MAGIC = tl.constexpr(12582912.0)
_BLOCK = 1024
# programs of a pass: enough for every GPU's bandwidth, few enough for one program to add up their sums
_PROGRAMS = 1024


@dataclass(frozen=True)
class Rule:
    """low, high: smallest and largest code. levels: 1 for LSQ; for PACT the codes that alpha spans, step = alpha /
    levels. divide: x / step instead of x * (1 / step). factor: LSQ's scale of the step's gradient."""

    low: int
    high: int
    binary: bool
    pact: bool = False
    divide: bool = False
    factor: float = 1.0

    @property
    def levels(self) -> int:
        """What the parameter is divided by to be the step."""
        return self.high if self.pact else 1

    @property
    def numbers(self) -> dict[str, float]:
        """The kernels' arguments; floats, since Triton compiles anew for some integers."""
        return {"low": float(self.low), "high": float(self.high), "levels": float(self.levels)}


def learned_weight(weight: Tensor, step: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`tq.quantizers.LearnedWeight`: weight [O, ...] and step [O] or [1], float32 -> codes [O, ...], scale [O]."""
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
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
    grad = torch.where(parameter.abs() >= _TINY.value, grad * parameter.sign(), 0.0)
    return grad_x.to(x.dtype), grad


def sign_reference(weight: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """codes, and scale [O] or [1], in plain torch."""
    scale = weight.abs().flatten(1 if per_channel else 0).mean(-1).reshape(-1)
    return torch.where(weight >= 0, 1.0, -1.0), scale.clamp_min(_TINY.value)


def _scaled(x: Tensor, parameter: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    shape = [-1] + [1] * (x.dim() - 1) if parameter.numel() > 1 else []
    s = parameter.abs().clamp_min(_TINY.value).view(shape)
    step = s / rule.levels
    x = x.to(torch.float32)
    return x / step if rule.divide else x * step.reciprocal(), step, s


def _codes(v: Tensor, rule: Rule) -> Tensor:
    return torch.where(v >= 0, 1.0, -1.0) if rule.binary else v.round().clamp(rule.low, rule.high)


@triton.jit
def _step(parameter, group, levels):  # type: ignore[no-untyped-def]
    """|parameter| of a group, at least tiny, and the step; NaN stays."""
    s = tl.abs(tl.load(parameter + group))
    s = tl.where(s < _TINY, _TINY, s)
    return s, tl.div_rn(s, levels)


@triton.jit
def _quantize(v, low, high, BINARY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes of v; NaN stays (sign: -1)."""
    if BINARY:
        return tl.where(v >= 0, 1.0, -1.0)
    held = tl.where(v < low, low, tl.where(v > high, high, v))
    return (held + _MAGIC) - _MAGIC


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, parameter, codes, scale, length, span, low, high, levels,
    BINARY: tl.constexpr, DIVIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    _, step = _step(parameter, group, levels)
    if tl.program_id(0) == 0:
        tl.store(scale + group, step)
    inverse = tl.div_rn(1.0, step)
    start = tl.program_id(0).to(tl.int64) * span
    for offset in range(0, span, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        v = tl.load(x + group * length + at, mask=at < length).to(tl.float32)
        v = tl.div_rn(v, step + tl.zeros_like(v)) if DIVIDE else v * inverse
        tl.store(codes + group * length + at, _quantize(v, low, high, BINARY), mask=at < length)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad_codes, x, parameter, grad_x, sums, length, span, low, high, levels,
    BINARY: tl.constexpr, DIVIDE: tl.constexpr, PACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    _, step = _step(parameter, group, levels)
    inverse = tl.div_rn(1.0, step)
    start = tl.program_id(0).to(tl.int64) * span
    total = tl.zeros((BLOCK,), tl.float32)
    for offset in range(0, span, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        v = tl.load(x + group * length + at, mask=at < length, other=0).to(tl.float32)
        g = tl.load(grad_codes + group * length + at, mask=at < length, other=0).to(tl.float32)
        v = tl.div_rn(v, step + tl.zeros_like(v)) if DIVIDE else v * inverse
        g = tl.where((v > low) & (v < high) if PACT else (v >= low) & (v <= high), g, 0.0)
        total += g * (_quantize(v, low, high, BINARY) if PACT else v)
        g = tl.div_rn(g, step + tl.zeros_like(g)) if DIVIDE else g * inverse
        tl.store(grad_x + group * length + at, g.to(grad_x.dtype.element_ty), mask=at < length)
    tl.store(sums + group * tl.num_programs(0) + tl.program_id(0), tl.sum(total))


@triton.jit
def _parameter_gradient(  # type: ignore[no-untyped-def]
    sums, grad_scale, parameter, grad, programs, levels, factor, BLOCK: tl.constexpr
):
    group = tl.program_id(0)
    s, _ = _step(parameter, group, levels)
    at = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(sums + group * programs + at, mask=at < programs, other=0))
    d = factor * (tl.div_rn(tl.load(grad_scale + group), levels) - tl.div_rn(total, s))
    p = tl.load(parameter + group)
    tl.store(grad + group, tl.where(tl.abs(p) >= _TINY, tl.where(p < 0, -d, d), 0.0))


@triton.jit
def _sign_forward(weight, codes, sums, length, span, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * span
    total = tl.zeros((BLOCK,), tl.float32)
    for offset in range(0, span, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        w = tl.load(weight + group * length + at, mask=at < length, other=0)
        total += tl.abs(w)
        tl.store(codes + group * length + at, tl.where(w >= 0, 1.0, -1.0), mask=at < length)
    tl.store(sums + group * tl.num_programs(0) + tl.program_id(0), tl.sum(total))


@triton.jit
def _sign_scale(sums, scale, programs, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(sums + group * programs + at, mask=at < programs, other=0))
    mean = tl.div_rn(total, count)
    tl.store(scale + group, tl.where(mean < _TINY, _TINY, mean))


@triton.jit
def _sign_backward(grad_codes, scale, grad, length, span, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.program_id(1).to(tl.int64)
    step = tl.load(scale + group)
    start = tl.program_id(0).to(tl.int64) * span
    for offset in range(0, span, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        g = tl.load(grad_codes + group * length + at, mask=at < length, other=0).to(tl.float32)
        tl.store(grad + group * length + at, tl.div_rn(g, step + tl.zeros_like(g)), mask=at < length)


def _work(length: int, groups: int) -> tuple[int, int, int]:
    """Programs for each group, elements for each program, and elements at a time."""
    block = min(_BLOCK, triton.next_power_of_2(length))
    programs = min(triton.cdiv(length, block), max(_PROGRAMS // groups, 1))
    span = triton.cdiv(triton.cdiv(length, programs), block) * block
    return triton.cdiv(length, span), span, block


def _pass(kernel: Any, args: dict[str, Any], constants: dict[str, Any], numel: int, groups: int) -> Launch:
    programs, span, block = _work(numel // groups, groups)
    args = {**args, "length": numel // groups, "span": span}
    return Launch(kernel, (programs, groups), args, {**constants, "BLOCK": block}, max(block // 256, 1))


def _last(kernel: Any, args: dict[str, Any], sums: Tensor) -> Launch:
    groups, programs = sums.shape
    args = {**args, "sums": sums, "programs": programs}
    return Launch(kernel, (groups,), args, {"BLOCK": triton.next_power_of_2(programs)}, 1)


def plan_quantize(x: Tensor, parameter: Tensor, codes: Tensor, scale: Tensor, rule: Rule) -> list[Launch]:
    """x and codes lie alike in memory, the groups one after another; parameter and scale: [G] or 0-dim."""
    args = {"x": x, "parameter": parameter, "codes": codes, "scale": scale, **rule.numbers}
    constants = {"BINARY": rule.binary, "DIVIDE": rule.divide}
    return [_pass(_forward, args, constants, x.numel(), parameter.numel())]


def plan_gradient(
    grad_codes: Tensor, grad_scale: Tensor, x: Tensor, parameter: Tensor, grad_x: Tensor, grad: Tensor, sums: Tensor,
    rule: Rule,
) -> list[Launch]:  # fmt: skip
    """As `plan_quantize`; sums: float32 [G, programs], what the programs add up."""
    args = {"grad_codes": grad_codes, "x": x, "parameter": parameter, "grad_x": grad_x, "sums": sums, **rule.numbers}
    constants = {"BINARY": rule.binary, "DIVIDE": rule.divide, "PACT": rule.pact}
    ends = {"grad_scale": grad_scale, "parameter": parameter, "grad": grad, "levels": float(rule.levels)}
    return [
        _pass(_backward, args, constants, x.numel(), parameter.numel()),
        _last(_parameter_gradient, ends | {"factor": rule.factor}, sums),
    ]


def plan_sign(weight: Tensor, codes: Tensor, scale: Tensor, sums: Tensor) -> list[Launch]:
    """weight and codes lie alike in memory; scale: float32 [G]; sums: float32 [G, programs]."""
    args = {"weight": weight, "codes": codes, "sums": sums}
    ends = {"scale": scale, "count": float(weight.numel() // scale.numel())}
    return [_pass(_sign_forward, args, {}, weight.numel(), scale.numel()), _last(_sign_scale, ends, sums)]


def plan_sign_gradient(grad_codes: Tensor, scale: Tensor, grad: Tensor) -> list[Launch]:
    """grad_codes and grad lie alike in memory; scale: float32 [G]."""
    args = {"grad_codes": grad_codes, "scale": scale, "grad": grad}
    return [_pass(_sign_backward, args, {}, grad.numel(), scale.numel())]


def triton_quantize(x: Tensor, parameter: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """`quantize_reference` by the kernels; x has elements."""
    codes, scale = _empty(x, torch.float32, parameter.numel()), torch.empty_like(parameter)
    _run(plan_quantize(_alike(x, codes), parameter.contiguous(), codes, scale, rule))
    return codes, scale


def triton_gradient(
    grad_codes: Tensor, grad_scale: Tensor, x: Tensor, parameter: Tensor, rule: Rule
) -> tuple[Tensor, Tensor]:
    """`gradient_reference` by the kernels; x has elements."""
    grad_x, grad = _empty(x, x.dtype, parameter.numel()), torch.empty_like(parameter)
    sums = _sums(x, parameter.numel())
    parameter, grad_scale = parameter.contiguous(), grad_scale.contiguous()
    _run(plan_gradient(_alike(grad_codes, grad_x), grad_scale, _alike(x, grad_x), parameter, grad_x, grad, sums, rule))
    return grad_x, grad


def triton_sign(weight: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """`sign_reference` by the kernels; weight has elements."""
    groups = weight.shape[0] if per_channel else 1
    codes, scale = _empty(weight, torch.float32, groups), weight.new_empty(groups)
    _run(plan_sign(_alike(weight, codes), codes, scale, _sums(weight, groups)))
    return codes, scale


def triton_sign_gradient(grad_codes: Tensor, scale: Tensor) -> Tensor:
    """grad_codes / scale by the kernel; grad_codes has elements."""
    grad = _empty(grad_codes, torch.float32, scale.numel())
    _run(plan_sign_gradient(_alike(grad_codes, grad), scale, grad))
    return grad


def _run(launches: list[Launch]) -> None:
    for launch in launches:
        launch.run()


def _sums(x: Tensor, groups: int) -> Tensor:
    return torch.empty((groups, _work(x.numel() // groups, groups)[0]), dtype=torch.float32, device=x.device)


def _empty(x: Tensor, dtype: torch.dtype, groups: int) -> Tensor:
    """Like x in memory if that is dense, with the groups one after another."""
    out = torch.empty_like(x, dtype=dtype)
    apart = groups == 1 or out.stride(0) * out.shape[0] == out.numel()
    return out if apart else torch.empty(x.shape, dtype=dtype, device=x.device)


def _alike(x: Tensor, y: Tensor) -> Tensor:
    """x, in memory like y."""
    return x if x.stride() == y.stride() else torch.empty_like(y, dtype=x.dtype).copy_(x)


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
        return _alike(codes, _empty(x, torch.float32, parameter.numel())), scale

    def backward(
        grad_codes: Tensor, grad_scale: Tensor, x: Tensor, parameter: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        if x.is_cuda and x.numel():
            return triton_gradient(grad_codes, grad_scale, x, parameter, rule(*rest))
        grad_x, grad = gradient_reference(grad_codes, grad_scale, x, parameter, rule(*rest))
        return _alike(grad_x, _empty(x, x.dtype, parameter.numel())), grad

    def fake_forward(x: Tensor, parameter: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        _check(x, parameter)
        return _empty(x, torch.float32, parameter.numel()), torch.empty_like(parameter)

    def fake_backward(
        grad_codes: Tensor, grad_scale: Tensor, x: Tensor, parameter: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        return _empty(x, x.dtype, parameter.numel()), torch.empty_like(parameter)

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
    return _alike(codes, _empty(weight, torch.float32, scale.numel())), scale


def _fake_sign(weight: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    _check(weight, weight)
    groups = weight.shape[0] if per_channel else 1
    return _empty(weight, torch.float32, groups), weight.new_empty(groups)


def _sign_gradient(grad_codes: Tensor, scale: Tensor) -> Tensor:
    if grad_codes.is_cuda and grad_codes.numel():
        return triton_sign_gradient(grad_codes, scale)
    grad = grad_codes / scale.view(-1, *[1] * (grad_codes.dim() - 1))
    return _alike(grad, _empty(grad_codes, torch.float32, scale.numel()))


def _fake_sign_gradient(grad_codes: Tensor, scale: Tensor) -> Tensor:
    return _empty(grad_codes, torch.float32, scale.numel())


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


def cases() -> list[Case]:
    """Each kernel at one shape, for the offline report; wide loads show that the layout holds."""
    needs: tuple[str, ...] = (r"LDG\.E\.128", r"STG\.E\.128")
    wide = {80: needs, 90: needs}
    one, channels = _meta(), _meta(256)
    inputs, weight = _meta(64, 64, 32, 32), _meta(256, 128, 3, 3)
    made = []
    for name, x, p, rule in (
        ("lsq inputs", inputs, one, _lsq(0, 15, 0.01)),
        ("lsq weight", weight, channels, _lsq(-8, 7, 0.01, divide=True)),
        ("pact inputs", inputs, one, _pact(0, 15)),
    ):
        sums = _sums(x, p.numel())
        made.append(Case(f"fake_quant {name}", plan_quantize(x, p, x, p, rule), wide, max_registers=64))
        launches = plan_gradient(x, p, x, p, x, p, sums, rule)
        made.append(Case(f"fake_quant {name} backward", launches, wide, max_registers=64))
    made.append(Case("scaled_sign", plan_sign(weight, weight, channels, _sums(weight, 256)), wide, max_registers=64))
    launches = plan_sign_gradient(weight, channels, weight)
    made.append(Case("scaled_sign backward", launches, wide, max_registers=64))
    return made


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="meta")
