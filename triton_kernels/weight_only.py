"""x @ w.T for floating x and packed weights: unpacked to halves in registers, float32 accumulators, group scales.

As in `quant_matmul` the weights are the left operand, and K is split among programs where there are few tiles. Codes of
all widths, -128..127 too, are exact in bfloat16 (8 significant bits) and float16. The planar words hold 16 bits, so two
codes lie in a register as two halves do, and a shift, an and-or and a sum make halves of them:

    1 bit        sign bit | 1.0
    2, 4 bits    (2^m | stored) - (2^m + 2^(bits-1)); m = 7 or 10, the mantissa's bits, so that its last place is 1
    8 bits       (2^m | low 7 bits) - (2^m | sign bit as 128), for the mantissa of bfloat16 has no room for 8 bits

x of float32 is split by a kernel in front (`quantize_rows`) into two bfloat16 halves, with an error of 2^-16: weights
are exact in bfloat16, so two products are enough where tf32x3 has three, each at twice the rate, and the weights are
unpacked once for both. Split in the loop, x took 4 to 50 instructions a weight instead of 2 to 5.
"""

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.epilogue import channels, finish_rows, plan_sum, tail_of, tile
from triton_kernels.launch import Case, Launch, interpreted
from triton_kernels.layout import BITS
from triton_kernels.planar import MatmulForm, configs, prepare_matmul
from triton_kernels.quantize_rows import plan_split
from triton_kernels.spec import Output
from triton_kernels.tuning import Config, architecture


@triton.constexpr_function
def _assembly(bits, field, brain):  # type: ignore[no-untyped-def]
    """PTX that makes two halves (bfloat16 if brain, else float16) of a field of two words."""
    kind, mantissa, bias = ("bf16x2", 7, 127) if brain else ("f16x2", 10, 15)

    def power(exponent: int) -> int:
        return (exponent + bias) << mantissa

    def both(value: int) -> str:
        return hex(value << 16 | value)

    half = 1 << (bits - 1)
    if bits == 1:
        body = f"shl.b32 t, $1, {15 - field}; lop3.b32 $0, t, 0x80008000, {both(power(0))}, 0xEA;"
    elif bits > mantissa:
        body = (
            f"shr.b32 t, $1, {bits * field}; lop3.b32 u, t, {both(half - 1)}, {both(power(mantissa))}, 0xEA; "
            f"lop3.b32 t, t, {both(half)}, {both(0x8000 | power(mantissa))}, 0xEA; fma.rn.{kind} $0, u, one, t;"
        )
    else:
        # as many fields as the mantissa has room for are taken at one shift, the later ones 2^low times too large
        fit = mantissa // bits
        shift, low = field // fit * fit * bits, field % fit * bits
        # 2^(mantissa - low) + half, exact in a mantissa of `mantissa` bits
        exponent = mantissa - low
        minus = 0x8000 | power(exponent) | half << low
        body = (
            f"shr.b32 t, $1, {shift}; "
            f"lop3.b32 t, t, {both(((1 << bits) - 1) << low)}, {both(power(mantissa) | half << low)}, 0x6A; "
            f"mov.b32 one, {both(power(-low))}; mov.b32 u, {both(minus)}; fma.rn.{kind} $0, t, one, u;"
        )
    return "{ .reg .b32 t, u, one; mov.b32 one, " + both(power(0)) + "; " + body + " }"


@triton.jit
def _field(words, BITS: tl.constexpr, FIELD: tl.constexpr, HALF: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """int16 words -> the codes in field FIELD as HALF."""
    if ASM and tl.bfloat16 == HALF:
        codes = tl.inline_asm_elementwise(
            _assembly(BITS, FIELD, True), "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    elif ASM:
        codes = tl.inline_asm_elementwise(
            _assembly(BITS, FIELD, False), "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2
        )
    elif BITS == 1:
        codes = (1 - 2 * ((words >> FIELD) & 1)).to(HALF)
    else:
        codes = ((words << (16 - BITS - BITS * FIELD)) >> (16 - BITS)).to(HALF)
    return codes


@triton.jit
def _rows(x_tile, s_at, at, k, size, GROUP: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """x at the positions at + s_at of the planar row."""
    if EVEN:
        values = tl.load(x_tile + at)
    elif GROUP:
        within = at % GROUP
        column = at // GROUP * size + within
        inside = (within + s_at < size) & (column + s_at < k)
        values = tl.load(x_tile + column, mask=inside[:, None], other=0.0)
    else:
        values = tl.load(x_tile + at, mask=(at + s_at < k)[:, None], other=0.0)
    return values


@triton.jit
def weight_only_kernel(  # type: ignore[no-untyped-def]
    x,
    x_rest,
    words,
    scale,
    bias,
    partial,
    m,
    n,
    k,
    size,
    groups,
    blocks,
    x_stride,
    word_stride,
    out_stride,
    residual_stride,
    tail,
    RELU: tl.constexpr,
    BITS: tl.constexpr,
    S: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    HALF: tl.constexpr,
    ASM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One tile [BN, BM] of the transposed output, or of its part `program_id(1)` of SPLIT.

    x: HALF [m, k]; x_rest: the same, what x lacks of float32 activations, or None; words: int16 [n, blocks * S]; all
    others as in `quant_matmul.matmul_kernel`.
    """
    FIELDS: tl.constexpr = 16 // BITS
    STEPS: tl.constexpr = S // BK
    UNIT: tl.constexpr = STEPS * (GROUP // (S * FIELDS) if GROUP > S * FIELDS else 1)
    m_at, n_at = tile(m, n, BM, BN)
    s_at = tl.arange(0, BK)
    n_held = tl.minimum(n_at, n - 1)
    w_tile = words + n_held.to(tl.int64)[:, None] * word_stride + s_at[None, :]
    x_at = (tl.minimum(m_at, m - 1).to(tl.int64) * x_stride)[None, :] + s_at[:, None]
    x_tile = x + x_at
    if x_rest is not None:
        rest_tile = x_rest + x_at
    share = tl.cdiv(tl.cdiv(blocks * STEPS, UNIT), SPLIT) * UNIT
    first = tl.program_id(1) * share
    acc = tl.zeros([BN, BM], tl.float32)
    total = tl.zeros([BN, BM], tl.float32)
    for step in tl.range(first, tl.minimum(first + share, blocks * STEPS)):
        held = tl.load(w_tile + step * BK)
        base = step // STEPS * (S * FIELDS) + step % STEPS * BK
        for j in tl.static_range(FIELDS):
            at = base + j * S
            codes = _field(held, BITS, j, HALF, ASM)
            acc = tl.dot(codes, _rows(x_tile, s_at, at, k, size, GROUP, EVEN), acc)
            if x_rest is not None:
                acc = tl.dot(codes, _rows(rest_tile, s_at, at, k, size, GROUP, EVEN), acc)
            # The outer condition is decided by the compiler, the inner one at run time.
            if GROUP and (j + 1) * S % min(GROUP, S * FIELDS) == 0:  # noqa: SIM102
                if UNIT == 1 or (step + 1) % UNIT == 0:
                    g = at // GROUP
                    factor = tl.load(scale + n_held * groups + g, mask=g < groups, other=0.0)[:, None]
                    total = tl.fma(acc, tl.broadcast_to(factor, BN, BM), total)
                    acc = tl.zeros([BN, BM], tl.float32)
    mask = (m_at < m)[:, None] & (n_at < n)[None, :]
    result = tl.trans(total) if GROUP else tl.trans(acc)
    if SPLIT > 1:
        part_at = (tl.program_id(1).to(tl.int64) * m + m_at[:, None]) * n + n_at[None, :]
        tl.store(partial + part_at, result, mask=mask)
    else:
        if GROUP:
            y = channels(result, m_at, n_at, m, n, None, None, bias, None, 0, 0)
        else:
            y = channels(result, m_at, n_at, m, n, None, scale, bias, None, 0, 0)
        finish_rows(y, m_at, n_at, mask, out_stride, residual_stride, tail, RELU)


def plan(
    x: Tensor,
    y: Tensor,
    form: MatmulForm,
    scale: Tensor,
    bias: Tensor | None,
    out: Output,
    config: Config | None = None,
) -> list[Launch]:
    """The launches that compute y [M, N] from floating x [M, K]; out.residual is [M, N] too, with dense rows."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    m, planar, grouped = x.shape[0], form.halves, form.groups > 1
    config = config or configs(planar, m, x.element_size(), architecture(x.device), groups=form.groups)[0]
    split = config.constants["SPLIT"]
    partial = torch.empty(split, m, form.n, device=x.device) if split > 1 else None
    width, real, rest = planar.blocks * planar.span, form.k, None
    launches = []
    if x.dtype == torch.float32:
        # bfloat16 has float32's range; the interpreter cannot compute with it
        dtype = torch.float16 if interpreted() else torch.bfloat16
        halves = torch.empty(2, m, width, dtype=dtype, device=x.device)
        launches += plan_split(x, halves, form.k)
        x, rest = halves.unbind()
        real = width if planar.padded == form.group or not grouped else real
    args: dict[str, Any] = {
        "x": x,
        "x_rest": rest,
        "words": planar.words,
        "scale": scale,
        "bias": bias,
        "partial": partial,
        "m": m,
        "n": form.n,
        "k": real,
        "size": form.group or form.k,
        "groups": form.groups,
        "blocks": planar.blocks,
        "x_stride": x.stride(0),
        "word_stride": planar.words.stride(0),
        "out_stride": y.stride(0),
        "residual_stride": out.residual.stride(0) if out.residual is not None else 0,
        "tail": tail_of(out, y),
    }
    constants = {
        "RELU": out.relu,
        "BITS": form.bits,
        "S": planar.block,
        "GROUP": planar.padded if grouped else 0,
        "EVEN": real == width and (not grouped or planar.padded == form.group),
        "HALF": tl.float16 if x.dtype == torch.float16 else tl.bfloat16,
        "ASM": not interpreted(),
        **config.constants,
    }
    grid = (triton.cdiv(m, config.constants["BM"]) * triton.cdiv(form.n, config.constants["BN"]), split)
    launches.append(Launch(weight_only_kernel, grid, args, constants, config.num_warps, config.num_stages))
    if partial is not None:
        ends = {**args, "wsum": None, "row_scale": None, "zero": 0, "scale": None if grouped else scale}
        launches.append(plan_sum(partial, ends, constants, 0))
    return launches


def cases() -> list[Case]:
    """Every width and floating type at few and many rows; groups and rows of an odd length."""

    def case(
        arch: int, name: str, m: int, bits: int, dtype: torch.dtype, *, k: int = 8192, group: int | None = None
    ) -> Case:
        n = 8192
        packed = torch.empty(n, k * bits // 8, dtype=torch.uint8, device="meta")
        form = prepare_matmul(packed, bits, (n, k), group)
        scale, bias = torch.empty(n, form.groups, device="meta"), torch.empty(n, device="meta")
        x = torch.empty(m, k, dtype=dtype, device="meta")
        y = torch.empty(m, n, dtype=dtype, device="meta")
        config = configs(form.halves, m, x.element_size(), ("cuda", arch), groups=form.groups)[0]
        launches = plan(x, y, form, scale, bias, Output(dtype=dtype), config)
        # Eight columns are too few for HGMMA.
        return Case(f"w{bits} {name} m{m}", launches, {arch: ("HGMMA" if arch == 90 and m > 8 else "HMMA",)})

    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    found = []
    for arch, bits, m in product((80, 90), BITS, (1, 16, 4096)):
        found += [case(arch, name, m, bits, dtype) for name, dtype in names.items()]
        found += [case(arch, "bf16-g128", m, bits, torch.bfloat16, group=128)]
    return [*found, *(case(arch, "fp16-odd", 16, 4, torch.float16, k=4104) for arch in (80, 90))]
