"""ONNX operators for the nodes of a traced network: activations, sums, pooling, shapes, and layers that stayed float.

A translation is f(context, node), or f(context, node, module), and returns the ONNX name of the node's value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from tq.models import PadShortcut
from tq.onnx.graph import add_layer, add_linear, conv_geometry
from tq.onnx.nodes import Context
from tq.packed import PackedLayer
from tq.traced import MAX_POOL, argument, pair, settings, shape, source


def _alias(t: Context, node: fx.Node, *_: Any) -> str:
    return t.of(source(node), node)


def _plain(op: str, **attributes: Any) -> Callable[..., str]:
    """A node of one input that is one operator."""
    return lambda t, node, *_: t.add(op, node, **attributes)


def _clip(low: float, high: float) -> Callable[..., str]:
    def clip(t: Context, node: fx.Node, *_: Any) -> str:
        return t.add("Clip", node, t.of(low, node), t.of(high, node))

    return clip


def _hardtanh(t: Context, node: fx.Node, module: nn.Hardtanh) -> str:
    return _clip(module.min_val, module.max_val)(t, node)


def _gated(op: str, **attributes: Any) -> Callable[..., str]:
    """x * op(x)."""

    def gated(t: Context, node: fx.Node, *_: Any) -> str:
        x = t.of(source(node), node)
        return t.graph.add("Mul", [x, t.graph.add(op, [x], f"{node.name}/gate", **attributes)], node.name)

    return gated


def _binary(op: str) -> Callable[..., str]:
    def binary(t: Context, node: fx.Node) -> str:
        if node.kwargs.keys() - {"input", "other"}:
            raise t.unknown(node, f"has arguments ({', '.join(node.kwargs)}) without an ONNX translation in tq")
        other = argument(node, 1, "other")
        return t.graph.add(op, [t.of(source(node), node), t.of(other, node)], node.name)

    return binary


def _packed(t: Context, node: fx.Node, layer: PackedLayer) -> str:
    x = source(node)
    dims = len(shape(x) or ())
    return add_layer(t.graph, layer, str(node.target), t.of(x, node), node.name, dims=dims)


def _conv(t: Context, node: fx.Node, layer: nn.Conv2d) -> str:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise t.unknown(node, f"has padding {layer.padding!r} of mode {layer.padding_mode!r}, not zeros in numbers")
    geometry = conv_geometry(layer.stride, layer.padding, layer.dilation)
    kernel = list(layer.kernel_size)
    return t.add("Conv", node, *_parameters(t, node, layer), kernel_shape=kernel, group=layer.groups, **geometry)


def _linear(t: Context, node: fx.Node, layer: nn.Linear) -> str:
    operands = [t.of(source(node), node), *_parameters(t, node, layer)]
    return add_linear(t.graph, operands, node.name, dims=len(shape(source(node)) or ()))


def _parameters(t: Context, node: fx.Node, layer: nn.Conv2d | nn.Linear) -> list[str]:
    found = {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})
    return [t.graph.constant(f"{node.target}.{name}", tensor) for name, tensor in found.items()]


def _batch_norm(t: Context, node: fx.Node, norm: nn.BatchNorm2d) -> str:
    if norm.running_mean is None or norm.running_var is None:
        raise t.unknown(node, "normalizes by the batch's own statistics, which a deployed network cannot")
    ones = torch.ones_like(norm.running_mean)
    tensors = {
        "weight": norm.weight if norm.affine else ones,
        "bias": norm.bias if norm.affine else ones * 0,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }
    constants = [t.graph.constant(f"{node.target}.{name}", tensor) for name, tensor in tensors.items()]
    return t.add("BatchNormalization", node, *constants, epsilon=norm.eps)


def _pool(t: Context, node: fx.Node, names: Sequence[str]) -> dict[str, Any]:
    """Settings of a pooling layer or call; `names` are its arguments in order, the first is the kernel's size."""
    found = {name: value for name, value in settings(node, names, t.modules).items() if value is not None}
    kernel, padding = pair(found["kernel_size"]), pair(found.get("padding", 0))
    if found.get("return_indices") or found.get("divisor_override"):
        raise t.unknown(node, "returns indices or has its own divisor, which have no ONNX translation in tq")
    return {
        "kernel_shape": kernel,
        "strides": pair(found.get("stride") or kernel),
        "pads": [*padding, *padding],
        "ceil_mode": int(bool(found.get("ceil_mode"))),
        "dilations": pair(found.get("dilation", 1)),
        "count_include_pad": int(bool(found.get("count_include_pad", True))),
    }


def _max_pool(t: Context, node: fx.Node, *_: Any) -> str:
    attributes = _pool(t, node, MAX_POOL)
    del attributes["count_include_pad"]
    return t.add("MaxPool", node, **attributes)


def _avg_pool(t: Context, node: fx.Node, *_: Any) -> str:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    attributes = _pool(t, node, names)
    del attributes["dilations"]
    return t.add("AveragePool", node, **attributes)


def _adaptive(t: Context, node: fx.Node, *_: Any) -> str:
    before, after = shape(source(node)), shape(node)
    assert before is not None and after is not None
    if after[2:] == (1, 1):
        return t.add("GlobalAveragePool", node)
    if before[2] % after[2] or before[3] % after[3]:
        raise t.unknown(node, f"pools {before[2:]} pixels to {after[2:]}, which have no common kernel")
    kernel = [before[2] // after[2], before[3] // after[3]]
    return t.add("AveragePool", node, kernel_shape=kernel, strides=kernel)


def _mean(t: Context, node: fx.Node) -> str:
    before, dims = shape(source(node)), argument(node, 1, "dim")
    if before is None or len(before) != 4 or not isinstance(dims, tuple | list) or {d % 4 for d in dims} != {2, 3}:
        raise t.unknown(node, f"takes the mean over {dims}; only that over height and width has a translation in tq")
    if argument(node, 2, "keepdim", False):
        return t.add("GlobalAveragePool", node)
    pooled = t.graph.add("GlobalAveragePool", [t.of(source(node), node)], f"{node.name}/pooled")
    return t.graph.add("Flatten", [pooled], node.name, axis=1)


def _reshape(t: Context, node: fx.Node, *_: Any) -> str:
    before, after = shape(source(node)), shape(node)
    assert before is not None and after is not None
    if not after or after[0] != before[0]:
        raise t.unknown(node, f"makes {list(after)} of {list(before)}, which mixes the images of a batch")
    if len(after) == 2:
        return t.add("Flatten", node, axis=1)
    sizes = np.array([0, *after[1:]], np.int64)
    return t.add("Reshape", node, t.graph.constant(f"{node.name}/shape", sizes))


def _cat(t: Context, node: fx.Node) -> str:
    parts = source(node)
    return t.graph.add("Concat", [t.of(p, node) for p in parts], node.name, axis=argument(node, 1, "dim", 0))


def _pad_shortcut(t: Context, node: fx.Node, module: PadShortcut) -> str:
    ends = {"starts": [0, 0], "ends": [2**31 - 1] * 2, "axes": [2, 3], "steps": [2, 2]}
    limits = [t.graph.constant(f"every_second_{n}", np.array(v, np.int64)) for n, v in ends.items()]
    thinned = t.graph.add("Slice", [t.of(source(node), node), *limits], f"{node.name}/thinned")
    pads = np.array([0, module.before, 0, 0, 0, module.after, 0, 0], np.int64)
    return t.graph.add("Pad", [thinned, t.graph.constant(f"{node.name}/pads", pads)], node.name)


_SIXTH = {"alpha": 1 / 6, "beta": 0.5}
MODULES: dict[type[nn.Module], Callable[..., str]] = {
    PackedLayer: _packed,
    PadShortcut: _pad_shortcut,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.Flatten: _reshape,
    nn.ReLU: _plain("Relu"),
    nn.ReLU6: _clip(0, 6),
    nn.Hardtanh: _hardtanh,
    nn.Sigmoid: _plain("Sigmoid"),
    nn.Hardsigmoid: _plain("HardSigmoid", **_SIXTH),
    nn.Hardswish: _gated("HardSigmoid", **_SIXTH),
    nn.SiLU: _gated("Sigmoid"),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), _alias),
}
FUNCTIONS: dict[Any, Callable[..., str]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), _plain("Relu")),
    F.relu6: _clip(0, 6),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), _plain("Sigmoid")),
    F.hardsigmoid: _plain("HardSigmoid", **_SIXTH),
    F.hardswish: _gated("HardSigmoid", **_SIXTH),
    F.silu: _gated("Sigmoid"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _binary("Add")),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub"), _binary("Sub")),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _binary("Mul")),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool),
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _adaptive,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, "flatten", torch.reshape, "reshape", "view"), _reshape),
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    **dict.fromkeys((F.dropout, F.dropout2d, "contiguous"), _alias),
}
