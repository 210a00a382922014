"""QuantConv2d and QuantLinear: the training form of a quantized layer, with its batch normalization inside.

Training   y = BN( conv(codes of x, codes of w) * (scale_x * scale_w) + b )
Evaluation y = acc * scale + bias with acc the exact integer accumulator and

    scale_w' = scale_w * gamma / sqrt(var + eps)      scale = scale_w' * scale_x
    bias     = (b - mean) * gamma / sqrt(var + eps) + beta

which is what the packed layer computes from the same numbers in the same order, so that predictions are equal bit for
bit. float32 holds integers exactly below 2^24; a layer whose accumulators could pass that bound is convolved in
float64 (`accumulator_bound` tells).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq.quantizers import ActQuantizer, PowerOfTwo, WeightQuantizer, magnitudes
from triton_kernels.reference import epilogue

EXACT_FLOAT32 = 2**24
# cuDNN may pick a Winograd algorithm, which is off by some 1e-6 of the sum; below this bound that is far less than the
# half that rounding mends
ROUNDED_FLOAT32 = 2**17
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Observer(Protocol):
    """Sees the float inputs of a layer during calibration."""

    def update(self, x: Tensor) -> None:
        """x: one batch of inputs."""


class QuantLayer(nn.Module):
    """What QuantConv2d and QuantLinear share; `weight` and `bias` keep the float layer's names and shapes."""

    weight: Tensor
    bias: Tensor | None
    weight_quantizer: WeightQuantizer | None
    input_quantizer: ActQuantizer | None
    bn: BatchNorm | None
    channel_dim: int
    # whether its inputs are never negative, as the float network tells (tq.sites)
    unsigned = False

    def quantize(
        self,
        weight_quantizer: WeightQuantizer | None,
        input_quantizer: ActQuantizer | None,
        bn: BatchNorm | None,
    ) -> None:
        """Take over the quantizers (None: 16 bits) and the batch normalization that follows (None: nothing)."""
        # registered also where it is None: an optimizer's state goes by the order of parameters, which must not depend
        # on the stage that brought a quantizer
        parts = (("weight_quantizer", weight_quantizer), ("input_quantizer", input_quantizer), ("bn", bn))
        for name, part in parts:
            self.register_module(name, part)
        self.observer: Observer | None = None

    def contract(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's convolution or matrix product, without bias."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer.update(x)
            return self._normalize(self._add_bias(self.contract(x, self.weight)))
        if not self.training:
            scale, bias = self.folded()
            acc = self.accumulate(x)
            return channels_last(epilogue(acc, scale * self.input_scale(), bias, channel_dim=self.channel_dim))
        codes, x_scale = self.input_quantizer(x) if self.input_quantizer is not None else (x, None)
        weight, w_scale = self.weight_codes()
        scale = w_scale if x_scale is None else w_scale * x_scale
        y = self.contract(codes, weight) * scale.view(-1, *[1] * (self.weight.ndim - 2))
        return self._normalize(self._add_bias(y))

    def accumulate(self, x: Tensor) -> Tensor:
        """Integer accumulators of the evaluation form, float32 (weights or inputs at 16 bits: plain float32)."""
        codes = self.input_quantizer.codes(x) if self.input_quantizer is not None else x
        weight = self.weight_codes()[0].detach()
        if self.input_quantizer is None or self.weight_quantizer is None:
            return self.contract(channels_last(codes), channels_last(weight))
        if self.accumulator_bound() >= (ROUNDED_FLOAT32 if x.is_cuda else EXACT_FLOAT32):
            return self.contract(codes.double(), weight.double()).float()
        acc = self.contract(codes, weight)
        return acc.round() if x.is_cuda else acc

    @torch.no_grad()
    def accumulator_bound(self) -> int:
        """Largest magnitude that an accumulator can reach with these weights and any input, 0 for float layers."""
        if self.input_quantizer is None or self.weight_quantizer is None:
            return 0
        q = self.input_quantizer
        largest = max(abs(q.qmin - q.zero_point), abs(q.qmax - q.zero_point))
        bits = self.weight_quantizer.bits
        code = 2 ** (magnitudes(bits) - 1) if isinstance(self.weight_quantizer, PowerOfTwo) else 2 ** (bits - 1)
        worst = code * largest * self.weight[0].numel()
        if worst < EXACT_FLOAT32:
            return worst
        return int(self.weight_codes()[0].abs().double().flatten(1).sum(1).max()) * largest

    def weight_codes(self) -> tuple[Tensor, Tensor]:
        """codes [O, ...] and scale [O] of the weights (16 bits: the weights themselves and ones)."""
        if self.weight_quantizer is None:
            return self.weight, torch.ones(self.weight.shape[0], device=self.weight.device)
        return self.weight_quantizer(self.weight)

    def input_scale(self) -> Tensor:
        """0-dim float32; one when the inputs are not quantized."""
        device = self.weight.device
        return (
            torch.ones((), device=device) if self.input_quantizer is None else self.input_quantizer.scale().to(device)
        )

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight scale and bias with the batch normalization folded in, both [O] float32."""
        scale = self.weight_codes()[1].clone()
        bias = torch.zeros_like(scale) if self.bias is None else self.bias.detach().clone()
        if self.bn is None:
            return scale, bias
        assert self.bn.running_var is not None and self.bn.running_mean is not None
        gain = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        return scale * gain, (bias - self.bn.running_mean) * gain + self.bn.bias

    def _normalize(self, y: Tensor) -> Tensor:
        return y if self.bn is None else self.bn(y)

    def _add_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.view(-1, *[1] * (self.weight.ndim - 2))


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d with quantized weights and inputs; made by `tq.attach`."""

    channel_dim = -3

    @classmethod
    def from_float(cls, conv: nn.Conv2d, **parts: Any) -> QuantConv2d:
        """Share the float layer's parameters. Only zero padding has an integer meaning. Raises ValueError."""
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"a quantized conv needs zero padding given in numbers, got {conv.padding_mode!r}, {conv.padding!r}"
            )
        layer = cls(
            conv.in_channels, conv.out_channels, _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.padding),
            _pair(conv.dilation), conv.groups, conv.bias is not None, device="meta",
        )  # fmt: skip
        layer.weight, layer.bias = conv.weight, conv.bias
        layer.quantize(**parts)
        return layer

    def contract(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear with quantized weights and inputs; made by `tq.attach`."""

    bias: nn.Parameter  # as torch declares it; None where there is no bias
    channel_dim = -1

    @classmethod
    def from_float(cls, linear: nn.Linear, **parts: Any) -> QuantLinear:
        """Share the float layer's parameters."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.quantize(**parts)
        return layer

    def contract(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width


def channels_last(x: Tensor) -> Tensor:
    """NHWC in memory for 4-D tensors, anything else unchanged.

    Where dimensions of size 1 leave strides a choice, it is made: strides pick the algorithm, and so the rounding, of
    what comes next.
    """
    if x.ndim != 4:
        return x
    _, c, h, w = x.shape
    return x if x.stride() == (c * h * w, 1, w * c, c) else x.clone(memory_format=torch.channels_last)
