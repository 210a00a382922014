"""A convolution as an implicit matrix product over NHWC codes: a program makes BM pixels x BN output channels of

    acc[m, n] = sum_k x[m, k] w[n, k]          k runs over (r, s, c), channels fastest; x gathered, never copied
    y = acc * scale[n] + bias[n], residual, ReLU, codes       `epilogue.finish`

Bytes are multiplied as s8: uint8 codes become `stored - 128` by flipping their top bit, and with the stored zero z8

    sum (x - z) w = sum x8 w - z8 * wsum[n]

Pixels are the left operand (`quant_matmul` has the weights there): a matrix instruction of sm_90 has 64 rows at least,
and a layer may have only 16 channels; and only the left operand may come from registers, where the flip costs least.

Padding loads the code of the real zero: by a masked load if that byte is 0, otherwise from a row of such bytes, chosen
by pointer, because a masked load with another value would not be an asynchronous copy.

The weights lie as `conv_form` says. With SPLIT > 1 each program sums a share of K into `partial`, which
`epilogue.sum_kernel` ends.
"""

import triton
import triton.language as tl

from triton_kernels.epilogue import channels, finish


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
def conv(  # type: ignore[no-untyped-def]
    x,
    weight,
    wsum,
    scale,
    bias,
    blank,
    tail,
    pixels,
    height,
    width,
    out_height,
    out_width,
    zero,
    start,
    partial,
    RELU: tl.constexpr,
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
            result = channels(acc, m, channel, pixels, OUTPUTS, wsum, scale, bias, None, zero, SHIFT)
        else:
            result = acc * (1.0 / (1 << SHIFT))
            result = channels(result, m, channel, pixels, OUTPUTS, None, scale, bias, None, 0, 0)
        finish(result, to, to, mask, tail, RELU)
