"""One packed network under every implementation of its arithmetic, as modules that `tq.divergence` can compare.

The reference is the oracle. "cpu" and "triton" are the operators of torch.ops.tq; in "native" every layer is a program
of its own (triton_kernels/native.py), and "fused" is the whole network as `tq.fuse` makes it, which has no layers left
to look at but must give the same output.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from tq.fusion import fuse
from tq.hooks import hooked
from tq.lower import lower, supported
from tq.packed import packed_layers
from triton_kernels import chain, native, ops


class NativeLayer(nn.Module):
    """One packed layer as a native program for inputs of one size."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        super().__init__()
        graph = fx.Graph()
        graph.output(graph.call_module("0", (graph.placeholder("x"),)))
        traced = fx.GraphModule(nn.Sequential(layer), graph)
        ShapeProp(traced).propagate(x)
        modules = dict(traced.named_modules())
        node = next(n for n in traced.graph.nodes if n.op == "call_module")
        if not supported(node, modules):
            raise ValueError("it is not one product of integers")
        self.run, self.how = chain.executor(lower(traced.graph, modules, (x,)), x.device, "native")
        self.flat = x.dim() == 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.run([x])[0]
        return y.flatten(1) if self.flat else y


def contenders(model: nn.Module, example: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """(networks by implementation, why the others cannot run here), for a packed network with impl "reference".

    example: float32 [N, C, H, W], images like those to come, on the model's device.
    """
    makers: dict[str, Callable[[], nn.Module]] = {
        "cpu": lambda: with_impl(model, "cpu", example.device),
        "native": lambda: native_layers(model, example),
        "triton": lambda: with_impl(model, "triton", example.device),
        "fused": lambda: _fused(model, example),
    }
    found, refused = {}, {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ValueError as error:
            refused[name] = str(error)
    return found, refused


def with_impl(model: nn.Module, impl: str, device: torch.device) -> nn.Module:
    """A copy of a packed network under another implementation. Raises ValueError if that cannot run on the device."""
    if impl == "triton" and device.type == "cpu":
        raise ValueError("the tensors are on cpu, where Triton only interprets")
    for op in ("int_conv2d", "int_matmul"):
        ops.choose(op, device, impl)
    other = copy.deepcopy(model)
    for layer in packed_layers(other).values():
        layer.impl = impl
        layer.prepare()
    return other


def native_layers(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a packed network whose integer layers are native programs. Raises ValueError if none can be."""
    if example.device.type != "cpu" or native.why_not():
        raise ValueError(native.why_not() or f"the tensors are on {example.device.type}")
    other = copy.deepcopy(model)
    inputs: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, given: Any, output: Tensor) -> None:
            inputs[name] = given[0]

        return seen

    with torch.no_grad(), hooked(layer.register_forward_hook(note(n)) for n, layer in packed_layers(model).items()):
        model(example)
    replaced = 0
    for name, layer in packed_layers(other).items():
        try:
            other.set_submodule(name, NativeLayer(layer, inputs[name]))
            replaced += 1
        except (KeyError, ValueError):
            continue
    if not replaced:
        raise ValueError("no layer of this network has a native program")
    return other


def _fused(model: nn.Module, example: Tensor) -> nn.Module:
    """The network as users run it; a part that would have changed predictions is a divergence, not a warning."""
    auto = copy.deepcopy(model)
    for layer in packed_layers(auto).values():
        layer.impl = "auto"
        layer.prepare()
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        fused = fuse(auto, example)
    texts = [str(w.message) for w in noted]
    marks = ("would change predictions", "would predict otherwise")
    if wrong := next((text for text in texts if any(mark in text for mark in marks)), None):
        return _Refused(model, wrong)
    if unread := next((text for text in texts if "torch.fx cannot read" in text), None):
        raise ValueError(unread)
    return fused


class _Refused(nn.Module):
    """Stands for a fused network that was found wrong: its logits are NaN."""

    def __init__(self, model: nn.Module, why: str) -> None:
        super().__init__()
        self.model, self.why = model, why

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(self.model(x), torch.nan)
