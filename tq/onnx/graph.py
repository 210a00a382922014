"""Packed layers as ONNX: integer weights behind DequantizeLinear, quantized inputs, Conv or Gemm in between ("QDQ").

    x -> QuantizeLinear (-> Clip on the codes) -> DequantizeLinear --+
    integer weight [O, ...] -> DequantizeLinear (scale [O], axis 0) -+-> Conv or Gemm, bias in it (-> Mul by sign)

Engines recognize the pattern and compute it in integers, or in float32 where they do not; sums are then rounded in
another order than ours, so logits are close and not equal. Three things are not the textbook's:

- The weight scale carries the folded batch normalization, whose gamma may be negative, where QDQ needs positive scales:
  such a channel's codes change sign. The lowest code, -2^(bits-1), has no opposite; a layer that has one in such a
  channel keeps the file's codes, and its sums are multiplied by the signs, which float32 does exactly.
- The bias is an operand of Conv only at 8 bits. ONNX Runtime rounds such a bias to whole accumulator steps (its
  WeightBiasQuantization), which are fine at 8 bits and coarse below: with it, resnet20-w1a2 got another class on 9 % of
  the CIFAR images. Below 8 bits an Add behind Conv keeps it float.
- Powers of two are int8 codes where these hold them, up to 4 bits; beyond, float32 weights with the same values.
- Below 8 bits the input's codes are clipped between QuantizeLinear and DequantizeLinear, as in arXiv 2206.07527 (QCDQ).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tq.packed import Format, PackedConv2d, PackedLayer
from tq.peers import needed

OPSETS = {"int8": (13, 7), "int4": (21, 10)}
"""types that can hold a weight code, with the operator set and IR version in which DequantizeLinear takes them"""


def held_as(bits: int, weights: str) -> str:
    """The type that holds weight codes of 8 bits or less, for the choice "int8", "int4" or "auto" (4 bits as int4)."""
    return "int4" if (bits < 8 and weights == "int4") or (bits == 4 and weights == "auto") else "int8"


def code_bits(form: Format) -> int:
    """Bits of the integers that hold a layer's weight codes, 16 for none: powers of two from 5 bits on pass int8."""
    if not form.pow2:
        return form.weight_bits
    return 8 if form.weight_bits < 5 else 16


class Graph:
    """An ONNX graph as it grows: nodes in the order of execution, constants by name. weights: see `held_as`."""

    def __init__(self, weights: str) -> None:
        self.onnx: Any = needed("onnx")
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.types: set[str] = set()
        self.inputs: dict[tuple[Any, ...], str] = {}

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """A node with one output; returns the output's name, /name, so that no input or constant has it."""
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [f"/{name}"], name=name, **attributes))
        return f"/{name}"

    def constant(self, name: str, value: np.ndarray | np.generic | Tensor) -> str:
        """A constant, once for each name; returns it."""
        if name not in self.constants:
            array = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else np.asarray(value)
            self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def codes(self, name: str, codes: np.ndarray, bits: int) -> str:
        """Weight codes int8 [O, ...] of `bits` bits as a constant of the type that holds them; returns the name."""
        held = held_as(bits, self.weights)
        self.types.add(held)
        if held == "int8":
            return self.constant(name, codes)
        flat = np.append(codes.reshape(-1), np.zeros(codes.size % 2, np.int8)).view(np.uint8) & 15
        pairs = (flat[0::2] | flat[1::2] << 4).tobytes()
        kind = self.onnx.TensorProto.INT4
        self.constants[name] = self.onnx.helper.make_tensor(name, kind, codes.shape, pairs, raw=True)
        return name

    def end(self, value: str) -> None:
        """Make a value the network's result, "logits"."""
        self.nodes.append(self.onnx.helper.make_node("Identity", [value], ["logits"], name="/logits"))

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """The checked ModelProto. inputs, outputs: ValueInfoProto."""
        opset, version = max(OPSETS[held] for held in self.types | {"int8"})
        graph = self.onnx.helper.make_graph(self.nodes, "tq", inputs, outputs, list(self.constants.values()))
        opsets = [self.onnx.helper.make_opsetid("", opset)]
        model = self.onnx.helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="tq")
        self.onnx.checker.check_model(model, full_check=True)
        return model


def add_layer(graph: Graph, layer: PackedLayer, name: str, x: str, output: str, *, dims: int) -> str:
    """A packed layer `name` on the value x; returns its output. dims: of x, 4 for a convolution, 2 or more else."""
    form = layer.format
    columns = (-1, 1, 1) if isinstance(layer, PackedConv2d) else (-1,)
    weight, sign = _weight(graph, layer, name)
    bias = layer.bias.detach().cpu().numpy()
    inside = sign is None and form.weight_bits in (8, 16) and form.act_bits in (8, 16)
    operands = [_input(graph, layer, x), weight, *([graph.constant(f"{name}.bias", bias)] if inside else [])]
    total = output if inside else f"{output}/sum"
    if isinstance(layer, PackedConv2d):
        geometry = conv_geometry(layer.stride, layer.padding, layer.dilation)
        y = graph.add("Conv", operands, total, kernel_shape=list(form.shape[2:]), group=layer.groups, **geometry)
    else:
        y = add_linear(graph, operands, total, dims=dims)
    if inside:
        return y
    if sign is not None:
        y = graph.add("Mul", [y, graph.constant(f"{name}.sign", sign.reshape(columns))], f"{output}/signed")
    return graph.add("Add", [y, graph.constant(f"{name}.bias", bias.reshape(columns))], output)


def add_linear(graph: Graph, operands: Sequence[str], output: str, *, dims: int) -> str:
    """x @ weight.T + bias of operands x, weight [N, K] and perhaps bias: Gemm, or MatMul beyond 2 dimensions."""
    if dims == 2:
        return graph.add("Gemm", operands, output, transB=1)
    x, weight, *bias = operands
    turned = graph.add("Transpose", [weight], f"{output}/weight", perm=[1, 0])
    product = graph.add("MatMul", [x, turned], f"{output}/product" if bias else output)
    return graph.add("Add", [product, *bias], output) if bias else product


def conv_geometry(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> dict[str, list[int]]:
    """ONNX attributes of (height, width) geometry; padding is the same on both sides."""
    return {"strides": list(stride), "pads": [*padding, *padding], "dilations": list(dilation)}


def _input(graph: Graph, layer: PackedLayer, x: str) -> str:
    """The value that the layer sees: x on its codes' grid. Layers that quantize x alike share it."""
    if layer.format.act_bits == 16:
        return x
    scale = np.float32(layer.input_scale.item())
    zero = 0 if layer.binary else layer.format.zero_point
    key = (x, scale.item(), zero, layer.qmin, layer.qmax, layer.binary)
    if key not in graph.inputs:
        name = f"{x.strip('/')}/q{len(graph.inputs)}"
        graph.inputs[key] = _signs(graph, x, scale, name) if layer.binary else _codes(graph, layer, x, scale, name)
    return graph.inputs[key]


def _signs(graph: Graph, x: str, scale: np.float32, name: str) -> str:
    """where(x >= 0, scale, -scale)."""
    zero = graph.constant("zero", np.float32(0))
    above = graph.add("GreaterOrEqual", [x, zero], f"{name}/positive")
    plus, minus = graph.constant(f"{name}/plus", scale), graph.constant(f"{name}/minus", -scale)
    return graph.add("Where", [above, plus, minus], name)


def _codes(graph: Graph, layer: PackedLayer, x: str, scale: np.float32, name: str) -> str:
    kind = np.int8 if layer.format.act_signed else np.uint8
    step = graph.constant(f"{name}/scale", scale)
    zero = graph.constant(f"{name}/zero_point", np.array(layer.format.zero_point, kind))
    q = graph.add("QuantizeLinear", [x, step, zero], f"{name}/codes")
    limits, own = (layer.qmin, layer.qmax), np.iinfo(kind)
    if limits != (own.min, own.max):
        low, high = (
            graph.constant(f"{end}_{kind.__name__}_{v}", np.array(v, kind))
            for end, v in zip(("low", "high"), limits, strict=True)
        )
        q = graph.add("Clip", [q, low, high], f"{name}/clipped")
    return graph.add("DequantizeLinear", [q, step, zero], name)


def _weight(graph: Graph, layer: PackedLayer, name: str) -> tuple[str, np.ndarray | None]:
    """The dequantized weight's name, and float32 signs [O] by which the layer's output is still to be multiplied."""
    bits = code_bits(layer.format)
    scale = layer.weight_scale.detach().cpu().numpy()
    columns = (-1, *[1] * (len(layer.format.shape) - 1))
    codes = layer.codes().detach().cpu().numpy()
    if bits == 16:
        return graph.constant(f"{name}.weight", codes * scale.reshape(columns)), None
    codes, magnitude, sign = positive_scales(codes.astype(np.int8), scale, bits)
    # called a second time, a layer has its weight there already
    if f"{name}.weight" in graph.constants:
        return f"/{name}.weight", sign
    inputs = [graph.codes(f"{name}.weight", codes, bits), graph.constant(f"{name}.weight_scale", magnitude)]
    return graph.add("DequantizeLinear", inputs, f"{name}.weight", axis=0), sign


def positive_scales(
    codes: np.ndarray, scale: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes int8 [O, ...] and positive scales float32 [O] of the same weight, and signs [O] where these must be apart.

    A channel of scale 0 becomes one of codes 0 and scale 1.
    """
    columns = (-1, *[1] * (codes.ndim - 1))
    negative, zero = (scale < 0).reshape(columns), (scale == 0).reshape(columns)
    magnitude = np.where(scale == 0, np.float32(1), np.abs(scale))
    codes = np.where(zero, np.int8(0), codes)
    if bits > 1 and bool((negative & (codes == -(2 ** (bits - 1)))).any()):
        return codes, magnitude, np.where(scale < 0, np.float32(-1), np.float32(1))
    return np.where(negative, -codes, codes), magnitude, None
