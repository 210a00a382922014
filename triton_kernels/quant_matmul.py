"""x @ w.T for packed weights of 1, 2, 4 and 8 bits on int8 tensor cores, with the whole epilogue of a layer.

    acc[m, n] = sum_k s8[m, k] * w[n, k]                     int32, exact (`quantize_rows` makes s8 from floats)
    y[m, n]   = (acc - zero * wsum[n]) * row_scale[m] * scale[n] + bias[n], then `epilogue.finish`

The product is taken the other way round, w (a tile [BN, S] of words) times x transposed ([S, BM]): on sm_90 only the
left operand of a matrix instruction can come from registers, and the weights have to pass through them to be unpacked,
while x goes from global to shared memory and on to the tensor cores untouched. It is also what makes few rows cheap: an
instruction has at least 64 rows on its left but only 8 columns on its right. Unpacking field j of four words is a shift
and an and (see `planar`); the factor 2^(8-bits) that the codes then carry is shifted out of acc.

With few tiles K is split among programs, whose sums a second kernel adds up in a fixed order, so results do not vary
from run to run. Group scales: y is the float32 sum over the groups of acc_g * row_scale * scale_g, in their order.
"""

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels import weight_only
from triton_kernels.epilogue import channels, finish_rows, plan_sum, tail_of, tile
from triton_kernels.launch import Case, Launch, interpreted
from triton_kernels.layout import BITS
from triton_kernels.planar import MatmulForm, configs, prepare_matmul
from triton_kernels.quantize_rows import offset, plan_rows
from triton_kernels.spec import NO_INPUT, NO_OUTPUT, Input, Output
from triton_kernels.tuning import Config, architecture, choose

# Rows up to which it is cheaper than a launch in front to take codes as they are: uint8, whose highest bit is flipped
# in the loop, or rows of an odd length, which are read byte by byte.
_FEW_ROWS = 64


@triton.constexpr_function
def _assembly(bits, field):  # type: ignore[no-untyped-def]
    """PTX that unpacks a field of four words at once; on single bytes the compiler would go one by one."""
    if bits == 1:
        return f"{{ .reg .b32 t; shl.b32 t, $1, {field}; lop3.b32 $0, t, 0x80808080, 0x40404040, 0xEA; }}"
    mask = {2: "0xC0C0C0C0", 4: "0xF0F0F0F0"}[bits]
    return f"{{ .reg .b32 t; shl.b32 t, $1, {field * bits}; and.b32 $0, t, {mask}; }}"


@triton.jit
def _field(words, BITS: tl.constexpr, FIELD: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """int8 words -> the codes in field FIELD times 2^(8-BITS), times 64 for one bit."""
    if BITS == 8:
        codes = words
    elif ASM:
        codes = tl.inline_asm_elementwise(_assembly(BITS, FIELD), "=r,r", [words], dtype=tl.int8, is_pure=True, pack=4)
    elif BITS == 1:
        codes = ((words << FIELD) & -128) | 64
    else:
        codes = (words << (FIELD * BITS)) & -(1 << (8 - BITS))
    return codes


@triton.jit
def matmul_kernel(  # type: ignore[no-untyped-def]
    x,
    words,
    wsum,
    scale,
    bias,
    row_scale,
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
    zero,
    tail,
    RELU: tl.constexpr,
    BITS: tl.constexpr,
    S: tl.constexpr,
    GROUP: tl.constexpr,
    FLIP: tl.constexpr,
    EVEN: tl.constexpr,
    ASM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One tile [BN, BM] of the transposed output, or of its part `program_id(1)` of SPLIT.

    x: int8 or (FLIP) uint8 [m, k]; words [n, blocks * S]; wsum, scale: [n, groups]; partial: [SPLIT, m, n] or None.
    GROUP: padded positions of a group, 0 with one scale a channel; size: the group's real ones. EVEN: x can be read at
    every position, and is 0 where there is no k.
    """
    FIELDS: tl.constexpr = 8 // BITS
    SHIFT: tl.constexpr = 6 if BITS == 1 else 8 - BITS
    STEPS: tl.constexpr = S // BK
    UNIT: tl.constexpr = STEPS * (GROUP // (S * FIELDS) if GROUP > S * FIELDS else 1)
    m_at, n_at = tile(m, n, BM, BN)
    s_at = tl.arange(0, BK)
    x_rows = x + tl.minimum(m_at, m - 1).to(tl.int64) * x_stride
    n_held = tl.minimum(n_at, n - 1)
    w_tile = words + n_held.to(tl.int64)[:, None] * word_stride + s_at[None, :]
    x_tile = x_rows[None, :] + s_at[:, None]
    share = tl.cdiv(tl.cdiv(blocks * STEPS, UNIT), SPLIT) * UNIT
    first = tl.program_id(1) * share
    acc = tl.zeros([BN, BM], tl.int32)
    if GROUP:
        total = tl.zeros([BN, BM], tl.float32)
        n_scale = scale + n_held * groups
        n_wsum = wsum + n_held * groups
        rows = 1.0
        if row_scale is not None:
            rows = tl.load(row_scale + m_at, mask=m_at < m, other=0.0)[None, :]
    for step in tl.range(first, tl.minimum(first + share, blocks * STEPS)):
        held = tl.load(w_tile + step * BK)
        base = step // STEPS * (S * FIELDS) + step % STEPS * BK
        for j in tl.static_range(FIELDS):
            at = base + j * S
            if EVEN:
                values = tl.load(x_tile + at)
            elif GROUP:
                within = at % GROUP
                column = at // GROUP * size + within
                inside = (within + s_at < size) & (column + s_at < k)
                values = tl.load(x_tile + column, mask=inside[:, None], other=128 if FLIP else 0)
            else:
                values = tl.load(x_tile + at, mask=(at + s_at < k)[:, None], other=128 if FLIP else 0)
            if FLIP:
                values = (values ^ 0x80).to(tl.int8, bitcast=True)
            acc = tl.dot(_field(held, BITS, j, ASM), values, acc, out_dtype=tl.int32)
            # The outer condition is decided by the compiler, the inner one at run time.
            if GROUP and (j + 1) * S % min(GROUP, S * FIELDS) == 0:  # noqa: SIM102
                if UNIT == 1 or (step + 1) % UNIT == 0:
                    g = at // GROUP
                    there = g < groups
                    part = (acc >> SHIFT) - zero * tl.load(n_wsum + g, mask=there, other=0)[:, None]
                    term = part.to(tl.float32)
                    if row_scale is not None:
                        term = term * rows
                    total += term * tl.load(n_scale + g, mask=there, other=0.0)[:, None]
                    acc = tl.zeros([BN, BM], tl.int32)
    mask = (m_at < m)[:, None] & (n_at < n)[None, :]
    result = tl.trans(total) if GROUP else tl.trans(acc)
    if SPLIT > 1:
        part_at = (tl.program_id(1).to(tl.int64) * m + m_at[:, None]) * n + n_at[None, :]
        tl.store(partial + part_at, result, mask=mask)
    else:
        if GROUP:
            y = channels(result, m_at, n_at, m, n, None, None, bias, None, zero, SHIFT)
        else:
            y = channels(result, m_at, n_at, m, n, wsum, scale, bias, row_scale, zero, SHIFT)
        finish_rows(y, m_at, n_at, mask, out_stride, residual_stride, tail, RELU)


def quant_matmul(
    x: Tensor,
    form: MatmulForm,
    scale: Tensor,
    bias: Tensor | None = None,
    given: Input = NO_INPUT,
    out: Output = NO_OUTPUT,
    *,
    config: Config | None = None,
) -> Tensor:
    """`reference.quant_matmul` on the device of the tensors: x [..., K] (packed: [..., row_bytes]) -> [..., N].

    scale: float32 [N], or [N, G] where the form has groups. Any strides. Raises ValueError for a scale of another
    shape and for activations of more than 256 codes.
    """
    want = (form.n, form.groups)
    if tuple(scale.shape) != (want if scale.dim() == 2 else want[:1]) or (scale.dim() == 1 and form.groups > 1):
        raise ValueError(
            f"expected a scale {list(want)} for this weight, got {list(scale.shape)}: prepare the weight with its group"
        )
    rows, scale = x.reshape(-1, x.shape[-1]), scale.contiguous()
    y = torch.empty(*x.shape[:-1], form.n, dtype=out.out_dtype, device=x.device)
    flat, out = y.view(-1, form.n), _flat(out)

    def launches(config: Config) -> list[Launch]:
        return plan(rows, flat, form, scale, bias, given, out, config)

    if config is None:
        kind = given.kind(x.dtype)
        float_x = kind == "float"
        found = configs(
            form.halves if float_x else form.planar,
            len(rows),
            x.element_size() if float_x else 1,
            architecture(x.device),
            groups=form.groups,
        )
        bucket = triton.next_power_of_2(len(rows))
        key = (kind, str(x.dtype), form.bits, form.group or 0, bucket, form.n, form.k)
        config = choose("quant_matmul", key, found, found[0], launches, device=x.device)
    for launch in launches(config):
        launch.run()
    return y


def plan(
    x: Tensor,
    y: Tensor,
    form: MatmulForm,
    scale: Tensor,
    bias: Tensor | None,
    given: Input,
    out: Output,
    config: Config | None = None,
) -> list[Launch]:
    """The launches that compute y [M, N] from x [M, K]; out.residual is [M, N] too, with dense rows."""
    if given.kind(x.dtype) == "float":
        return weight_only.plan(x, y, form, scale, bias, out, config)
    x = x if x.stride(-1) == 1 else x.contiguous()
    m, planar = x.shape[0], form.planar
    grouped = form.groups > 1
    launches, codes, row_scale, real = [], x, None, form.k
    ready = x.dtype == torch.int8 and x.stride(0) % 16 == 0 and form.k % 16 == 0
    direct = given.kind(x.dtype) == "codes" and (ready or m <= _FEW_ROWS)
    size = form.group or form.k
    if not direct:
        # rows that can be read without masks, unless groups are padded
        width = planar.blocks * planar.block * planar.fields
        codes = torch.empty(m, width, dtype=torch.int8, device=x.device)
        row_scale = torch.empty(m, device=x.device) if given.dynamic else None
        launches += plan_rows(x, given, form.k, codes, row_scale)
        if planar.padded == form.group or not grouped:
            real = width
    binary = given.binary and given.kind(x.dtype) in ("static", "packed")
    config = config or configs(planar, m, 1, architecture(x.device), groups=form.groups)[0]
    tiles = config.constants
    bm, bn, split = tiles["BM"], tiles["BN"], tiles["SPLIT"]
    even = real == planar.blocks * planar.block * planar.fields and (not grouped or planar.padded == size)
    sums = torch.float32 if grouped else torch.int32
    partial = torch.empty(split, m, form.n, dtype=sums, device=x.device) if split > 1 else None
    args: dict[str, Any] = {
        "x": codes,
        "words": planar.words,
        "wsum": form.wsum,
        "scale": scale,
        "bias": bias,
        "row_scale": row_scale,
        "partial": partial,
        "m": m,
        "n": form.n,
        "k": real,
        "size": size,
        "groups": form.groups,
        "blocks": planar.blocks,
        "x_stride": codes.stride(0),
        "word_stride": planar.words.stride(0),
        "out_stride": y.stride(0),
        "residual_stride": out.residual.stride(0) if out.residual is not None else 0,
        "zero": 0 if binary or given.dynamic else given.zero_point - offset(given, x.dtype),
        "tail": tail_of(out, y),
    }
    constants = {
        "RELU": out.relu,
        "BITS": form.bits,
        "S": planar.block,
        "GROUP": planar.padded if grouped else 0,
        "FLIP": codes.dtype == torch.uint8,
        "EVEN": even,
        "ASM": not interpreted(),
        **tiles,
    }
    grid = (triton.cdiv(m, bm) * triton.cdiv(form.n, bn), split)
    launches.append(Launch(matmul_kernel, grid, args, constants, config.num_warps, config.num_stages))
    if partial is not None:
        there = {"wsum": None, "scale": None, "row_scale": None} if grouped else {}
        launches.append(plan_sum(partial, {**args, **there}, constants, 6 if form.bits == 1 else 8 - form.bits))
    return launches


def _flat(out: Output) -> Output:
    """The same with a residual [M, N] of dense rows."""
    if out.residual is None:
        return out
    rows = out.residual.reshape(-1, out.residual.shape[-1])
    return replace(out, residual=rows if rows.stride(-1) == 1 else rows.contiguous())


def cases() -> list[Case]:
    """Every width at few, some and many rows; groups, uint8 codes and rows of an odd length at one width or more."""

    def case(
        arch: int, name: str, m: int, bits: int, *, k: int = 8192, group: int | None = None, dtype: Any = torch.int8
    ) -> Case:
        n = 8192
        packed = torch.empty(n, k * bits // 8, dtype=torch.uint8, device="meta")
        form = prepare_matmul(packed, bits, (n, k), group)
        scale, bias = torch.empty(n, form.groups, device="meta"), torch.empty(n, device="meta")
        x = torch.empty(m, k, dtype=dtype, device="meta")
        inv = torch.empty((), device="meta")
        residual = torch.empty(m, n, dtype=torch.uint8, device="meta")
        out = Output(relu=True, inv_scale=inv, residual=residual, residual_scale=inv)
        y = torch.empty(m, n, dtype=out.out_dtype, device="meta")
        config = configs(form.planar, m, 1, ("cuda", arch), groups=form.groups)[0]
        launches = plan(x, y, form, scale, bias, NO_INPUT, out, config)
        # Eight columns are too few for IGMMA.
        needs = r"IGMMA\S*\.S8\.S8" if arch == 90 and m > 8 else r"IMMA\S*\.S8\.S8"
        return Case(f"w{bits} {name} m{m}", launches, {arch: (needs,)})

    found = []
    for arch in (80, 90):
        found += [case(arch, "int8", m, bits) for bits in BITS for m in (1, 16, 64, 4096)]
        found += [case(arch, "group128", m, bits, group=128) for bits in BITS for m in (1, 16, 4096)]
        found += [case(arch, "uint8", 16, 4, dtype=torch.uint8)]
        found += [case(arch, "odd", m, 4, k=4104) for m in (16, 4096)]
    return found
