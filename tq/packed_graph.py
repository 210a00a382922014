"""A packed network as a graph: its own layers are nodes, whatever they call inside."""

from __future__ import annotations

from torch import fx, nn

from tq.models import PadShortcut
from tq.packed import PackedLayer
from tq.traced import trace


def trace_packed(model: nn.Module) -> fx.GraphModule:
    """The graph that tq/lower.py and tq/onnx translate node by node. Raises tq.traced.Unreadable."""
    return trace(model, lambda m: isinstance(m, PackedLayer | PadShortcut))
