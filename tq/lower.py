"""torch.fx nodes of a packed network -> `triton_kernels.steps`: what the kernels can run, read from the graph.

`supported` decides node by node; `lower` turns a graph of supported nodes into a `Program`, in which the residual sum
and the ReLU behind a convolution have become part of it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tq.models import PadShortcut
from tq.packed import PackedConv2d, PackedLayer, PackedLinear
from tq.traced import MAX_POOL, pair, settings, shape
from triton_kernels.layout import pack_weight
from triton_kernels.steps import Codes, Conv, Program, Step

_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.MaxPool2d: "max_pool",
    nn.AdaptiveAvgPool2d: "mean",
    nn.Flatten: "flatten",
    nn.Identity: "alias",
    nn.Dropout: "alias",
    nn.Dropout2d: "alias",
    PadShortcut: "pad_shortcut",
    PackedConv2d: "conv",
    PackedLinear: "linear",
}
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), "relu"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), "add"),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), "max_pool"),
    **dict.fromkeys((F.adaptive_avg_pool2d, torch.mean, "mean"), "mean"),
    **dict.fromkeys((torch.flatten, "flatten"), "flatten"),
}


def kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The kind of step that a node may be, by its name alone; "" for all others."""
    if node.op == "call_module":
        return _MODULES.get(type(modules[str(node.target)]), "")
    return _FUNCTIONS.get(node.target, "") if node.op in ("call_function", "call_method") else ""


def supported(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node, whose shapes `ShapeProp` has noted, is one that a step can be."""
    what, result = kind(node, modules), shape(node)
    if not what or result is None or len(result) not in (2, 4):
        return False
    sources = [shape(a) for a in node.all_input_nodes]
    source = sources[0] if sources else None
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if source is None or any(_dtype(n) != torch.float32 for n in (node, *node.all_input_nodes)):
        return False
    match what:
        case "conv" | "linear":
            layer: Any = modules[str(node.target)]
            return layer.one_product and len(source) == (4 if what == "conv" else 2)
        case "add":
            return len(node.args) == 2 and not node.kwargs and len(sources) == 2 and sources == [result, result]
        case "mean":
            return len(source) == 4 and result in (source[:2], (*source[:2], 1, 1))
        case "flatten":
            of_pixel = source[2:] in ((), (1, 1))
            read_by_layers = all(kind(u, modules) == "linear" and supported(u, modules) for u in node.users)
            return len(result) == 2 and result[0] == source[0] and (of_pixel or read_by_layers)
        case "max_pool":
            pool = settings(node, MAX_POOL, modules)
            return len(source) == 4 and not pool["ceil_mode"] and not pool["return_indices"]
        case "pad_shortcut":
            return len(source) == 4
    return len(node.all_input_nodes) == 1


def lower(graph: fx.Graph, modules: Mapping[str, nn.Module], inputs: Sequence[Tensor]) -> Program:
    """The program of a graph of supported nodes. inputs: tensors like its own, for their shapes."""
    values: dict[fx.Node, int] = {}
    steps: dict[int, Step] = {}
    reads = Counter(_root(a, modules) for node in graph.nodes for a in node.all_input_nodes if _is_read(node, modules))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for i, node in enumerate(placeholders):
        values[node] = -1 - i
    for node in graph.nodes:
        if node.op in ("placeholder", "output") or kind(node, modules) in ("alias", "flatten"):
            continue
        sources = [_root(a, modules) for a in node.args[:2] if isinstance(a, fx.Node)]
        step = _step(node, modules, [values[s] for s in sources])
        if kind(node, modules) in ("add", "relu"):
            # the first of the operands that nothing else reads and that can take this in
            host = next((s for s in sources if reads[s] == 1 and _absorbs(steps.get(values[s]), step)), None)
            if host is not None:
                old = steps.pop(values[host])
                others = [values[s] for s in sources if s is not host]
                step = replace(old, relu=old.relu or step.relu, residual=others[0] if others else old.residual)
        values[node] = number = len(graph.nodes) + len(values)
        steps[number] = step
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = output.args[0] if isinstance(output.args[0], tuple | list) else [output.args[0]]
    return _numbered(steps, [_image(x.shape) for x in inputs], [values[_root(r, modules)] for r in results])


def image(node: fx.Node) -> tuple[int, int, int]:
    """[C, H, W] of a node's value, a vector being an image of one pixel."""
    size = shape(node)
    assert size is not None
    return _image(size)


def _step(node: fx.Node, modules: Mapping[str, nn.Module], sources: list[int]) -> Step:
    source, result = sources[0], shape(node)
    assert result is not None
    match kind(node, modules):
        case "add":
            return Step(kind="add", source=source, residual=sources[1])
        case "relu":
            return Step(kind="add", source=source, relu=True)
        case "mean":
            return Step(kind="mean", source=source)
        case "max_pool":
            pool = settings(node, MAX_POOL, modules)
            kernel = pair(pool["kernel_size"])
            return Step(
                kind="max_pool", source=source, kernel=kernel, stride=pair(pool["stride"] or kernel),
                padding=pair(pool["padding"] or 0), dilation=pair(pool["dilation"] or 1),
            )  # fmt: skip
    module: Any = modules[str(node.target)]
    if isinstance(module, PadShortcut):
        return Step(kind="pad_shortcut", source=source, stride=(2, 2), front=module.before, channels=result[1])
    conv = _conv(module, shape(_root(node.args[0], modules)))
    if isinstance(module, PackedLinear):
        return Step(kind="conv", source=source, conv=conv, kernel=conv.shape[2:])
    return Step(
        kind="conv", source=source, conv=conv, kernel=conv.shape[2:], stride=module.stride, padding=module.padding,
        dilation=module.dilation,
    )  # fmt: skip


def _conv(layer: PackedLayer, source: tuple[int, ...] | None) -> Conv:
    """A layer's numbers; a linear one becomes a convolution over the whole of the image that was flattened for it."""
    assert source is not None
    packed, bits, size = getattr(layer, layer.kernels[0]), layer.kernel_bits, layer.format.shape
    if len(size) == 2:
        size = (size[0], *_image(source))
        if size[2:] != (1, 1):
            packed = pack_weight(layer.codes().to(torch.int8).reshape(size), bits)
    top = 0 if layer.binary else layer.qmax - layer.qmin
    reads = Codes(float(layer.inverse), layer.u8_zero, 0, top, layer.binary)
    groups = layer.groups if isinstance(layer, PackedConv2d) else 1
    out, inside, height, width = size
    return Conv(
        packed=packed, bits=bits, shape=(out, inside, height, width), scale=layer.scale, bias=layer.bias,
        reads=reads, groups=groups,
    )  # fmt: skip


def _absorbs(host: Step | None, step: Step) -> bool:
    """Whether `step`, a sum or a ReLU, can be done at the end of `host`."""
    if host is None or host.kind not in ("conv", "add") or host.relu:
        return False
    return step.residual is None or host.residual is None


def _numbered(steps: dict[int, Step], inputs: list[tuple[int, int, int]], outputs: list[int]) -> Program:
    order = {number: i for i, number in enumerate(steps)} | {-1 - i: -1 - i for i in range(len(inputs))}

    def of(value: int | None) -> int | None:
        return None if value is None else order[value]

    renumbered = [replace(s, source=order[s.source], residual=of(s.residual)) for s in steps.values()]
    return Program(tuple(renumbered), tuple(inputs), tuple(order[v] for v in outputs))


def _root(node: Any, modules: Mapping[str, nn.Module]) -> fx.Node:
    """The node whose numbers a node hands on."""
    while kind(node, modules) in ("alias", "flatten"):
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


def _is_read(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return kind(node, modules) not in ("alias", "flatten")


def _image(shape: Sequence[int]) -> tuple[int, int, int]:
    return (shape[1], shape[2], shape[3]) if len(shape) == 4 else (shape[1], 1, 1)


def _dtype(node: fx.Node) -> torch.dtype | None:
    return getattr(node.meta.get("tensor_meta"), "dtype", None)
