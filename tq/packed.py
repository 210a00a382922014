"""PackedConv2d and PackedLinear: weights as packed codes, exact integer arithmetic, one scale and bias per channel.

    q = clamp(round(x / input_scale) + zero point)      y = (sum of q * w) * (weight_scale * input_scale) + bias

The batch normalization is folded into weight_scale and bias. Layers whose weights or inputs stay at 16 bits compute
the same in float32.

Powers of two (INQ) are stored in codes of their own (triton_kernels/codebook.py). Beside inputs of 16 bits they are
float32 weights as they stand, exactly. Beside integer inputs they become int8 codes: 2 to 4 bits reach 8, and 5 bits
reach 128, where +128 is no int8. A layer that has it is the sum of two int8 products, weight = 16 * high + low with
codes of at most 8 each; as float32 holds both exactly, their sum is rounded once, as one accumulator would be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import triton_kernels.ops as ops
from tq.layers import EXACT_FLOAT32, QuantLayer, channels_last
from tq.quantizers import PowerOfTwo, act_range
from triton_kernels import codebook
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
    pow2: bool = False
    """weights are 0 and +-2^i times a scale"""

    @property
    def name(self) -> str:
        """w4a8, inq5, ...: the scheme."""
        if not self.pow2:
            return f"w{self.weight_bits}a{self.act_bits}"
        return f"inq{self.weight_bits}" + (f"a{self.act_bits}" if self.act_bits < 16 else "")

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the stored weight: rows of K codes padded to whole bytes; at 16 bits the weight's own."""
        if self.weight_bits == 16:
            return self.shape
        row = codebook.row_bytes if self.pow2 else row_bytes
        return self.shape[0], row(math.prod(self.shape[1:]), self.weight_bits)

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
    int8_weight: Tensor
    high_weight: Tensor
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
        if self.format.pow2:
            codes = codebook.pack_weight(codes, self.format.weight_bits)
        elif self.format.weight_bits < 16:
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
        # the packed weights whose products the accumulators are: one, two (low, high), or none for a float64 product
        self.kernels: tuple[str, ...] = ("weight_packed",)
        self.kernel_bits = self.format.weight_bits
        weight = self.codes() if self.format.pow2 or not self.integer else None
        if self.integer and weight is not None:
            self._prepare_powers(weight)
        elif weight is not None:
            self.register_buffer("float_weight", channels_last(weight), persistent=False)

    @property
    def one_product(self) -> bool:
        """Whether its accumulators are one integer product, as programs (`tq.lower`) take them."""
        return self.integer and len(self.kernels) == 1

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
        if not self.kernels:
            return self.contract(q.double() - self.u8_zero, self.float_weight.double()).float()
        acc = self.product(q, getattr(self, self.kernels[0]))
        return acc if len(self.kernels) == 1 else acc + 16 * self.product(q, self.high_weight)

    def product(self, q: Tensor, packed: Tensor) -> Tensor:
        """uint8 codes -> exact products with a packed weight of `kernel_bits` bits, as float32."""
        raise NotImplementedError

    def contract(self, x: Tensor, weight: Tensor) -> Tensor:
        """The float form of the product."""
        raise NotImplementedError

    def codes(self) -> Tensor:
        """The weight's codes, float32 in its own shape; at 16 bits the weight itself. Raises ValueError if damaged."""
        form = self.format
        if form.weight_bits == 16:
            return self.weight_packed
        if form.pow2:
            return codebook.unpack_weight(self.weight_packed, form.weight_bits, form.shape)
        return unpack_weight(self.weight_packed, form.weight_bits, form.shape).float()

    def _prepare_powers(self, weight: Tensor) -> None:
        """Powers of two, float32 codes, as int8 weights for the kernels."""
        self.kernel_bits, self.kernels = 8, ("int8_weight",)
        low = weight
        if float(weight.max()) > 127:
            self.kernels = ("int8_weight", "high_weight")
            high = (weight / 16).trunc()
            low = weight - 16 * high
            largest = max(self.u8_zero, self.qmax - self.qmin - self.u8_zero)
            if largest * float(torch.stack([low, high]).abs().flatten(2).sum(2).max()) >= EXACT_FLOAT32:
                # two roundings could differ from one; no kernel has 9 bits, so these few layers have none
                self.kernels = ()
                self.register_buffer("float_weight", weight, persistent=False)
                return
            self.register_buffer("high_weight", pack_weight(high.to(torch.int8), 8), persistent=False)
        self.register_buffer("int8_weight", pack_weight(low.to(torch.int8), 8), persistent=False)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.format.shape))}, {self.format.name}"


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
        for name in self.kernels if self.integer else ():
            ops.prepare_conv2d(
                getattr(self, name), self.kernel_bits, self.format.shape,
                self.stride, self.padding, self.dilation, self.groups, self.u8_zero, self.impl,
            )  # fmt: skip

    def product(self, q: Tensor, packed: Tensor) -> Tensor:
        return torch.ops.tq.int_conv2d(
            q, packed, self.kernel_bits, self.format.shape,
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
        for name in self.kernels if self.integer else ():
            ops.prepare_matmul(getattr(self, name), self.kernel_bits, self.format.shape, self.u8_zero, self.impl)

    def product(self, q: Tensor, packed: Tensor) -> Tensor:
        return torch.ops.tq.int_matmul(q, packed, self.kernel_bits, self.format.shape, self.u8_zero, self.impl)

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
        isinstance(w, PowerOfTwo),
    )


def packed_layers(model: nn.Module) -> dict[str, PackedLayer]:
    """The packed layers of a network, by name, in name order."""
    return {n: m for n, m in sorted(model.named_modules()) if isinstance(m, PackedLayer)}
