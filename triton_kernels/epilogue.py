"""The end of every kernel of a layer, on one tile: scale and bias, residual, ReLU, then codes or floats.

`channels` is `reference.epilogue` and `finish` is `reference.finish`, on a tile of float32 results; `finish` also gets
the offset of each in the output and in the residual, so that a tile may lie either way round and hold any rows. What it
does follows from its `Tail`, one argument of every kernel, whose None entries are known when the kernel is compiled.

Rounding: v + 1.5 * 2^23 has a last place of 1, so the sum is rounded to an integer, half to even as `torch.round`, and
the low bits of its pattern are that integer (|v| < 2^22) in two's complement: no slow conversion. The limits are
integers, so clamping before rounding and before adding the zero point gives the same code as the reference's order.

`sum_kernel` ends products whose K was split among programs: it adds their sums in a fixed order, so that the result
does not vary from run to run as it would with atomics.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.launch import Launch
from triton_kernels.spec import Output

# 1.5 * 2^23
_MAGIC = tl.constexpr(12582912.0)


class Tail(NamedTuple):
    """What `finish` reads and writes.

    out: the output; codes where it is int8 or uint8. residual: None, floats, or with residual_scale codes. inv_scale:
    None for floats and for binary codes. Limits and zero points are floats, since Triton compiles anew for some
    integers; low and high are relative to zero.
    """

    out: Tensor
    residual: Tensor | None
    residual_scale: Tensor | None
    residual_zero: float
    inv_scale: Tensor | None
    zero: float
    low: float
    high: float


def tail_of(out: Output, y: Tensor) -> Tail:
    """The tail of a kernel that writes y."""
    codes = out.residual is not None and out.residual_scale is not None
    return Tail(
        out=y,
        residual=out.residual,
        residual_scale=out.residual_scale if codes else None,
        residual_zero=float(out.residual_zero_point),
        inv_scale=None if out.binary else out.inv_scale,
        zero=float(out.zero_point),
        low=float(out.qmin - out.zero_point),
        high=float(out.qmax - out.zero_point),
    )


@triton.jit
def round_codes(v, low, high, zero):  # type: ignore[no-untyped-def]
    """Integer codes (int32; only the low 8 bits have a meaning) of float32 v: clamp(round(v), low, high) + zero.

    low, high, zero: whole float32 scalars, |low|, |high| < 2^22. NaN becomes zero.
    """
    held = tl.minimum(tl.maximum(v, low), high)
    bits = (held + _MAGIC).to(tl.int32, bitcast=True)
    shift = tl.cast(zero, tl.int32)
    return tl.where(v == v, bits + shift, shift)


@triton.jit
def finish(y, at, residual_at, mask, tail, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the tile y (float32, after scale and bias) at `tail.out + at` where mask holds.

    at, residual_at, mask: tiles of y's shape (residual_at is unused without a residual).
    """
    if tail.residual is not None:
        r = tl.load(tail.residual + residual_at, mask=mask, other=0)
        if tail.residual_scale is not None:
            # by way of int32: straight from bytes takes up to a third more registers
            r = (r.to(tl.int32).to(tl.float32) - tail.residual_zero) * tl.load(tail.residual_scale)
        y = y + r.to(tl.float32)
    if RELU:
        # torch.relu keeps NaN
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if tail.inv_scale is not None:
        y = round_codes(y * tl.load(tail.inv_scale), tail.low, tail.high, tail.zero)
    elif tail.out.dtype.element_ty.is_int():
        y = tl.where(y >= 0.0, 1, -1) + tl.cast(tail.zero, tl.int32)
    tl.store(tail.out + at, y.to(tail.out.dtype.element_ty), mask=mask)


@triton.jit
def finish_rows(y, m_at, n_at, mask, out_stride, residual_stride, tail, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    """`finish` for a tile [rows, channels] of matrices whose rows are dense."""
    row = m_at.to(tl.int64)[:, None]
    finish(y, row * out_stride + n_at[None, :], row * residual_stride + n_at[None, :], mask, tail, RELU)


@triton.jit
def tile(m, n, BM: tl.constexpr, BN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows and the channels of program 0's number, in an order in which programs that run at once share both."""
    number, tiles_m = tl.program_id(0), tl.cdiv(m, BM)
    first = number // (8 * tiles_m) * 8
    width = tl.minimum(tl.cdiv(n, BN) - first, 8)
    within = number % (8 * tiles_m)
    return within // width * BM + tl.arange(0, BM), (first + within % width) * BN + tl.arange(0, BN)


@triton.jit
def channels(acc, m_at, n_at, m, n, wsum, scale, bias, row_scale, zero, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    """y [rows, channels] before the residual, from an accumulator that is 2^SHIFT too large and has the zero point in.

    wsum (None for a float accumulator), scale (None where it is in acc already), bias: [n]; row_scale: [m] or None.
    """
    n_held, m_held = tl.minimum(n_at, n - 1), tl.minimum(m_at, m - 1)
    if wsum is not None:
        acc = (acc >> SHIFT) - zero * tl.load(wsum + n_held)[None, :]
    y = acc.to(tl.float32)
    if row_scale is not None:
        y = y * tl.load(row_scale + m_held)[:, None]
    if scale is not None:
        y = y * tl.load(scale + n_held)[None, :]
    if bias is not None:
        y = y + tl.load(bias + n_held)[None, :]
    return y


@triton.jit
def sum_kernel(  # type: ignore[no-untyped-def]
    partial,
    wsum,
    scale,
    bias,
    row_scale,
    m,
    n,
    out_stride,
    residual_stride,
    zero,
    tail,
    RELU: tl.constexpr,
    SHIFT: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK channels of a row of the output [m, n] from partial [SPLIT, m, n]."""
    row = tl.program_id(0)
    m_at, n_at = row + tl.arange(0, 1), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (n_at < n)[None, :]
    at = m_at.to(tl.int64)[:, None] * n + n_at[None, :]
    acc = tl.load(partial + at, mask=mask, other=0)
    for i in tl.static_range(1, SPLIT):
        acc += tl.load(partial + at + i * (tl.cast(m, tl.int64) * n), mask=mask, other=0)
    y = channels(acc, m_at, n_at, m, n, wsum, scale, bias, row_scale, zero, SHIFT)
    finish_rows(y, m_at, n_at, mask, out_stride, residual_stride, tail, RELU)


def plan_sum(partial: Tensor, args: dict[str, Any], constants: dict[str, Any], shift: int) -> Launch:
    """The launch that ends a split product. partial: [SPLIT, m, n]; args, constants: the product kernel's, by name."""
    split, m, n = partial.shape
    names = set(sum_kernel.arg_names)
    args = {name: value for name, value in args.items() if name in names}
    constants = {"RELU": constants["RELU"], "SHIFT": shift, "SPLIT": split, "BLOCK": 256}
    return Launch(sum_kernel, (m, triton.cdiv(n, 256)), args, constants, num_warps=2, num_stages=1)
