"""Convolutions with one input channel a group (depthwise, and images of one channel): no matrix product.

    acc[m, n] = sum_(r, s) x[m at (r, s), n // (O / groups)] w[n, r, s] - zero wsum[n]        padding is zero

A program makes BM pixels x BN output channels, with the channels along the threads, so that loads from NHWC are wide;
the same pixel is loaded for several taps, which the L1 cache serves. A weight is used once a pixel, so it must be ready
for use: int32 [kh * kw, O], 36 bytes a channel for 3 x 3, whatever its width in the file. The launch is planned in
`quant_conv2d`.
"""

import triton
import triton.language as tl

from triton_kernels.epilogue import channels, finish
from triton_kernels.tuning import Config


def candidates(out_channels: int) -> list[Config]:
    """Tiles worth trying, the default first."""
    columns = min(32, triton.next_power_of_2(out_channels))
    tiles = [(2048 // columns, columns), (1024 // columns, columns), (1024 // columns, 2 * columns)]
    return [Config((("BM", rows), ("BN", columns)), num_warps=warps) for warps in (4, 2) for rows, columns in tiles]


@triton.jit
def kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    wsum,
    scale,
    bias,
    tail,
    pixels,
    height,
    width,
    out_height,
    out_width,
    zero,
    RELU: tl.constexpr,
    C: tl.constexpr,
    OUTPUTS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    EXACT: tl.constexpr = x.dtype.element_ty.is_int()
    SUM: tl.constexpr = tl.int32 if EXACT else tl.float32
    COLUMNS: tl.constexpr = (OUTPUTS + BN - 1) // BN
    pid = tl.program_id(0)
    m = pid // COLUMNS * BM + tl.arange(0, BM)
    n = pid % COLUMNS * BN + tl.arange(0, BN)
    known = n < OUTPUTS
    image = m // (out_height * out_width)
    rest = m % (out_height * out_width)
    y0 = rest // out_width * STRIDE_H - PAD_H
    x0 = rest % out_width * STRIDE_W - PAD_W
    base = image.to(INDEX) * height * width
    channel = n // (OUTPUTS // C)
    acc = tl.zeros((BM, BN), SUM)
    for tap in tl.static_range(KH * KW):
        y, x_ = y0 + tap // KW * DILATION_H, x0 + tap % KW * DILATION_W
        real = ((y >= 0) & (y < height) & (x_ >= 0) & (x_ < width) & (m < pixels))[:, None] & known[None, :]
        at = (base + y.to(INDEX) * width + x_)[:, None] * C + channel[None, :]
        values = tl.load(x + at, mask=real, other=zero if EXACT else 0).to(SUM)
        acc += values * tl.load(weight + tap * OUTPUTS + n, mask=known, other=0).to(SUM)[None, :]
    result = channels(acc, m, n, pixels, OUTPUTS, wsum if EXACT else None, scale, bias, None, zero, 0)
    to = m[:, None].to(INDEX) * OUTPUTS + n[None, :]
    finish(result, to, to, (m < pixels)[:, None] & known[None, :], tail, RELU)
