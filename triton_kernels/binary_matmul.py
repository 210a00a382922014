"""Products of 1-bit weights with packed 1-bit or 2-bit inputs by exclusive or and population count.

With the input's code in bit planes u = u_0 + 2 u_1 (one bit: u = u_0), weights w = +-1 and their bits b = (w + 1) / 2:

    sum_k u_p[k] w[k] = popc(b) - popc(u_p ^ b)           so  sum_k u[k] w[k] = P * popc(b) - X,  P = 1 or 3,
    X = popc(u_0 ^ b) + 2 popc(u_1 ^ b)

and the centred codes u - zero_point (or 2 u - 1) only add a multiple of wsum[n] = sum_k w[n, k]; for +-1 times +-1 this
is the well-known K - 2 popc(x ^ w) (XNOR-Net, arXiv 1603.05279; DoReFa-Net, arXiv 1606.06160, eq. 4, for the planes).

Inputs come in the canonical layout. Its 2-bit rows interleave the planes, 16 codes a word: two words make two planes of
32 codes in four instructions, in the order 0, 16, 1, 17, ...; `prepare` gives the weights that order, so they stay at
one bit. (Spreading the weights' bits instead would double them and the population counts.) The filling bits of x are
not trusted; with theirs and the weights' cleared they count as equal. Words of weights lie as [K / 32, N], so that
neighbouring threads read neighbouring words in both kernels: `vector` (one row of x a program, K split over threads)
and `tile`. POPC needs inline assembly: LLVM knows the arithmetic way as a population count, but not when it is doubled.

Where can it win? A model; NOT MEASURED on a GPU yet, so it runs only where it is asked for by name. POPC does 16 lanes
a clock on an SM (CUDA programming guide, throughput of native arithmetic), and 32 MACs take one (1 x 1) or two (1 x 2):
512 or 256 MACs/clk/SM. The other 3 (`tile`) to 7 (`vector`) instructions for each POPC, at 128 lanes a clock, take no
longer. int8 tensor cores do 2048 (sm_80) and 4096 (sm_90): with many rows this loses 4 to 16 times. But they want each
weight as a byte, about 1 instruction of the 128 a clock, whatever M below their tile: 32 weights take 0.25 clk/SM,
against M / 16 (1 x 1) or M / 8 (1 x 2) here; equal at M = 4 or 2. Memory gives 32 of them in 0.28 clk (3.35 TB/s, 132
SMs, 1.75 GHz), so the gain can show only where the weights lie in the L2, or where the unpacking runs short of that
ideal, as all published kernels do. The binary tensor-core product (mma ... b1) is beyond Triton's `dot`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.epilogue import finish, tail_of
from triton_kernels.launch import Case, Launch, interpreted
from triton_kernels.layout import check_packed, pack, row_bytes, unpack
from triton_kernels.spec import NO_OUTPUT, Input, Output
from triton_kernels.tuning import Config, choose

# what `BinaryForm.words` is padded to, so that the kernel `tile` reads it without masks: BN divides _COLUMNS
_STEP, _COLUMNS = 4, 128


@dataclass(frozen=True)
class BinaryForm:
    """Weights [n, k] of one bit for inputs of x_bits.

    words: int32 [ceil(k / 32) up to a multiple of 4, n up to a multiple of 128]; word i of column n holds codes 32 i ..
    of row n, lowest bit first (x_bits 2: in the order 0, 16, 1, 17, ...); all else is zero. wsum: int32 [n].
    """

    words: Tensor
    wsum: Tensor
    n: int
    k: int
    x_bits: int


def prepare(packed: Tensor, shape: Sequence[int], x_bits: int) -> BinaryForm:
    """Reorder a canonical 1-bit weight, uint8 [N, ceil(K / 8)] of shape (N, K). Raises ValueError for another one."""
    if len(shape) != 2 or x_bits not in (1, 2):
        raise ValueError(
            f"expected a weight shape (N, K) and inputs of 1 or 2 bits, got {list(shape)} and {x_bits}: use the int8 "
            "kernels for other widths"
        )
    check_packed(packed, 1, shape)
    n, k = shape
    codes = unpack(packed, 1, k)
    wsum = codes.sum(1, dtype=torch.int32)
    words = triton.cdiv(k, 32 * _STEP) * _STEP
    codes = F.pad(codes, (0, words * 32 - k), value=-1)
    if x_bits == 2:
        codes = codes.view(n, words, 2, 16).transpose(2, 3).reshape(n, words * 32)
    columns = pack(codes, 1).view(n, words, 4).view(torch.int32).squeeze(2).t()
    return BinaryForm(F.pad(columns, (0, -n % _COLUMNS)).contiguous(), wsum, n, k, x_bits)


def binary_matmul(
    x_packed: Tensor,
    form: BinaryForm,
    scale: Tensor,
    bias: Tensor | None,
    given: Input,
    out: Output = NO_OUTPUT,
    *,
    config: Config | None = None,
) -> Tensor:
    """`reference.quant_matmul` for packed inputs: uint8 [..., row_bytes(K, bits)] -> [..., N].

    scale, bias: float32 [N]. given: bits as the form's x_bits. config: tiles BM and BN, or BW and BN for the kernel
    `vector`; by default the tuned or a sensible one.
    """
    _check(x_packed, form, scale, given)
    x = _as_words(x_packed)
    y = torch.empty((x.shape[0], form.n), dtype=out.out_dtype, device=x.device)
    if config is None:
        bucket, rows = triton.next_power_of_2(max(x.shape[0], 1)), form.words.shape[0]
        config = choose(
            "binary_matmul",
            (form.x_bits, form.n, form.k, bucket),
            candidates(bucket, rows),
            default_config(bucket, rows),
            lambda c: plan(x, form, scale, bias, given, out, y, c),
            device=x.device,
        )
    for launch in plan(x, form, scale, bias, given, out, y, config):
        launch.run()
    return y.view(*x_packed.shape[:-1], form.n)


def default_config(m: int, rows: int) -> Config:
    """For m rows of x, and weights of that many rows of words: up to 16 one by one, else tiles."""
    return candidates(m, rows)[0]


def candidates(m: int, rows: int) -> list[Config]:
    """What is worth timing, likeliest first."""
    # All words of K = 4096 at once, since a loop waits for the memory at every turn; with fewer threads than 2 BW
    # Triton would move the words of x through shared memory.
    whole = min(triton.next_power_of_2(max(rows, 1)), 128)
    sizes = dict.fromkeys([(32, whole), (16, whole), (32, min(whole, 32)), (64, min(whole, 32))])
    by_row = [Config((("BN", bn), ("BW", bw)), 8 if bw == 128 else 4) for bn, bw in sizes]
    # Triton spreads columns over lanes and rows over registers, so one warp does best; 16 rows of 2 bits would spill.
    by_tile = [Config((("BM", 8), ("BN", bn)), 1) for bn in (128, 64, 32)]
    return by_row if m <= 4 else by_row + by_tile if m <= 16 else by_tile


def plan(
    x: Tensor,
    form: BinaryForm,
    scale: Tensor,
    bias: Tensor | None,
    given: Input,
    out: Output,
    y: Tensor,
    config: Config,
) -> list[Launch]:
    """The launch for rows of words: x int32 [M, words of a row], y [M, N] contiguous."""
    tiles, m = config.constants, x.shape[0]
    if out.residual is not None:
        out = replace(out, residual=out.residual.reshape(m, form.n))
    strides = (0, 0) if out.residual is None else out.residual.stride()
    args: dict[str, Any] = {
        "tail": tail_of(out, y), "x": x, "words": form.words, "wsum": form.wsum, "scale": scale, "bias": bias,
        "m": m, "n": form.n, "k": form.k, "rows": form.words.shape[0], "x_stride": x.stride(0),
        "w_stride": form.words.stride(0), "residual_stride_m": strides[0], "residual_stride_n": strides[1],
        "zero": 0 if given.binary else given.zero_point,
    }  # fmt: skip
    constants = {
        "RELU": out.relu,
        "X_BITS": form.x_bits,
        "BINARY": given.binary,
        "ASM": not interpreted(),
        "STEP": _STEP,
        **tiles,
    }
    assert _COLUMNS % tiles["BN"] == 0
    columns = triton.cdiv(form.n, tiles["BN"])
    if "BW" in tiles:
        del constants["STEP"], args["m"]
        return [Launch(_vector, (m, columns), args, constants, config.num_warps)]
    return [Launch(_tile, (triton.cdiv(m, tiles["BM"]), columns), args, constants, config.num_warps)]


def _check(x: Tensor, form: BinaryForm, scale: Tensor, given: Input) -> None:
    wanted = row_bytes(form.k, form.x_bits)
    if given.bits != form.x_bits or x.dtype != torch.uint8 or x.dim() == 0 or x.shape[-1] != wanted:
        raise ValueError(
            f"expected packed {form.x_bits}-bit rows uint8 [..., {wanted}] for K = {form.k}, got {x.dtype} "
            f"{list(x.shape)} given as {given.bits} bits: pack the codes with layout.pack, or prepare for their width"
        )
    if tuple(scale.shape) != (form.n,):
        raise ValueError(f"expected one scale for each of {form.n} rows, got {list(scale.shape)}: groups need int8")


def _as_words(x: Tensor) -> Tensor:
    """uint8 [..., bytes] -> int32 [M, ceil(bytes / 4)], a view where the rows are whole aligned words."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty((x.shape[:-1].numel(), x.shape[-1]))
    rows = F.pad(rows, (0, 4 * triton.cdiv(max(rows.shape[1], 1), 4) - rows.shape[1])).contiguous()
    return (rows.clone() if rows.storage_offset() % 4 else rows).view(torch.int32)


@triton.jit
def _popcount(v, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Set bits of each int32 (without ASM as in Hacker's Delight, section 5-1)."""
    if ASM:
        return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [v], dtype=tl.int32, is_pure=True, pack=1)
    v = v.to(tl.uint32, bitcast=True)
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return ((v * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _word(row, index, k_bits):  # type: ignore[no-untyped-def]
    """Word `index` of each row of x, its bits from k_bits on cleared. Beyond the row its last word is read instead."""
    left = k_bits - index * 32
    some = tl.where(left > 0, (1 << (left & 31)) - 1, 0)
    return tl.load(row + tl.minimum(index, (k_bits - 1) // 32)) & tl.where(left < 32, some, -1)


@triton.jit
def _planes(row, index, k, X_BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bit planes 0 and 1 (one bit: 0 twice) of codes 32 * index and on, in the order of the weights."""
    if X_BITS == 1:
        low = _word(row, index, k)
        return low, low
    even = _word(row, 2 * index, 2 * k)
    odd = _word(row, 2 * index + 1, 2 * k)
    low = (even & 0x55555555) | ((odd << 1) & ~0x55555555)
    return low, ((even >> 1) & 0x55555555) | (odd & ~0x55555555)


@triton.jit
def _differences(low, high, w, X_BITS: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """X of the formula, a term for each pair of words."""
    if X_BITS == 1:
        return _popcount(low ^ w, ASM)
    return _popcount(low ^ w, ASM) + 2 * _popcount(high ^ w, ASM)


@triton.jit
def _scaled(differences, wsum, scale, bias, at, mask, k, zero, X_BITS: tl.constexpr, BINARY: tl.constexpr):  # type: ignore[no-untyped-def]
    """acc * scale + bias, float32; at, mask: the columns' indices, of a shape that broadcasts to the differences'."""
    sums = tl.load(wsum + at, mask=mask, other=0)
    acc = ((1 << X_BITS) - 1) * ((k + sums) >> 1) - differences
    acc = 2 * acc - sums if BINARY else acc - zero * sums
    y = acc.to(tl.float32) * tl.load(scale + at, mask=mask, other=0)
    if bias is not None:
        y += tl.load(bias + at, mask=mask, other=0)
    return y


@triton.jit
def _vector(  # type: ignore[no-untyped-def]
    x, words, wsum, scale, bias, tail, n, k, rows, x_stride, w_stride, residual_stride_m, residual_stride_n, zero,
    X_BITS: tl.constexpr, BINARY: tl.constexpr, RELU: tl.constexpr,
    ASM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """One row of x, BN columns; the words of K are spread over the threads and summed at the end."""
    m = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BN + tl.arange(0, BN)
    row = x + m * x_stride
    total = tl.zeros((BW, BN), tl.int32)
    for start in range(0, rows, BW):
        index = (start + tl.arange(0, BW))[:, None]
        w = tl.load(words + index * w_stride + at[None, :], mask=index < rows, other=0)
        low, high = _planes(row, index, k, X_BITS)
        total += _differences(low, high, w, X_BITS, ASM)
    inside = at < n
    y = _scaled(tl.sum(total, 0), wsum, scale, bias, at, inside, k, zero, X_BITS, BINARY)
    beside = m * residual_stride_m + at.to(tl.int64) * residual_stride_n
    finish(y, m * n + at, beside, inside, tail, RELU)


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    x, words, wsum, scale, bias, tail, m, n, k, rows, x_stride, w_stride, residual_stride_m, residual_stride_n, zero,
    X_BITS: tl.constexpr, BINARY: tl.constexpr, RELU: tl.constexpr,
    ASM: tl.constexpr, STEP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """BM rows of x by BN columns, word by word: POPC is so slow that the loads, served by the L1, hide behind it."""
    i = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)[:, None]
    at = (tl.program_id(1) * BN + tl.arange(0, BN))[None, :]
    row = x + tl.minimum(i, m - 1) * x_stride
    total = tl.zeros((BM, BN), tl.int32)
    for start in range(0, rows, STEP):
        for step in tl.static_range(STEP):
            index = start + step
            w = tl.load(words + index * w_stride + at)
            low, high = _planes(row, index, k, X_BITS)
            total += _differences(low, high, w, X_BITS, ASM)
    y = _scaled(total, wsum, scale, bias, at, at < n, k, zero, X_BITS, BINARY)
    beside = i * residual_stride_m + at.to(tl.int64) * residual_stride_n
    finish(y, i * n + at, beside, (i < m) & (at < n), tail, RELU)


def cases() -> list[Case]:
    """Both kernels at both widths, for the offline report."""
    made = []
    for x_bits, binary in ((1, True), (1, False), (2, False)):
        for m, n, k in ((1, 4096, 4096), (4096, 512, 4608)):
            words = triton.cdiv(k, 32 * _STEP) * _STEP
            form = BinaryForm(_meta(torch.int32, words, n), _meta(torch.int32, n), n, k, x_bits)
            inv_scale = _meta(torch.float32)
            out = NO_OUTPUT if binary else Output(inv_scale=inv_scale, relu=True)
            given = Input(bits=x_bits, binary=binary)
            x, y = _meta(torch.int32, m, k * x_bits // 32), _meta(out.out_dtype, m, n)
            scale = _meta(torch.float32, n)
            launches = plan(x, form, scale, scale, given, out, y, default_config(m, words))
            name = f"binary_matmul 1x{x_bits}{' binary' if binary else ''} M {m} N {n} K {k}"
            made.append(Case(name, launches, {80: ("POPC",), 90: ("POPC",)}, max_registers=128))
    return made


def _meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
