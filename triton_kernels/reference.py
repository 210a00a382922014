"""What every operator computes: the eager oracle, on any device, exact where it deals with integers.

A quantized layer is three steps, and only the middle one has implementations that differ:

    q   = clamp(round(x / s_x) + z, qmin, qmax) - z      quantize_input   centred codes: the real zero is code 0
                                                         (quantize_u8: the same code as a byte, q + z - qmin)
    acc = sum_k q[k] * w[o, k]                           int_conv2d, int_matmul      exact in int32
    y   = acc * scale[o] + bias[o]                       epilogue         scale = s_x * s_w[o], batch norm folded in

Padding adds real zeros, so a padded position has centred code 0 whatever the zero point (and for binary inputs, whose
codes are -1 and +1, it is a third value). The accumulator is an integer below 2^31, handed on as float32: rounded once,
to nearest even, and unchanged below 2^24. Integer sums are taken in float64, where they are exact below 2^53.

A source for the scheme: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
Only Inference" (2018), equations 1 to 4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_kernels.layout import unpack_stored, unpack_weight
from triton_kernels.spec import NO_INPUT, NO_OUTPUT, Input, Output


def quantize_input(
    x: Tensor, inv_scale: Tensor | None, zero_point: int, qmin: int, qmax: int, *, binary: bool = False
) -> Tensor:
    """Centred integer codes of a float tensor, as float32 of x's shape.

    x: floating, any shape. inv_scale: float32, 0-dim, the reciprocal of the step. Rounds half to even. With `binary`
    the codes are where(x >= 0, 1, -1) and the other arguments do not matter. NaN has no integer code and its
    conversion is undefined in hardware, so it counts as the real zero (code 0; with `binary`, -1) in every
    implementation; infinities saturate. Made of plain torch operations, so that a compiler fuses it with its
    neighbours.
    """
    if binary:
        return torch.where(x >= 0, 1.0, -1.0)
    q = _rounded(x, inv_scale, zero_point, qmin, qmax)
    # Comparing q with itself is the NaN test that Inductor vectorizes on a CPU; isnan runs element by element there, at
    # half the speed.
    return torch.where(torch.eq(q, q), q - zero_point, 0.0)


def quantize_u8(
    x: Tensor, inv_scale: Tensor | None, zero_point: int, qmin: int, qmax: int, *, binary: bool = False
) -> Tensor:
    """The codes of `quantize_input` as the bytes that the integer operators take: centred code + `u8_zero_point`."""
    if binary:
        return torch.where(x >= 0, 2, 0).to(torch.uint8)
    q = _rounded(x, inv_scale, zero_point, qmin, qmax)
    if qmin:
        q = q - qmin
    return torch.where(torch.eq(q, q), q, float(zero_point - qmin)).to(torch.uint8)


def u8_zero_point(zero_point: int, qmin: int, qmax: int, *, binary: bool = False) -> int:
    """The byte of `quantize_u8` that stands for the real zero: zero_point - qmin, or 1 for binary inputs.

    Raises ValueError when the range has more than 256 codes or no code for the real zero.
    """
    if binary:
        return 1
    if not qmin <= zero_point <= qmax or qmax - qmin > 255:
        raise ValueError(
            f"expected at most 256 activation codes with the zero point among them, got qmin {qmin}, zero point "
            f"{zero_point}, qmax {qmax}: widen the observed range to hold 0 or use fewer bits"
        )
    return zero_point - qmin


def _rounded(x: Tensor, inv_scale: Tensor | None, zero_point: int, qmin: int, qmax: int) -> Tensor:
    if inv_scale is None:
        raise ValueError("expected inv_scale for quantized activations, got None: pass 1/step or binary=True")
    q = torch.round(x.to(torch.float32) * inv_scale)
    # No "+ 0": a compiler may not drop it, because it turns -0 into 0.
    return torch.clamp(q + zero_point if zero_point else q, qmin, qmax)


def conv_sizes(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int]:
    """(height, width) of what a convolution or pooling makes of an image of `size`; below 1 where it does not fit."""
    height, width = (
        (n + 2 * pad - step * (k - 1) - 1) // hop + 1
        for n, k, hop, pad, step in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


def int_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Exact accumulators of a convolution: centred codes [N,C,H,W] (any dtype) x int8 OIHW -> float32 [N,O,H',W']."""
    acc = F.conv2d(x.double(), weight.double(), None, tuple(stride), tuple(padding), tuple(dilation), groups)
    return acc.to(torch.float32)


def int_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Exact accumulators of x @ weight.T: centred codes [..., K] (any dtype) x int8 [N, K] -> float32 [..., N]."""
    return F.linear(x.double(), weight.double()).to(torch.float32)


def epilogue(acc: Tensor, scale: Tensor, bias: Tensor | None, *, channel_dim: int = 1) -> Tensor:
    """acc * scale + bias per channel, as two float32 operations that are rounded separately (no fused multiply-add).

    acc: float32 with C channels in `channel_dim` (1 after a convolution, -1 after a matmul); scale, bias: float32 [C].
    """
    shape = [1] * acc.dim()
    shape[channel_dim] = -1
    y = acc * scale.view(shape)
    return y if bias is None else y + bias.view(shape)


def finish(y: Tensor, out: Output) -> Tensor:
    """The tail of a layer: residual, ReLU, then codes or a float dtype. y: float32, the epilogue's result."""
    if out.residual is not None:
        r = out.residual.to(torch.float32)
        if out.residual_scale is not None:
            r = (r - out.residual_zero_point) * out.residual_scale
        y = y + r
    if out.relu:
        y = torch.relu(y)
    if not out.codes:
        return y.to(out.out_dtype)
    return codes_of(y, out.inv_scale, out.zero_point, out.qmin, out.qmax, binary=out.binary, dtype=out.out_dtype)


def codes_of(
    y: Tensor,
    inv_scale: Tensor | None,
    zero_point: int,
    qmin: int,
    qmax: int,
    *,
    binary: bool = False,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Codes of a layer's output as `spec.Output` defines them, zero point and range being those of the stored dtype.

    Equal to `quantize_u8` where that has its range moved to 0.. : the codes that the next layer reads.
    """
    if binary:
        return torch.where(y >= 0, zero_point + 1, zero_point - 1).to(dtype)
    q = _rounded(y, inv_scale, zero_point, qmin, qmax)
    return torch.where(torch.eq(q, q), q, float(zero_point)).to(dtype)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes of x [..., K] and the float32 scale of each row [..., 1], chosen from the row itself.

    scale = max |row| / 127, or 1 for a row of zeros; code = clamp(round(x * (1 / scale)), -127, 127), each operation
    rounded to nearest in float32. Rows with NaN or infinity have no meaning.
    """
    x = x.to(torch.float32)
    peak = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros((*x.shape[:-1], 1))
    scale = torch.where(peak > 0, peak / 127, 1.0)
    return torch.clamp(torch.round(x * scale.reciprocal()), -127, 127).to(torch.int8), scale


def centred(x: Tensor, given: Input, k: int) -> Tensor:
    """The centred integers that x stands for, as float32 [..., K] (packed rows) or of x's shape. Not for "float"."""
    kind = given.kind(x.dtype)
    if kind == "static":
        return quantize_input(x, given.inv_scale, given.zero_point, given.qmin, given.qmax, binary=given.binary)
    if kind == "dynamic":
        return quantize_rows(x)[0].to(torch.float32)
    if kind == "codes":
        return x.to(torch.float32) - given.zero_point
    codes = unpack_stored(x, given.bits, k).to(torch.float32)
    return codes * 2 - 1 if given.binary else codes - given.zero_point


def quant_conv2d(
    x: Tensor,
    packed: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    given: Input = NO_INPUT,
    out: Output = NO_OUTPUT,
) -> Tensor:
    """A whole quantized convolution from packed weights: x [N,C,H,W] -> [N,O,H',W'].

    packed: uint8 [O, row_bytes]; weight_shape: OIHW; scale, bias: float32 [O]. Where the inputs are quantized, scale is
    the product of theirs and the weights'. Floating inputs that stay so make an ordinary float32 convolution.
    """
    weight = unpack_weight(packed, bits, weight_shape)
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    if given.kind(x.dtype) == "float":
        acc = F.conv2d(x.to(torch.float32), weight.to(torch.float32), None, *geometry)
    else:
        acc = int_conv2d(centred(x, given, 0), weight, *geometry)
    return finish(epilogue(acc, scale, bias, channel_dim=1), out)


def quant_matmul(
    x: Tensor,
    packed: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    given: Input = NO_INPUT,
    out: Output = NO_OUTPUT,
) -> Tensor:
    """A whole quantized linear layer from packed weights: x [..., K] (packed: [..., row_bytes]) -> [..., N].

    scale: float32 [N], or [N, G] with one for each of G equal groups along K; then y is the float32 sum over the
    groups, first to last, of acc_g * scale[:, g], every operation rounded. With `dynamic` inputs every acc is first
    multiplied by its row's scale. Floating inputs that stay so are summed in float64 and rounded once for each group.
    """
    weight = unpack_weight(packed, bits, weight_shape)
    kind, k = given.kind(x.dtype), weight_shape[1]
    codes = x.double() if kind == "float" else centred(x, given, k)
    row_scale = quantize_rows(x)[1] if kind == "dynamic" else None
    scales = scale.unsqueeze(1) if scale.dim() == 1 else scale
    size = k // max(scales.shape[1], 1)
    y = None
    for g in range(scales.shape[1]):
        part = slice(g * size, (g + 1) * size)
        acc = int_matmul(codes[..., part], weight[:, part])
        acc = acc if row_scale is None else acc * row_scale
        term = acc * scales[:, g]
        y = term if y is None else y + term
    assert y is not None
    return finish(y if bias is None else y + bias, out)
