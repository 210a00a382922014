"""The end of every kernel of a layer, on one tile: scale and bias, residual, ReLU, then codes or floats.

`affine` is `reference.epilogue` and `finish` is `reference.finish`, on a tile of float32 results; `finish` also gets
the offset of each in the output and in the residual, so that a tile may lie either way round and hold any rows. `tail`
makes the kernel's arguments for it from an `Output`:

    args        out, residual, residual_scale, out_inv_scale  pointers or None
                residual_zero, out_zero, out_low, out_high    floats, since Triton compiles anew for some integers
    constants   RESIDUAL "none", "plain" (floats) or "codes"; RELU; OUT "float", "codes" or "binary"

Rounding: v + 1.5 * 2^23 has a last place of 1, so the sum is rounded to an integer, half to even as `torch.round`, and
the low bits of its pattern are that integer (|v| < 2^22) in two's complement: no slow conversion. The limits are
integers, so clamping before rounding and before adding the zero point gives the same code as the reference's order.

`sum_kernel` ends products whose K was split among programs: it adds their sums in a fixed order, so that the result
does not vary from run to run as it would with atomics.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.launch import Launch
from triton_kernels.spec import Output

# 1.5 * 2^23
_MAGIC = tl.constexpr(12582912.0)


def tail(out: Output, y: Tensor) -> tuple[dict[str, Tensor | int | float | None], dict[str, Any]]:
    """(args, constants) of `finish` for a kernel that writes y, by name."""
    codes = out.residual is not None and out.residual_scale is not None
    args: dict[str, Tensor | int | float | None] = {
        "out": y,
        "residual": out.residual,
        "residual_scale": out.residual_scale if codes else None,
        "residual_zero": float(out.residual_zero_point),
        "out_inv_scale": None if out.binary else out.inv_scale,
        "out_zero": float(out.zero_point),
        "out_low": float(out.qmin - out.zero_point),
        "out_high": float(out.qmax - out.zero_point),
    }
    constants = {
        "RESIDUAL": "codes" if codes else "none" if out.residual is None else "plain",
        "RELU": out.relu,
        "OUT": "binary" if out.binary else "codes" if out.codes else "float",
    }
    return args, constants


@triton.jit
def affine(acc, scale, bias):  # type: ignore[no-untyped-def]
    """acc * scale + bias in float32, each operation rounded. scale, bias (None without): of a shape that broadcasts."""
    y = acc.to(tl.float32) * scale
    if bias is not None:
        y = y + bias
    return y


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
def finish(  # type: ignore[no-untyped-def]
    y,
    at,
    residual_at,
    mask,
    out,
    residual,
    residual_scale,
    residual_zero,
    out_inv_scale,
    out_zero,
    out_low,
    out_high,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    OUT: tl.constexpr,
):
    """Store the tile y (float32, after scale and bias) at `out + at` where mask holds.

    at, residual_at, mask: tiles of y's shape (residual_at is unused without a residual).
    """
    if RESIDUAL != "none":
        r = tl.load(residual + residual_at, mask=mask, other=0)
        if RESIDUAL == "codes":
            # by way of int32: straight from bytes takes up to a third more registers
            r = (r.to(tl.int32).to(tl.float32) - residual_zero) * tl.load(residual_scale)
        y = y + r.to(tl.float32)
    if RELU:
        # torch.relu keeps NaN
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if OUT == "float":
        tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)
    elif OUT == "binary":
        sign = tl.where(y >= 0.0, 1, -1) + tl.cast(out_zero, tl.int32)
        tl.store(out + at, sign.to(out.dtype.element_ty), mask=mask)
    else:
        codes = round_codes(y * tl.load(out_inv_scale), out_low, out_high, out_zero)
        tl.store(out + at, codes.to(out.dtype.element_ty), mask=mask)


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
    out,
    residual,
    residual_scale,
    residual_zero,
    out_inv_scale,
    out_zero,
    out_low,
    out_high,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    OUT: tl.constexpr,
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
    wide = m_at.to(tl.int64)[:, None]
    finish(
        y,
        wide * out_stride + n_at[None, :],
        wide * residual_stride + n_at[None, :],
        mask,
        out,
        residual,
        residual_scale,
        residual_zero,
        out_inv_scale,
        out_zero,
        out_low,
        out_high,
        RESIDUAL,
        RELU,
        OUT,
    )


def plan_sum(
    partial: Tensor, args: dict[str, Tensor | int | float | None], constants: dict[str, Any], shift: int
) -> Launch:
    """The launch that ends a split product. partial: [SPLIT, m, n]; args, constants: the product kernel's, by name."""
    split, m, n = partial.shape
    names = set(sum_kernel.arg_names)
    args = {name: value for name, value in args.items() if name in names}
    constants = {name: constants[name] for name in ("RESIDUAL", "RELU", "OUT")}
    constants |= {"SHIFT": shift, "SPLIT": split, "BLOCK": 256}
    return Launch(sum_kernel, (m, triton.cdiv(n, 256)), args, constants, num_warps=2, num_stages=1)
