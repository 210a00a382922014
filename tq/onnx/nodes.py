"""A node of a traced network and its place in the ONNX graph: what an operator's translation works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import fx, nn

from tq.onnx.graph import Graph
from tq.traced import source


class Context:
    """The graph so far; `values` are the ONNX names of the results of the nodes that are in it."""

    def __init__(self, graph: Graph, modules: Mapping[str, nn.Module]) -> None:
        self.graph, self.modules = graph, modules
        self.values: dict[fx.Node, str] = {}

    def unknown(self, node: fx.Node, why: str = "has no ONNX translation in tq") -> ValueError:
        what = node.target if node.op != "call_module" else type(self.modules[str(node.target)]).__name__
        what = getattr(what, "__name__", what)
        return ValueError(
            f"node {node.name} ({what}) {why}; replace it in the network, or export with --pt2, which takes any node"
        )

    def of(self, value: Any, node: fx.Node) -> str:
        """The ONNX name of an argument: a node's value, or a number as a constant."""
        if isinstance(value, fx.Node) and value in self.values:
            return self.values[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self.graph.constant(f"number_{float(value)!r}", np.float32(value))
        raise self.unknown(node, f"reads {value}, which is no tensor and no number")

    def add(self, op: str, node: fx.Node, *inputs: str, **attributes: Any) -> str:
        return self.graph.add(op, [self.of(source(node), node), *inputs], node.name, **attributes)
