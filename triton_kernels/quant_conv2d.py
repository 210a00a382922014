"""A whole quantized convolution in one Triton kernel: `reference.quant_conv2d` for CUDA tensors.

An implicit matrix product over NHWC codes: a program makes BM pixels x BN output channels of

    acc[m, n] = sum_k x[m, k] w[n, k]          k runs over (r, s, c), channels fastest; x gathered, never copied
    y = acc * scale[n] + bias[n], residual, ReLU, codes       `epilogue.finish`

Bytes are multiplied as s8: uint8 codes become `stored - 128` by flipping their top bit, and with the stored zero z8

    sum (x - z) w = sum x8 w - z8 * wsum[n]

Pixels are the left operand (`quant_matmul` has the weights there): a matrix instruction of sm_90 has 64 rows at least,
and a layer may have only 16 channels; and only the left operand may come from registers, where the flip costs least.

Padding loads the code of the real zero: by a masked load if that byte is 0, otherwise from a row of such bytes, chosen
by pointer, because a masked load with another value would not be an asynchronous copy.

Kernel layout of the weights (`prepare`), with P = 8/bits fields in a byte and blocks of S*P values of k:

    byte s of a block, field j (the j-th `bits` from the top) = w[n, k],  k = block * S*P + j*S + s

in two's complement, for one bit the sign (0 is +1). So a field is masked in the top bits of its byte and is 2^(8-bits)
times the code (+-64 for one bit) with no further work; the sum is shifted back at the end. A block lies inside one tap
(r, s) where the channels fill it; otherwise ("flat") the blocks run over k as a whole.

Few channels (2 to 15, one group) would be gathered byte by byte. Such an image is first copied ("staged") with its
padding and 4, 8 or 16 channels a pixel; then the taps of a row lie together in memory, and the kernel sees a kh x 1
convolution of `kw * pitch` channels. The filling weights are 0, so these are kept in 8 bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels import depthwise_conv2d, reference
from triton_kernels.epilogue import finish, plan_sum, tail
from triton_kernels.launch import Case, Launch, interpreted
from triton_kernels.layout import check_packed, row_bytes, unpack
from triton_kernels.spec import NO_INPUT, NO_OUTPUT, Input, Output
from triton_kernels.tuning import Config, architecture, choose, fits


@dataclass(frozen=True, slots=True)
class ConvForm:
    """A weight in the kernel's layout."""

    weight: Tensor  # int8 [O, bytes]; depthwise: int32 codes [kh * kw, O]
    wsum: Tensor  # int32 [O], the sum of each output's codes
    blanks: Tensor  # uint8 [256, 128], row z full of byte z
    shape: tuple[int, int, int, int]  # OIHW, I per group
    groups: int
    view: tuple[int, int, int, int]  # OIHW as the kernel sees it
    bits: int  # of the kernel's layout
    block: int = 0  # S; 0 for depthwise
    flat: bool = False
    pitch: int = 0  # channels of a staged pixel, or 0

    @property
    def shift(self) -> int:
        """The kernel's products are 2^shift times too large."""
        return 6 if self.bits == 1 else 8 - self.bits

    @property
    def spare(self) -> int:
        """Weights of a row that only fill it."""
        _, i, kh, kw = self.view
        return self.weight.shape[1] * 8 // self.bits - i * kh * kw


def prepare(
    packed: Tensor, bits: int, weight_shape: Sequence[int], groups: int = 1, *, expand: bool = False
) -> ConvForm:
    """The kernel's layout of a canonical weight uint8 [O, row_bytes] of `weight_shape` OIHW, on its device.

    expand: keep a byte a code, 8/bits times the memory, so that the loop has nothing to unpack.
    """
    check_packed(packed, bits, weight_shape)
    o, i, kh, kw = weight_shape
    shape = view = (o, i, kh, kw)
    codes = unpack(packed, bits, i * kh * kw)  # int8 [O, K]
    wsum, blanks = codes.sum(1, dtype=torch.int32), _blanks(packed.device)
    if i == 1:
        return ConvForm(codes.t().to(torch.int32).contiguous(), wsum, blanks, shape, groups, view, 8)
    pitch, bits = 0, 8 if expand else bits
    if groups == 1 and i < 16:
        pitch, bits = max(4, triton.next_power_of_2(i)), 8
        rows = F.pad(codes.view(o, kh, kw, i), (0, pitch - i)).flatten(2)
        codes = F.pad(rows, (0, -rows.shape[2] % 32))
        view = (o, codes.shape[2], kh, 1)
    block, flat = _blocking(view, bits)
    values = block * 8 // bits
    rows = codes.reshape(o, -1) if flat else codes.reshape(o, view[2] * view[3], view[1])
    fields = F.pad(rows, (0, -rows.shape[-1] % values)).reshape(o, -1, 8 // bits, block)
    if bits < 8:
        stored = (fields < 0).to(torch.uint8) if bits == 1 else fields.view(torch.uint8) & ((1 << bits) - 1)
        shifts = torch.arange(8 - bits, -1, -bits, dtype=torch.uint8, device=packed.device)
        fields = (stored << shifts.view(-1, 1)).sum(2, dtype=torch.uint8).view(torch.int8)
    return ConvForm(fields.reshape(o, -1), wsum, blanks, shape, groups, view, bits, block, flat, pitch)


@cache
def _blanks(device: torch.device) -> Tensor:
    # made here and not at the first call, which may be recorded into a CUDA graph
    return torch.arange(256, dtype=torch.uint8, device=device).unsqueeze(1).repeat(1, 128)


def _steps(shape: tuple[int, int, int, int], values: int, flat: bool) -> int:
    _, i, kh, kw = shape
    return triton.cdiv(i * kh * kw, values) if flat else kh * kw * triton.cdiv(i, values)


def _blocking(shape: tuple[int, int, int, int], bits: int) -> tuple[int, bool]:
    """(S, flat) with the least work: padded values of k, and a third more for the index arithmetic of flat blocks."""
    # the pixels of a block, 8 fields of them in one bit, share the shared memory with those of other programs
    blocks = (32,) if bits == 1 else (64, 32)
    options = [(block, flat) for block in blocks for flat in (False, True)]

    def work(option: tuple[int, bool]) -> float:
        block, flat = option
        values = block * 8 // bits
        return _steps(shape, values, flat) * values * (4 if flat else 3)

    return min(options, key=work)


@triton.constexpr_function
def _unpack(j: int, bits: int) -> str:
    mask, half = {4: (0xF0F0F0F0, 0), 2: (0xC0C0C0C0, 0), 1: (0x80808080, 0x40404040)}[bits]
    # (t & mask) | half is one instruction
    return f"{{ .reg .b32 t; shl.b32 t, $1, {j * bits}; lop3.b32 $0, t, {mask:#x}, {half:#x}, 0xEA; }}"


@triton.jit
def _signed(codes, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """uint8 codes as int8 code - 128."""
    if ASM:
        return tl.inline_asm_elementwise("xor.b32 $0, $1, 0x80808080;", "=r,r", [codes], tl.int8, is_pure=True, pack=4)
    else:
        return (codes ^ 0x80).to(tl.int8, bitcast=True)


@triton.jit
def _field(packed, j: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Field j of planar bytes, as int8 in the top bits. With ASM four bytes at a time; Triton takes them apart."""
    if BITS == 8:
        return packed
    elif ASM:
        return tl.inline_asm_elementwise(_unpack(j, BITS), "=r,r", [packed], tl.int8, is_pure=True, pack=4)
    elif BITS == 4:
        return (packed << (4 * j)) & -16
    elif BITS == 2:
        return (packed << (2 * j)) & -64
    else:
        return ((packed << j) & -128) | 64


@triton.jit
def _number(field, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """int8 as a float: its bits in a mantissa, since a conversion instruction takes several times as long."""
    byte = (field ^ -128).to(tl.uint8, bitcast=True)
    if KIND.is_fp16():
        return (byte.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - 1152.0
    else:
        return ((byte.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0).to(KIND)


@triton.jit
def _conv(  # type: ignore[no-untyped-def]
    x,
    weight,
    wsum,
    scale,
    bias,
    blank,
    out,
    residual,
    residual_scale,
    residual_zero,
    out_inv_scale,
    out_zero,
    out_low,
    out_high,
    pixels,
    height,
    width,
    out_height,
    out_width,
    zero,
    start,
    partial,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    OUT: tl.constexpr,
    C: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUPS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BITS: tl.constexpr,
    S: tl.constexpr,
    FLAT: tl.constexpr,
    SHIFT: tl.constexpr,
    STEPS: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
    ASM: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPLIT: tl.constexpr,
):
    P: tl.constexpr = 8 // BITS
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    EXACT: tl.constexpr = x.dtype.element_ty.is_int()
    PER_GROUP: tl.constexpr = OUTPUTS // GROUPS
    COLUMNS: tl.constexpr = (PER_GROUP + BN - 1) // BN
    BLOCKS: tl.constexpr = (INPUTS + S * P - 1) // (S * P)
    SHARE: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
    TAIL: tl.constexpr = (KH * KW * INPUTS if FLAT else INPUTS) % (S * P) != 0
    pid = tl.program_id(0)
    group = pid // COLUMNS % GROUPS
    m = pid // (COLUMNS * GROUPS) * BM + tl.arange(0, BM)
    n = pid % COLUMNS * BN + tl.arange(0, BN)
    s = tl.arange(0, S)
    # the rows and columns beyond the end repeat the last one, so that loads need no mask for them
    row = tl.minimum(m, pixels - 1)
    image = row // (out_height * out_width)
    rest = row % (out_height * out_width)
    y0 = (rest // out_width * STRIDE_H - PAD_H)[:, None]
    x0 = (rest % out_width * STRIDE_W - PAD_W)[:, None]
    base = x + image.to(INDEX)[:, None] * height * width * C + group * INPUTS
    channel = group * PER_GROUP + tl.minimum(n, PER_GROUP - 1)
    rows = weight + channel[None, :].to(INDEX) * (STEPS * S) + s[:, None]
    first, last = 0, STEPS
    if SPLIT > 1:
        first = tl.program_id(1) * SHARE
        last = tl.minimum(first + SHARE, STEPS)
    if EXACT:
        acc = tl.full((BM, BN), tl.where(tl.program_id(1) == 0, start, 0), tl.int32)
    else:
        acc = tl.zeros((BM, BN), tl.float32)
    for step in range(first, last):
        packed = tl.load(rows + step * S)
        for j in tl.static_range(P):
            if FLAT:
                k = ((step * P + j) * S + s)[None, :]
                tap, c, inside = k // INPUTS, k % INPUTS, k < KH * KW * INPUTS
            else:
                tap, c = step // BLOCKS, (step % BLOCKS * (S * P) + j * S + s)[None, :]
                inside = c < INPUTS
            y, x_ = y0 + tap // KW * DILATION_H, x0 + tap % KW * DILATION_W
            at = base + ((y.to(INDEX) * width + x_) * C + c)
            # unsigned comparisons hold for 0 <= y < height only
            real = (y.to(tl.uint32) < height) & (x_.to(tl.uint32) < width)
            if PADDED == "blank":
                at = tl.where(real, at, blank + s[None, :])
            if PADDED == "mask":
                codes = tl.load(at, mask=inside & real if TAIL else real, other=0)
            elif TAIL:
                codes = tl.load(at, mask=inside, other=0)
            else:
                codes = tl.load(at)
            field = _field(packed, j, BITS, ASM)
            if EXACT:
                if x.dtype.element_ty == tl.uint8:
                    codes = _signed(codes, ASM)
                acc = tl.dot(codes, field, acc, out_dtype=tl.int32)
            elif x.dtype.element_ty == tl.float32:
                # codes are exact in TF32, so x in two parts is enough
                number = _number(field, tl.float32)
                high = (codes.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
                acc = tl.dot(codes - high, number, acc, input_precision="tf32")
                acc = tl.dot(high, number, acc, input_precision="tf32")
            else:
                acc = tl.dot(codes, _number(field, codes.dtype), acc)
    to = m[:, None].to(INDEX) * OUTPUTS + (group * PER_GROUP + n)[None, :]
    mask = (m < pixels)[:, None] & (n < PER_GROUP)[None, :]
    if SPLIT > 1:
        tl.store(partial + tl.program_id(1).to(tl.int64) * pixels * OUTPUTS + to, acc, mask=mask)
    else:
        if EXACT:
            result = ((acc >> SHIFT) - (zero * tl.load(wsum + channel))[None, :]).to(tl.float32)
        else:
            result = acc * (1.0 / (1 << SHIFT))
        result = result * tl.load(scale + channel)[None, :]
        if bias is not None:
            result = result + tl.load(bias + channel)[None, :]
        finish(
            result,
            to,
            to,
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


@triton.jit
def _quantize(  # type: ignore[no-untyped-def]
    x,
    out,
    residual,
    residual_scale,
    residual_zero,
    out_inv_scale,
    out_zero,
    out_low,
    out_high,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    out_n,
    out_h,
    out_w,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    OUT: tl.constexpr,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Floats [N, C, H, W] of any strides to codes whose channels lie together; a program makes a part of a row."""
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column, c = i // C, i % C
    row, image = tl.program_id(0) % height, (tl.program_id(0) // height).to(INDEX)
    at = image * stride_n + row.to(INDEX) * stride_h + column.to(INDEX) * stride_w + c.to(INDEX) * stride_c
    to = image * out_n + row.to(INDEX) * out_h + column * out_w + c
    known = i < width * C
    value = tl.load(x + at, mask=known, other=0).to(tl.float32)
    finish(
        value,
        to,
        to,
        known,
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


def _stored(given: Input) -> Output:
    """How a "static" input is kept as int8: codes that int8 does not hold are all shifted, the lowest to -128."""
    if given.binary:
        return Output(binary=True, dtype=torch.int8)
    reference.u8_zero_point(given.zero_point, given.qmin, given.qmax)
    shift = 0 if given.qmin >= -128 and given.qmax <= 127 else given.qmin + 128
    return Output(
        inv_scale=given.inv_scale,
        zero_point=given.zero_point - shift,
        qmin=given.qmin - shift,
        qmax=given.qmax - shift,
        dtype=torch.int8,
    )


def _plan_quantize(x: Tensor, stored: Output, y: Tensor) -> Launch:
    """x [N, C, H, W] floating -> y [N, H, W, C] codes."""
    args, constants = tail(stored, y)
    n, c, h, w = x.shape
    block = min(1024, triton.next_power_of_2(w * c))
    args |= {"x": x, "height": h, "width": w}
    args |= dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), x.stride(), strict=True))
    args |= dict(zip(("out_n", "out_h", "out_w"), y.stride()[:3], strict=True))
    constants |= {"C": c, "WIDE": _wide(x, y), "BLOCK": block}
    return Launch(_quantize, (n * h, triton.cdiv(w * c, block)), args, constants, num_warps=max(1, block // 256))


def _enter(
    x: Tensor, form: ConvForm, given: Input, padding: Sequence[int], dilation: Sequence[int]
) -> tuple[list[Launch], Tensor, int, Sequence[int]]:
    """(what must run first, x as the kernel takes it, the stored value of its real zero, the padding left to do)."""
    static = given.kind(x.dtype) == "static"
    stored = _stored(given) if static else Output(dtype=x.dtype)
    zero = stored.zero_point if static else 0 if x.dtype.is_floating_point else given.zero_point
    if not static and not form.pitch:
        return [], x.contiguous(memory_format=torch.channels_last), zero, padding
    n, c, h, w = x.shape
    if form.pitch:
        (top, left), taps = padding, form.view[1] // form.pitch
        columns = w + 2 * left + (taps - form.shape[3]) * dilation[1]
        # whole rows of 16 pixels keep every row aligned
        size = (n, h + 2 * top, columns + -columns % 16, form.pitch)
        y = torch.full(size, zero, dtype=stored.out_dtype, device=x.device)
        inner, padding = y[:, top : top + h, left : left + w, :c], (0, 0)
    else:
        inner = y = torch.empty((n, h, w, c), dtype=stored.out_dtype, device=x.device)
    launches = [_plan_quantize(x, stored, inner)] if static else []
    if not static:
        inner.copy_(x.permute(0, 2, 3, 1))
    return launches, y.permute(0, 3, 1, 2), zero, padding


def _wide(*tensors: Tensor) -> bool:
    """Whether an offset into one of the tensors can pass 2^31."""
    return any(
        1 + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)) >= 2**31 for t in tensors
    )


def candidates(form: ConvForm, pixels: int, dtype: torch.dtype) -> list[Config]:
    """Tiles worth trying for a convolution of x of `dtype` to `pixels` outputs a channel, the default first."""
    if not form.block:
        return depthwise_conv2d.candidates(form.shape[0])
    k, exact = form.weight.shape[1] * 8 // form.bits, not dtype.is_floating_point
    # bytes lie the same way whatever S is, so 8-bit weights leave it open; elsewhere it was fixed by `prepare`
    blocks = (128, 64) if exact and form.bits == 8 and form.view[1] % 128 == 0 else (form.block,)
    known = architecture(form.weight.device)
    tiles = _tiles(form.view[0] // form.groups, form.groups, k, blocks, pixels, dtype)
    return [c for c in tiles if fits(c, _stage_bytes(c, form.bits, dtype), known)] or tiles[-1:]


@lru_cache(1024)
def _tiles(o: int, groups: int, k: int, blocks: tuple[int, ...], pixels: int, dtype: torch.dtype) -> list[Config]:
    """Fewer tiles than the 132 multiprocessors of an H100 split K, so that small batches keep it busy."""
    exact = not dtype.is_floating_point
    widest = min(128 // dtype.itemsize, max(16, triton.next_power_of_2(o)))
    rows = (128, 64) if exact and pixels > 64 else (64,)
    tiles = list(dict.fromkeys((m, n) for n in (widest, max(16, widest // 2)) for m in rows))

    def programs(tile: tuple[int, int]) -> int:
        return triton.cdiv(pixels, tile[0]) * triton.cdiv(o, tile[1]) * groups

    tiles.sort(key=lambda tile: -min(programs(tile), 132))
    found = []
    for block, stages, tile in product(blocks, (3, 4) if exact else (2, 3), tiles):
        split = 1
        while exact and split < 16 and programs(tile) * split * 2 <= 132 and k >= split * 1024:
            split *= 2
        sizes = (("BM", tile[0]), ("BN", tile[1]), ("S", block), ("SPLIT", split))
        found.append(Config(sizes, num_warps=8 if tile == (128, 128) else 4, num_stages=stages))
    return found


def _stage_bytes(config: Config, bits: int, dtype: torch.dtype) -> int:
    tiles = config.constants
    return tiles["S"] * (tiles["BM"] * dtype.itemsize * 8 // bits + tiles["BN"])


def plan(
    x: Tensor,
    form: ConvForm,
    scale: Tensor,
    bias: Tensor | None,
    given: Input,
    out: Output,
    y: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    config: Config | None = None,
) -> list[Launch]:
    """The kernels of one convolution of x into y, channels last like the residual.

    Runs nothing, except that an image of codes that must be staged is copied at once.
    """
    launches, x, zero, padding = _enter(x, form, given, padding, dilation)
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    config = config or candidates(form, pixels, x.dtype)[0]
    tiles = config.constants
    args, constants = tail(out, y)
    args |= {"x": x, "weight": form.weight, "wsum": form.wsum, "scale": scale, "bias": bias, "pixels": pixels}
    args |= {"height": x.shape[2], "width": x.shape[3], "out_height": y.shape[2], "out_width": y.shape[3]}
    o, i, kh, kw = form.view
    constants |= {"C": x.shape[1], "OUTPUTS": o, "KH": kh, "KW": kw, "WIDE": _wide(x, y), **tiles}
    for name, pair in (("STRIDE", stride), ("PAD", padding), ("DILATION", dilation)):
        constants |= {f"{name}_H": pair[0], f"{name}_W": pair[1]}
    groups = form.groups if form.block else 1
    programs = triton.cdiv(pixels, tiles["BM"]) * triton.cdiv(o // groups, tiles["BN"]) * groups
    if not form.block:
        args["zero"] = zero
        return [
            *launches,
            Launch(depthwise_conv2d.kernel, (programs,), args, constants, config.num_warps, config.num_stages),
        ]
    args |= {"blank": None, "partial": None, "start": 0, "zero": zero}
    constants |= {"INPUTS": i, "GROUPS": form.groups, "BITS": form.bits, "FLAT": form.flat, "SHIFT": form.shift}
    assert tiles["S"] == form.block or (form.bits == 8 and i % tiles["S"] == 0), "S was fixed by prepare"
    constants |= {"STEPS": form.weight.shape[1] // tiles["S"], "PADDED": "mask" if any(padding) else "no"}
    constants["ASM"] = not interpreted() and torch.version.hip is None
    if any(padding) and zero:
        args["blank"], constants["PADDED"] = form.blanks[zero % 256].view(x.dtype), "blank"
    if form.pitch and dilation[1] > 1:
        # the taps of a row do not lie together
        constants |= {"INPUTS": form.pitch, "KW": i // form.pitch, "FLAT": True}
    if x.dtype == torch.uint8:
        args["zero"] = zero - 128
        # a byte beyond the end is loaded as 0 and multiplied as -128, in one bit by a weight of +1 * 2^6
        args["start"] = 128 * form.spare << 6 if form.bits == 1 else 0
    split = tiles["SPLIT"]
    main = Launch(_conv, (programs, split), args, constants, config.num_warps, config.num_stages)
    if split == 1 or not pixels:
        return [*launches, main]
    partial = torch.empty((split, pixels, o), dtype=torch.int32, device=x.device)
    args["partial"] = partial
    rows = {**args, "row_scale": None, "m": pixels, "n": o, "out_stride": o, "residual_stride": o}
    return [*launches, main, plan_sum(partial, rows, constants, form.shift)]


def quant_conv2d(
    x: Tensor,
    form: ConvForm,
    scale: Tensor,
    bias: Tensor | None = None,
    given: Input = NO_INPUT,
    out: Output = NO_OUTPUT,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    config: Config | None = None,
) -> Tensor:
    """x [N, C, H, W] to [N, O, H', W'], channels last: `reference.quant_conv2d` with a prepared weight.

    x: codes (uint8 or int8), or floating: quantized first by a kernel of its own, or kept ("float", weight-only).
    Images of 2 to 15 channels in one group are staged first (see above).
    """
    kind = given.kind(x.dtype)
    if kind in ("dynamic", "packed"):
        raise ValueError(
            f"expected codes or floats with one scale, got {kind} inputs: quantize them before a convolution"
        )
    channels = form.shape[1] * form.groups
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"expected x [N, {channels}, H, W], got {list(x.shape)}: this weight was made for that")
    image = [
        (size + 2 * pad - step * (kernel - 1) - 1) // hop + 1
        for size, pad, step, kernel, hop in zip(x.shape[2:], padding, dilation, form.shape[2:], stride, strict=True)
    ]
    y = torch.empty(
        (x.shape[0], form.shape[0], *image),
        dtype=out.out_dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    if out.residual is not None:
        out = replace(out, residual=out.residual.contiguous(memory_format=torch.channels_last))
    scale, bias = scale.contiguous(), bias if bias is None else bias.contiguous()

    def planned(config: Config) -> list[Launch]:
        steps = stride, padding, dilation
        return plan(x, form, scale, bias, given, out, y, *steps, config=config)

    if config is None:
        pixels = y.shape[0] * y.shape[2] * y.shape[3]
        options = candidates(form, pixels, torch.int8 if kind == "static" else x.dtype)
        sizes = (*form.view, form.groups, *stride, *dilation, pixels.bit_length())
        key: tuple[int | str, ...] = (kind, str(x.dtype).removeprefix("torch."), form.bits, *sizes)
        config = choose("quant_conv2d", key, options[1:], options[0], planned, device=x.device)
    for launch in planned(config):
        launch.run()
    return y


_LAYERS = (
    # name, in, out, kernel, stride, size, groups
    ("resnet20-stem", 3, 16, 3, 1, 32, 1),
    ("resnet20-16", 16, 16, 3, 1, 32, 1),
    ("resnet20-16-32s2", 16, 32, 3, 2, 32, 1),
    ("resnet20-64", 64, 64, 3, 1, 8, 1),
    ("resnet50-stem", 3, 64, 7, 2, 224, 1),
    ("resnet50-64", 64, 64, 3, 1, 56, 1),
    ("resnet50-256-64", 256, 64, 1, 1, 56, 1),
    ("resnet50-512", 512, 512, 3, 1, 7, 1),
    ("resnet50-256-1024", 256, 1024, 1, 1, 14, 1),
    ("mobilenetv2-dw96", 96, 96, 3, 1, 56, 96),
)


def cases() -> list[Case]:
    """Convolutions of ResNet-20, ResNet-50 and MobileNetV2, and what their machine code must have."""
    found = [_case(layer, 8, torch.uint8) for layer in _LAYERS]
    for layer in (_LAYERS[1], _LAYERS[3], _LAYERS[5], _LAYERS[7]):
        found += [_case(layer, bits, torch.uint8) for bits in (4, 2, 1)]
        found += [_case(layer, bits, torch.int8) for bits in (8, 4)]
    found += [_case(_LAYERS[7], bits, torch.uint8, batch=1) for bits in (8, 1)]
    return [*found, _case(_LAYERS[4], 8, torch.float32), _case(_LAYERS[7], 4, torch.float16)]


def _case(layer: tuple[str, int, int, int, int, int, int], bits: int, dtype: torch.dtype, *, batch: int = 64) -> Case:
    """dtype uint8: zero point 0; int8: another, with a residual; float32: quantized first; float16: weight-only."""
    name, i, o, kernel, stride, size, groups = layer
    shape, padding = (o, i // groups, kernel, kernel), (kernel // 2,) * 2
    meta = torch.device("meta")
    form = prepare(
        torch.empty(o, row_bytes(i // groups * kernel**2, bits), dtype=torch.uint8, device=meta), bits, shape, groups
    )
    x = torch.empty(batch, i, size, size, dtype=dtype, device=meta, memory_format=torch.channels_last)
    out_size = (size - 1) // stride + 1
    y_dtype = torch.float16 if dtype == torch.float16 else dtype if dtype == torch.int8 else torch.uint8
    y = torch.empty(batch, o, out_size, out_size, dtype=y_dtype, device=meta, memory_format=torch.channels_last)
    vector, number = torch.empty(o, device=meta), torch.empty((), device=meta)
    given = Input(inv_scale=number if dtype == torch.float32 else None, zero_point=-128 if dtype == torch.int8 else 0)
    out = Output(relu=True, inv_scale=None if dtype == torch.float16 else number, dtype=y_dtype)
    if dtype == torch.int8:
        out = replace(out, residual=y, residual_scale=number, zero_point=-128, qmin=-128, qmax=127)
    strides = (stride, stride)
    launches = plan(x, form, vector, vector, given, out, y, strides, padding, (1, 1))
    instructions = ("HMMA", "HGMMA") if dtype == torch.float16 else (r"IMMA.*S8\.S8", r"IGMMA.*S8\.S8")
    needs: dict[int, tuple[str, ...]] = {} if groups > 1 else {80: instructions[:1], 90: instructions[1:]}
    return Case(
        f"{name}-w{bits}-{str(dtype).removeprefix('torch.')}-n{batch}",
        launches,
        needs,
        max_registers=255 if groups == 1 else 128,
    )
