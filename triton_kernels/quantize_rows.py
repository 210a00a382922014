"""Activations to int8 (or to two halves) in one launch, in front of the matmul: a row a program, from registers.

What is stored is s8 = code - offset, so that every code fits: the matmul takes s8 - (zero - offset) for the centred
code. Rows are filled up with zeros to a length that the matmul may read without masks.

    "static"    floats by a scale of the whole tensor: reference.quantize_input
    "binary"    floats to +1 and -1
    "dynamic"   floats by the row's own scale, which is written too: reference.quantize_rows, bit for bit
    "flip"      uint8 codes minus 128
    "copy"      int8 codes, which rows of an odd length need to be read 16 bytes at a time
    "packed"    packed codes of 1, 2 or 4 bits (SIGN: one bit as +1 and -1)
    "split"     float32 to two bfloat16, [2, M, k_out]: the first 8 significant bits, and the next 8

A kernel of its own, because inside the matmul every tile of N would repeat it, and the result would go through
registers to the shared memory that the tensor cores read, where int8 codes go directly (cp.async). The same holds for
packed codes: few bytes are saved by reading x packed for each tile of N, and each time it would have to be unpacked.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.epilogue import round_codes
from triton_kernels.launch import Case, Launch, interpreted
from triton_kernels.spec import Input

_CODES_HELD = 16384


@triton.jit
def quantize_rows_kernel(  # type: ignore[no-untyped-def]
    x,
    out,
    row_scale,
    inv_scale,
    k,
    k_out,
    x_stride,
    low,
    high,
    zero,
    MODE: tl.constexpr,
    BITS: tl.constexpr,
    SIGN: tl.constexpr,
    ROUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
    LOOPS: tl.constexpr,
):
    """out [M, k_out] from x [M, k], one program a row; LOOPS * BLOCK >= k_out."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    out += row * k_out
    at = tl.arange(0, BLOCK)
    factor = 1.0
    if MODE == "static":
        factor = tl.load(inv_scale)
    if MODE == "dynamic":
        held = tl.load(x + at, mask=at < k, other=0.0).to(tl.float32)
        peak = tl.abs(held)
        for i in tl.range(1, LOOPS):
            more = tl.load(x + i * BLOCK + at, mask=i * BLOCK + at < k, other=0.0).to(tl.float32)
            peak = tl.maximum(peak, tl.abs(more))
        top = tl.max(peak, 0)
        scale = tl.where(top > 0.0, _divide(top, 127.0, ROUNDED), 1.0)
        tl.store(row_scale + row, scale)
        factor = _divide(1.0, scale, ROUNDED)
    for i in tl.range(LOOPS):
        k_at = i * BLOCK + at
        inside = k_at < k
        if MODE == "packed":
            byte = tl.load(x + k_at // (8 // BITS), mask=inside, other=0).to(tl.int32)
            code = (byte >> (k_at % (8 // BITS) * BITS)) & ((1 << BITS) - 1)
            if SIGN:
                code = 2 * code - 1
        elif MODE == "flip":
            code = tl.load(x + k_at, mask=inside, other=0) ^ 0x80
        elif MODE == "split":
            whole = tl.load(x + k_at, mask=inside, other=0.0)
            code = (whole.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
            # an infinite x has no rest
            rest = tl.where(whole - code == whole - code, whole - code, 0.0).to(out.dtype.element_ty)
            tl.store(out + tl.num_programs(0).to(tl.int64) * k_out + k_at, rest, mask=k_at < k_out)
        elif MODE == "copy":
            code = tl.load(x + k_at, mask=inside, other=0)
        elif MODE == "binary":
            code = tl.where(tl.load(x + k_at, mask=inside, other=0.0) >= 0.0, 1, -1)
        elif LOOPS == 1 and MODE == "dynamic":
            code = round_codes(held * factor, low, high, zero)
        else:
            code = round_codes(tl.load(x + k_at, mask=inside, other=0.0).to(tl.float32) * factor, low, high, zero)
        tl.store(out + k_at, tl.where(inside, code, 0).to(out.dtype.element_ty), mask=k_at < k_out)


@triton.jit
def _divide(a, b, ROUNDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """a / b, rounded to nearest also on a GPU, where the plain division is not."""
    return tl.div_rn(a, b) if ROUNDED else a / b


def offset(given: Input, dtype: torch.dtype) -> int:
    """What was taken from x's codes to make them int8. Raises ValueError where no offset does."""
    kind = given.kind(dtype)
    if kind == "codes":
        return 128 if dtype == torch.uint8 else 0
    if kind != "static" or given.binary or (given.qmin >= -128 and given.qmax <= 127):
        return 0
    if given.qmax - given.qmin > 255:
        raise ValueError(f"expected at most 256 activation codes, got {given.qmin}..{given.qmax}: use fewer bits")
    return given.qmin + 128


def plan_rows(x: Tensor, given: Input, k: int, codes: Tensor, row_scale: Tensor | None) -> list[Launch]:
    """codes: int8 [M, at least k] to be written, from x [M, K] (packed: [M, row_bytes]), whose last dim is contiguous.

    row_scale: float32 [M] to be written for "dynamic" inputs, else None.
    """
    kind = given.kind(x.dtype)
    mode = "binary" if kind == "static" and given.binary else kind
    if kind == "codes":
        mode = "flip" if x.dtype == torch.uint8 else "copy"
    low, high, zero = float(given.qmin - given.zero_point), float(given.qmax - given.zero_point), given.zero_point
    if mode == "dynamic":
        low, high, zero = -127.0, 127.0, 0
    given_zero = float(zero - offset(given, x.dtype)) if mode in ("static", "dynamic") else 0.0
    bits, sign = (given.bits, given.binary) if mode == "packed" else (8, False)
    return [_launch(x, codes, row_scale, given.inv_scale, k, (low, high, given_zero), mode, bits, sign)]


def plan_split(x: Tensor, halves: Tensor, k: int) -> list[Launch]:
    """halves: bfloat16 [2, M, at least k] to be written, from float32 x [M, K] whose last dim is contiguous."""
    return [_launch(x, halves, None, None, k, (0.0, 0.0, 0.0), "split", 8, False)]


def _launch(
    x: Tensor,
    out: Tensor,
    row_scale: Tensor | None,
    inv_scale: Tensor | None,
    k: int,
    limits: tuple[float, float, float],
    mode: str,
    bits: int,
    sign: bool,
) -> Launch:
    width = out.shape[-1]
    block = min(triton.next_power_of_2(width), _CODES_HELD if mode == "dynamic" else 4096)
    args: dict[str, Any] = {
        "x": x,
        "out": out,
        "row_scale": row_scale,
        "inv_scale": inv_scale if mode == "static" else None,
        "k": k,
        "k_out": width,
        "x_stride": x.stride(0),
        **dict(zip(("low", "high", "zero"), limits, strict=True)),
    }
    constants = {
        "MODE": mode,
        "BITS": bits,
        "SIGN": sign,
        "ROUNDED": not interpreted(),
        "BLOCK": block,
        "LOOPS": triton.cdiv(width, block),
    }
    warps = max(1, min(16, block // 512))
    return Launch(quantize_rows_kernel, (x.shape[0],), args, constants, num_warps=warps, num_stages=1)


def cases() -> list[Case]:
    """Every mode at rows of 4096 and, where it loops, 32768."""
    found = []
    scale = torch.empty((), device="meta")
    for name, dtype, given in (
        ("static", torch.float16, Input(inv_scale=scale)),
        ("binary", torch.float16, Input(binary=True)),
        ("dynamic", torch.float16, Input(dynamic=True)),
        ("dynamic-fp32", torch.float32, Input(dynamic=True)),
        ("flip", torch.uint8, Input(zero_point=128)),
        ("copy", torch.int8, Input()),
        ("packed1", torch.uint8, Input(bits=1, binary=True)),
        ("packed4", torch.uint8, Input(bits=4)),
    ):
        for k in (4096, 32768):
            x = torch.empty(4096, k * given.bits // 8, dtype=dtype, device="meta")
            codes = torch.empty(4096, k, dtype=torch.int8, device="meta")
            row_scale = torch.empty(4096, device="meta") if given.dynamic else None
            found.append(Case(f"{name}-{k}", plan_rows(x, given, k, codes, row_scale), {}))
    x, halves = torch.empty(4096, 4096, device="meta"), torch.empty(2, 4096, 4096, dtype=torch.bfloat16, device="meta")
    return [*found, Case("split-4096", plan_split(x, halves, 4096), {})]
