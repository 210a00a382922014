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

from triton_kernels.layout import unpack_weight


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


def finish(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """The tail of a fused layer: add the residual (of y's shape, any floating type), then ReLU; both optional."""
    if residual is not None:
        if residual.shape != y.shape:
            raise ValueError(
                f"expected a residual {list(y.shape)}, got {list(residual.shape)}: match the layer's output"
            )
        y = y + residual.to(y.dtype)
    return torch.relu(y) if relu else y


def quant_conv2d(
    x: Tensor,
    packed: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    inv_scale: Tensor | None = None,
    zero_point: int = 0,
    qmin: int = 0,
    qmax: int = 255,
    binary: bool = False,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """A whole quantized convolution from packed weights: float [N,C,H,W] -> float32 [N,O,H',W'].

    packed: uint8 [O, row_bytes]; weight_shape: OIHW; scale, bias: float32 [O]. With `inv_scale` None the activations
    stay float (weight-only) and scale is the weight's own; then the sum is an ordinary float32 convolution.
    """
    weight = unpack_weight(packed, bits, weight_shape)
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    if inv_scale is None and not binary:
        acc = F.conv2d(x.to(torch.float32), weight.to(torch.float32), None, *geometry)
    else:
        codes = quantize_input(x, inv_scale, zero_point, qmin, qmax, binary=binary)
        acc = int_conv2d(codes, weight, *geometry)
    return finish(epilogue(acc, scale, bias, channel_dim=1), residual, relu)


def quant_matmul(
    x: Tensor,
    packed: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    inv_scale: Tensor | None = None,
    zero_point: int = 0,
    qmin: int = 0,
    qmax: int = 255,
    binary: bool = False,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """A whole quantized linear layer from packed weights: float [..., K] -> float32 [..., N], as `quant_conv2d`."""
    weight = unpack_weight(packed, bits, weight_shape)
    if inv_scale is None and not binary:
        acc = F.linear(x.to(torch.float32), weight.to(torch.float32))
    else:
        acc = int_matmul(quantize_input(x, inv_scale, zero_point, qmin, qmax, binary=binary), weight)
    return finish(epilogue(acc, scale, bias, channel_dim=-1), residual, relu)
