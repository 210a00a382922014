"""A packed network, read with torch.fx, as an ONNX model. The batch is dynamic, the image size is fixed.

Packed layers are tq/onnx/graph.py's, everything else tq/onnx/operators.py's. A node without a translation is a
ValueError that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from tq.onnx.graph import Graph
from tq.onnx.nodes import Context
from tq.onnx.operators import FUNCTIONS, MODULES
from tq.packed import PackedLayer
from tq.packed_graph import trace_packed
from tq.traced import Unreadable, shape, source


def build(model: nn.Module, example: Tensor, weights: str = "auto") -> Any:
    """The ONNX model (checked ModelProto) of a packed network in evaluation mode: input "x", output "logits".

    example: float32 [2, C, H, W], run once for the shapes. weights: see graph.held_as. Raises ValueError: torch.fx
    cannot read the network, or it has a node without a translation.
    """
    try:
        traced = trace_packed(model)
    except Unreadable as error:
        raise ValueError(
            f"expected a network that torch.fx can read, got {type(model).__name__} ({error.reason}); "
            "take branches on data out of its forward"
        ) from None
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
    return _model(Context(Graph(weights), dict(model.named_modules())), traced, example)


def _model(context: Context, traced: fx.GraphModule, example: Tensor) -> Any:
    nodes, graph = list(traced.graph.nodes), context.graph
    for node in nodes:
        # what is no tensor (sizes, an argument's default) is known from the example
        if node.op != "output" and shape(node) is not None:
            context.values[node] = _translate(context, traced, node)
    result = nodes[-1].args[0]
    if not isinstance(result, fx.Node) or result not in context.values:
        raise ValueError(f"expected a network with one tensor as its result, got {result}; return the logits alone")
    graph.end(context.values[result])
    helper, kind = graph.onnx.helper, graph.onnx.TensorProto.FLOAT
    ends = (("x", tuple(example.shape)), ("logits", shape(result) or ()))
    infos = [helper.make_tensor_value_info(n, kind, ["batch", *size[1:]]) for n, size in ends]
    return graph.model(infos[:1], infos[1:])


def _translate(context: Context, traced: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "placeholder":
        return "x"
    if node.op == "get_attr":
        return context.graph.constant(f"/{node.target}", _attribute(traced, str(node.target)))
    read = source(node)
    if _in_place(node, context.modules) and isinstance(read, fx.Node) and len(read.users) > 1:
        raise context.unknown(node, f"changes {read.name} in place, which other nodes read too")
    if node.op == "call_module":
        module = context.modules[str(node.target)]
        kind = next((k for k in type(module).__mro__ if k in MODULES), None)
        if kind is not None and (kind is PackedLayer or type(module) is kind):
            return MODULES[kind](context, node, module)
    elif node.target in FUNCTIONS:
        return FUNCTIONS[node.target](context, node)
    raise context.unknown(node)


def _in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node overwrites its first argument, which a value of ONNX never does."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return bool(node.kwargs.get("inplace")) or name.endswith("_") or name in ("iadd", "isub", "imul")


def _attribute(root: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    tensor = getattr(root.get_submodule(owner), name)
    assert isinstance(tensor, Tensor)
    return tensor
