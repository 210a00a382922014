"""A network as torch.fx reads it, and what a node of such a graph says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx, nn

MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
"""`settings` of nn.MaxPool2d and F.max_pool2d"""


class Unreadable(ValueError):
    """torch.fx cannot read a network; `reason` is its own."""

    def __init__(self, model: nn.Module, reason: str) -> None:
        super().__init__(f"torch.fx cannot read {type(model).__name__} ({reason})")
        self.reason = reason


class _Tracer(fx.Tracer):
    def __init__(self, whole: Callable[[nn.Module], bool] | None = None) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (self.whole is not None and self.whole(m)) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, whole: Callable[[nn.Module], bool] | None = None) -> fx.GraphModule:
    """The network as a graph, in which modules of torch.nn, and those of which `whole` is true, are one node each.

    Raises Unreadable.
    """
    try:
        return fx.GraphModule(model, _Tracer(whole).trace(model))
    except Exception as error:  # torch.fx raises many kinds of errors for code that it cannot read
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise Unreadable(model, reason) from None


def shape(node: Any) -> tuple[int, ...] | None:
    """Shape of a node's value as `ShapeProp` has noted it, None for what is no tensor."""
    meta: Any = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if hasattr(meta, "shape") else None


def source(node: fx.Node) -> Any:
    """The first argument of a call, however it was passed."""
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensors"))


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call by its place or its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def settings(node: fx.Node, names: Sequence[str], modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What a layer or call is told beside its input, by name in the order of the call; None where a call says nothing.

    A layer keeps them as attributes of these names.
    """
    if node.op == "call_module":
        return {name: getattr(modules[str(node.target)], name) for name in names}
    return {name: argument(node, place, name) for place, name in enumerate(names, 1)}


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a setting that is one number where both are the same."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
