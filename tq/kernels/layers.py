"""The tensors of one benchmarked layer, what the operators make of them, and the check of a result.

x repeats a few distinct rows (or images), so that the reference, float64 on the CPU, computes only these, and still
every row and every output channel of a contender is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from tq.kernels.shapes import Problem, Shape
from triton_kernels import reference
from triton_kernels.layout import code_range, pack_weight, row_bytes, unpack_weight
from triton_kernels.spec import Input, Output

DISTINCT_ROWS, DISTINCT_IMAGES = 13, 3
FLOAT_ERROR = 1e-3
"""mean |difference| / mean |reference| allowed for floats of weight-only layers"""
PEAK, STEPS_PER_UNIT = 4.0, 64.0
"""inputs are quantized on -4..4, or 0..4 before convolutions; codes of the outputs are 1/64 apart"""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Quantized:
    """A layer's numbers for one kind of activation. x: the distinct rows; step: what one code of x is worth."""

    x: Tensor
    given: Input
    out: Output
    step: float = 1.0


class Layer:
    """Weights at all widths and inputs of all kinds for one shape on one device, made when first asked for."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self.float_dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        generator = torch.Generator(device).manual_seed(0)
        distinct = DISTINCT_IMAGES if shape.conv else DISTINCT_ROWS
        x = torch.randn(distinct, *shape.input, generator=generator, device=device)
        self.x = x.relu().contiguous(memory_format=torch.channels_last) if shape.conv else x
        self.gain = torch.rand(shape.weight[0], generator=generator, device=device) + 0.5
        shift = torch.randn(shape.weight[0], generator=generator, device=device)
        self.bias = shift if shape.conv else None
        self._packed: dict[int, Tensor] = {}
        self._quantized: dict[str, Quantized] = {}
        self._kept: dict[tuple[int, str], Tensor] = {}

    def packed(self, bits: int) -> Tensor:
        """The canonical packed weight of random codes."""
        if bits not in self._packed:
            low, high = code_range(bits)
            generator = torch.Generator(self.device).manual_seed(bits)
            first, last = (0, 1) if bits == 1 else (low, high)
            codes = torch.randint(
                first, last + 1, self.shape.weight, generator=generator, device=self.device, dtype=torch.int8
            )
            self._packed[bits] = pack_weight(codes * 2 - 1 if bits == 1 else codes, bits)
        return self._packed[bits]

    def weight_scale(self, bits: int) -> Tensor:
        """float32 [O]: outputs are about as large as inputs."""
        spread = 1.0 if bits == 1 else sqrt((4.0**bits - 1) / 12)
        return self.gain / (sqrt(self.shape.k) * spread)

    def float_weight(self, bits: int, dtype: torch.dtype) -> Tensor:
        """The weight written out."""
        codes = unpack_weight(self.packed(bits), bits, self.shape.weight).to(torch.float32)
        return (codes * self.weight_scale(bits).view(-1, *[1] * (codes.dim() - 1))).to(dtype)

    def quantized(self, activation: str) -> Quantized:
        """activation: a float dtype of DTYPES (weight-only), "static", "dynamic", or "codes" (already int8)."""
        if activation not in self._quantized:
            self._quantized[activation] = self._quantize(activation)
        return self._quantized[activation]

    def _quantize(self, activation: str) -> Quantized:
        conv = self.shape.conv
        x = self.x.to(DTYPES.get(activation, self.float_dtype))
        if activation in DTYPES or not conv:
            out = Output(relu=conv, dtype=x.dtype)
        else:
            out = Output(relu=True, inv_scale=torch.tensor(STEPS_PER_UNIT, device=self.device))
        if activation in DTYPES:
            return Quantized(x, Input(), out)
        if activation == "dynamic":
            return Quantized(x, Input(dynamic=True), out)
        step = PEAK / (255 if conv else 127)
        inverse = torch.tensor(1 / step, device=self.device)
        if activation == "static":
            low, high = (0, 255) if conv else (-128, 127)
            return Quantized(x, Input(inv_scale=inverse, qmin=low, qmax=high), out, step)
        # what a kernel in front would hand over: bytes from 0 after a ReLU; signed ones as int8 on a GPU and, because
        # x86 multiplies unsigned bytes, with zero point 128 on a CPU
        signed, zero = not conv and self.device.type != "cpu", 0 if conv or self.device.type != "cpu" else 128
        low, high, dtype = (-128, 127, torch.int8) if signed else (0, 255, torch.uint8)
        codes = reference.codes_of(x, inverse, zero, low, high, dtype=dtype)
        return Quantized(codes, Input(zero_point=zero), out, step)

    def scale(self, bits: int, activation: str) -> Tensor:
        """Of the accumulators: the weight's times the input's."""
        return self.weight_scale(bits) * self.quantized(activation).step

    def expected(self, bits: int, activation: str) -> Tensor:
        """The reference's outputs for the distinct rows, computed on the CPU."""

        def make() -> Tensor:
            q = self.quantized(activation)
            given = Input(**{k: _cpu(v) for k, v in vars(q.given).items()})
            out = Output(**{k: _cpu(v) for k, v in vars(q.out).items() if k != "out_dtype"})
            args = (q.x.cpu(), self.packed(bits).cpu(), bits, self.shape.weight, self.scale(bits, activation).cpu())
            if not self.shape.conv:
                return reference.quant_matmul(*args, given=given, out=out)
            return reference.quant_conv2d(*args, _cpu(self.bias), **self.geometry, given=given, out=out)

        return self.keep(bits, activation, make)

    def keep(self, bits: int, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returns, made once for all numbers of rows."""
        if (bits, name) not in self._kept:
            self._kept[bits, name] = make()
        return self._kept[bits, name]

    @property
    def geometry(self) -> dict[str, Any]:
        """Stride and padding, as the operators take them."""
        return {"stride": (self.shape.stride,) * 2, "padding": (self.shape.padding,) * 2}

    def repeat(self, distinct: Tensor, rows: int) -> Tensor:
        """`rows` rows or images, the distinct ones over and over."""
        found = distinct[torch.arange(rows, device=distinct.device) % len(distinct)]
        return found.contiguous(memory_format=torch.channels_last) if self.shape.conv else found

    def check(self, y: Tensor, distinct: Tensor, rows: int, error: float | None) -> tuple[str, str]:
        """(what was found, "") or ("", what is wrong). error: the relative mean error allowed; None: equal."""
        want = self.repeat(distinct.to(y.device), rows)
        if y.shape != want.shape or y.dtype != want.dtype:
            return "", f"wrong: {y.dtype} {list(y.shape)} instead of {want.dtype} {list(want.shape)}"
        if torch.equal(y, want):
            return "equals reference", ""
        if error is None:
            apart = y != want
            most = float((y.double() - want.double()).abs().max())
            return "", f"wrong: {int(apart.sum()):,} of {y.numel():,} differ from the reference, by up to {most:.3g}"
        y, want = y.float(), want.float()
        off = float((y - want).abs().mean() / want.abs().mean())
        return (f"mean error {off:.1e}", "") if off < error else ("", f"wrong: relative mean error {off:.1e}")


def least_bytes(problem: Problem, bits: int, x: torch.dtype, y: torch.dtype) -> int:
    """What must move: packed weights, scales (and biases of a convolution), inputs and outputs, each once."""
    shape = problem.shape
    vectors = 0 if bits > 8 else 4 * shape.weight[0]
    vectors += 4 * shape.weight[0] if shape.conv else 0
    weight = shape.weight[0] * (shape.k * bits // 8 if bits > 8 else row_bytes(shape.k, bits))
    inputs, outputs = torch.Size(shape.input).numel(), torch.Size(shape.output).numel()
    return weight + vectors + problem.rows * (inputs * x.itemsize + outputs * y.itemsize)


def _cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
