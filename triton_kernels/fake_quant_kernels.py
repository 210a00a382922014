"""The kernels of `fake_quant`: one pass over the data each way, and a small one for what is summed.

A program takes `span` elements of a group, one after another; the grid is (programs of a group, groups). Each adds up
its share of a sum and writes it down, and a second kernel adds these and ends the formula: no atomics, so the same
numbers give the same result.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.launch import Case, Launch

TINY = tl.constexpr(1e-8)
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


@triton.jit
def _step(parameter, group, levels):  # type: ignore[no-untyped-def]
    """|parameter| of a group, at least tiny, and the step; NaN stays."""
    s = tl.abs(tl.load(parameter + group))
    s = tl.where(s < TINY, TINY, s)
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
    tl.store(grad + group, tl.where(tl.abs(p) >= TINY, tl.where(p < 0, -d, d), 0.0))


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
    tl.store(scale + group, tl.where(mean < TINY, TINY, mean))


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
    """`fake_quant.quantize_reference` by the kernels; x has elements."""
    codes, scale = empty(x, torch.float32, parameter.numel()), torch.empty_like(parameter)
    _run(plan_quantize(alike(x, codes), parameter.contiguous(), codes, scale, rule))
    return codes, scale


def triton_gradient(
    grad_codes: Tensor, grad_scale: Tensor, x: Tensor, parameter: Tensor, rule: Rule
) -> tuple[Tensor, Tensor]:
    """`fake_quant.gradient_reference` by the kernels; x has elements."""
    grad_x, grad = empty(x, x.dtype, parameter.numel()), torch.empty_like(parameter)
    sums = _sums(x, parameter.numel())
    parameter, grad_scale = parameter.contiguous(), grad_scale.contiguous()
    _run(plan_gradient(alike(grad_codes, grad_x), grad_scale, alike(x, grad_x), parameter, grad_x, grad, sums, rule))
    return grad_x, grad


def triton_sign(weight: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """`fake_quant.sign_reference` by the kernels; weight has elements."""
    groups = weight.shape[0] if per_channel else 1
    codes, scale = empty(weight, torch.float32, groups), weight.new_empty(groups)
    _run(plan_sign(alike(weight, codes), codes, scale, _sums(weight, groups)))
    return codes, scale


def triton_sign_gradient(grad_codes: Tensor, scale: Tensor) -> Tensor:
    """grad_codes / scale by the kernel; grad_codes has elements."""
    grad = empty(grad_codes, torch.float32, scale.numel())
    _run(plan_sign_gradient(alike(grad_codes, grad), scale, grad))
    return grad


def _run(launches: list[Launch]) -> None:
    for launch in launches:
        launch.run()


def _sums(x: Tensor, groups: int) -> Tensor:
    return torch.empty((groups, _work(x.numel() // groups, groups)[0]), dtype=torch.float32, device=x.device)


def empty(x: Tensor, dtype: torch.dtype, groups: int) -> Tensor:
    """Like x in memory if that is dense, with the groups one after another."""
    out = torch.empty_like(x, dtype=dtype)
    apart = groups == 1 or out.stride(0) * out.shape[0] == out.numel()
    return out if apart else torch.empty(x.shape, dtype=dtype, device=x.device)


def alike(x: Tensor, y: Tensor) -> Tensor:
    """x, in memory like y."""
    return x if x.stride() == y.stride() else torch.empty_like(y, dtype=x.dtype).copy_(x)


def cases() -> list[Case]:
    """Each kernel at one shape, for the offline report; wide loads show that the layout holds."""
    needs: tuple[str, ...] = (r"LDG\.E\.128", r"STG\.E\.128")
    wide = {80: needs, 90: needs}
    one, channels = _meta(), _meta(256)
    inputs, weight = _meta(64, 64, 32, 32), _meta(256, 128, 3, 3)
    made = []
    for name, x, p, rule in (
        ("lsq inputs", inputs, one, Rule(0, 15, False, factor=0.01)),
        ("lsq weight", weight, channels, Rule(-8, 7, False, divide=True, factor=0.01)),
        ("pact inputs", inputs, one, Rule(0, 15, False, pact=True)),
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
