"""PackedConv2d and PackedLinear: weights as packed codes, exact integer arithmetic, one scale and bias per channel.

    q = clamp(round(x / input_scale) + zero point)      y = (sum of q * w) * (weight_scale * input_scale) + bias

The batch normalization is folded into weight_scale and bias. Layers whose weights or inputs stay at 16 bits compute
the same in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import triton_kernels.ops as ops
from tq.layers import QuantLayer, channels_last
from tq.quantizers import act_range
from triton_kernels.layout import pack_weight, row_bytes, unpack_weight
from triton_kernels.reference import epilogue, quantize_input, quantize_u8, u8_zero_point


@dataclass(frozen=True)
class Format:
    """How a layer's numbers are stored: bits, the sign of its inputs, the shape of its weight (OIHW or [N, K])."""

    weight_bits: int
    act_bits: int
    act_signed: bool
    zero_point: int
    shape: tuple[int, ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the stored weight: rows of K codes padded to whole bytes; at 16 bits the weight's own."""
        if self.weight_bits == 16:
            return self.shape
        return self.shape[0], row_bytes(math.prod(self.shape[1:]), self.weight_bits)

    @property
    def stored_dtype(self) -> torch.dtype:
        """uint8, or float32 at 16 bits."""
        return torch.float32 if self.weight_bits == 16 else torch.uint8


class PackedLayer(nn.Module):
    """What both packed layers share.

    Buffers: `weight_packed` uint8 [O, ceil(K * bits / 8)] (at 16 bits float32 in the weight's own shape),
    `weight_scale` and `bias` float32 [O], `input_scale` float32 0-dim. `impl` ("auto", "cpu", "reference") picks the
    integer implementation and never falls back silently.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    bias: Tensor
    input_scale: Tensor
    scale: Tensor
    inverse: Tensor
    float_weight: Tensor
    channel_dim: int

    def __init__(self, form: Format, *, impl: str = "auto") -> None:
        super().__init__()
        self.format, self.impl = form, impl
        self.integer = form.weight_bits < 16 and form.act_bits < 16
        self.binary = form.act_signed and form.act_bits == 1
        self.qmin, self.qmax = act_range(form.act_bits, signed=form.act_signed) if form.act_bits < 16 else (0, 0)
        channels = form.shape[0]
        self.register_buffer("weight_packed", torch.zeros(form.stored_shape, dtype=form.stored_dtype))
        self.register_buffer("weight_scale", torch.zeros(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("input_scale", torch.ones(()))

    @torch.no_grad()
    def fill(self, layer: QuantLayer) -> None:
        """Take the numbers of a training form: the only place that rounds for good. Raises ValueError for NaN."""
        if not all(bool(tensor.isfinite().all()) for tensor in layer.state_dict().values()):
            raise ValueError("its weights or statistics hold NaN or infinity; train again with a lower --lr")
        codes = layer.weight_codes()[0].detach()
        if self.format.weight_bits < 16:
            codes = pack_weight(codes.round().to(torch.int8), self.format.weight_bits)
        self.weight_packed.copy_(codes)
        scale, bias = layer.folded()
        self.weight_scale.copy_(scale)
        self.bias.copy_(bias)
        self.input_scale.copy_(layer.input_scale())

    def prepare(self) -> None:
        """Derive what the forward needs from the stored buffers; call after filling or loading them."""
        u8_zero = u8_zero_point(self.format.zero_point, self.qmin, self.qmax, binary=self.binary) if self.integer else 0
        self.u8_zero = u8_zero
        self.register_buffer("scale", self.weight_scale * self.input_scale, persistent=False)
        self.register_buffer("inverse", self.input_scale.reciprocal(), persistent=False)
        if not self.integer:
            self.register_buffer("float_weight", self._unpacked(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        form = self.format
        if self.integer:
            q = quantize_u8(x, self.inverse, form.zero_point, self.qmin, self.qmax, binary=self.binary)
            acc = self.accumulate(q)
            return channels_last(epilogue(acc, self.scale, self.bias, channel_dim=self.channel_dim))
        if form.act_bits < 16:
            x = quantize_input(x, self.inverse, form.zero_point, self.qmin, self.qmax, binary=self.binary)
        acc = self.contract(channels_last(x), self.float_weight)
        return channels_last(epilogue(acc, self.scale, self.bias, channel_dim=self.channel_dim))

    def accumulate(self, q: Tensor) -> Tensor:
        """uint8 codes -> exact integer accumulators, as float32."""
        raise NotImplementedError

    def contract(self, x: Tensor, weight: Tensor) -> Tensor:
        """The float form of the product."""
        raise NotImplementedError

    def _unpacked(self) -> Tensor:
        form, weight = self.format, self.weight_packed
        if form.weight_bits < 16:
            weight = unpack_weight(weight, form.weight_bits, form.shape).float()
        return channels_last(weight)

    def extra_repr(self) -> str:
        form = self.format
        return f"{'x'.join(map(str, form.shape))}, w{form.weight_bits}a{form.act_bits}"


class PackedConv2d(PackedLayer):
    """A quantized convolution with folded batch normalization; x float [N, C, H, W] -> float32 [N, O, H', W']."""

    channel_dim = -3

    def __init__(self, form: Format, conv: nn.Conv2d, *, impl: str = "auto") -> None:
        super().__init__(form, impl=impl)
        assert not isinstance(conv.padding, str)
        self.stride, self.padding = tuple(conv.stride), tuple(conv.padding)
        self.dilation, self.groups = tuple(conv.dilation), conv.groups

    def prepare(self) -> None:
        super().prepare()
        if self.integer:
            ops.prepare_conv2d(
                self.weight_packed, self.format.weight_bits, self.format.shape,
                self.stride, self.padding, self.dilation, self.groups, self.u8_zero, self.impl,
            )  # fmt: skip

    def accumulate(self, q: Tensor) -> Tensor:
        return torch.ops.tq.int_conv2d(
            q, self.weight_packed, self.format.weight_bits, self.format.shape,
            self.stride, self.padding, self.dilation, self.groups, self.u8_zero, self.impl,
        )  # fmt: skip

    def contract(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)


class PackedLinear(PackedLayer):
    """A quantized linear layer; x float [..., K] -> float32 [..., N]."""

    channel_dim = -1

    def __init__(self, form: Format, linear: nn.Linear, *, impl: str = "auto") -> None:
        super().__init__(form, impl=impl)

    def prepare(self) -> None:
        super().prepare()
        if self.integer:
            ops.prepare_matmul(self.weight_packed, self.format.weight_bits, self.format.shape, self.u8_zero, self.impl)

    def accumulate(self, q: Tensor) -> Tensor:
        return torch.ops.tq.int_matmul(
            q, self.weight_packed, self.format.weight_bits, self.format.shape, self.u8_zero, self.impl
        )

    def contract(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)


def make_packed(form: Format, layer: nn.Module, *, impl: str = "auto") -> PackedLayer:
    """An empty packed layer with the geometry of a conv or linear layer (float or training form)."""
    kind: Any = PackedConv2d if isinstance(layer, nn.Conv2d) else PackedLinear
    return kind(form, layer, impl=impl)


def format_of(layer: QuantLayer) -> Format:
    """How `tq.convert` will store a layer in training form."""
    w, a = layer.weight_quantizer, layer.input_quantizer
    return Format(
        w.bits if w is not None else 16,
        a.bits if a is not None else 16,
        a.signed if a is not None else False,
        a.zero_point if a is not None else 0,
        tuple(layer.weight.shape),
    )


def packed_layers(model: nn.Module) -> dict[str, PackedLayer]:
    """The packed layers of a network, by name, in name order."""
    return {n: m for n, m in sorted(model.named_modules()) if isinstance(m, PackedLayer)}
