"""Make of a packed network one that keeps its activations as integers from layer to layer.

`fuse` reads the network with torch.fx and collects what the kernels can do together: packed layers with the residual
sum and the ReLU behind them, pooling, and the quantization of the next layer's input. Each connected part becomes one
call: on a CPU a `native` plan, elsewhere a chain of `tq::quant_conv2d`. Layers that stayed float, and whatever else the
network does, remain torch operations between the parts. Predictions do not change: every part is compared with the
layers that it replaces, bit for bit, before it is used. `left_alone` names the packed layers that are in no part.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_leaves, tree_map

from tq.hooks import hooked
from tq.lower import image, kind, lower, supported
from tq.packed import PackedLayer, packed_layers
from tq.packed_graph import trace_packed
from tq.relu6 import without_relu6
from tq.traced import Unreadable
from triton_kernels import chain
from triton_kernels.native import mean_is_exact, why_not
from triton_kernels.steps import Program

PREFIX = "tq_fused_"
"""of the parts' names; unlike any that a network would have"""


class Fused(nn.Module):
    """One part of a network as a single call on its inputs. `how` says what runs it."""

    def __init__(self, program: Program, vectors: tuple[bool, ...], executor: Callable[..., list[Tensor]], how: str):
        super().__init__()
        self.program, self.vectors, self.executor, self.how = program, vectors, executor, how

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.executor(inputs)
        shaped = tuple(y.flatten(1) if flat else y for y, flat in zip(outputs, self.vectors, strict=True))
        return shaped[0] if len(shaped) == 1 else shaped

    def extra_repr(self) -> str:
        return f"{len(self.program.steps)} steps, {self.how}"


def fuse(model: nn.Module, example: Tensor, *, impl: str = "auto") -> nn.Module:
    """A network with the predictions of `model` (packed, in evaluation mode), for images of the example's size.

    example: float32 [N, C, H, W] on the model's device, N >= 1, like the images to come; it is run, to learn shapes and
    to check every part. impl: "auto", "native" (CPU, needs a C++ compiler), or an implementation of
    triton_kernels.ops for a chain of operators. The result shares the model's tensors and cannot be trained.
    Raises ValueError: nothing is packed, or `impl` cannot be followed. A network that torch.fx cannot read is returned
    as it is, with a warning; so is a part that would compute something else.
    """
    if not any(isinstance(m, PackedLayer) for m in model.modules()):
        raise ValueError(f"expected a packed network, got a {type(model).__name__} without packed layers: use tq.load")
    try:
        traced = trace_packed(model)
    except Unreadable as error:
        warnings.warn(f"{error}; it is not fused", stacklevel=2)
        return model
    with torch.no_grad():
        # copies: the network's first operation may be in place
        expected = model(example.clone())
        without_relu6(traced)
        # two images: with one, what is added to every image looks like an image of the batch
        ShapeProp(traced).propagate(example.repeat(2, 1, 1, 1) if len(example) == 1 else example.clone())
        plan = impl in ("auto", "native") and example.device.type == "cpu" and not why_not()
        whole = _partitioned(traced, plan)
        for name, (part, inputs, outputs) in _record(whole, example.clone()).items():
            whole.set_submodule(name, _replacement(part, inputs, outputs, impl))
        if not _same(whole(example.clone()), expected):
            warnings.warn(
                f"{type(model).__name__} would predict otherwise when fused; it is left as it was", stacklevel=2
            )
            return model
    return whole.eval()


def fused_parts(model: nn.Module) -> list[Fused]:
    """The fused parts of a network."""
    return [m for m in model.modules() if isinstance(m, Fused)]


def left_alone(model: nn.Module) -> list[str]:
    """Packed layers of a fused network that are in none of its parts, as they are not one product of integers."""
    if not isinstance(model, fx.GraphModule):
        return list(packed_layers(model))
    called = dict.fromkeys(str(node.target) for node in model.graph.nodes if node.op == "call_module")
    return [name for name in called if isinstance(model.get_submodule(name), PackedLayer)]


class _Support(OperatorSupportBase):
    def __init__(self, native: bool) -> None:
        super().__init__()
        self.native = native

    def is_node_supported(self, submodules: Mapping[str, nn.Module], node: fx.Node) -> bool:
        if not supported(node, submodules):
            return False
        # a mean that would be summed in another order than torch's is left to torch
        return not self.native or kind(node, submodules) != "mean" or mean_is_exact(*image(node.all_input_nodes[0]))


def _partitioned(traced: fx.GraphModule, native: bool) -> fx.GraphModule:
    modules = dict(traced.named_modules())
    partitioner = CapabilityBasedPartitioner(traced, _Support(native), allows_single_node_partition=True)
    partitions = [
        p for p in partitioner.propose_partitions() if any(kind(n, modules) in ("conv", "linear") for n in p.nodes)
    ]
    return partitioner.fuse_partitions(partitions, prefix=PREFIX)


def _record(whole: nn.Module, example: Tensor) -> dict[str, tuple[fx.GraphModule, tuple[Tensor, ...], Any]]:
    """Every part, what goes into it and what comes out of it when the network runs on the example.

    These are copies, because an operation in place, inside or behind a part, would overwrite them.
    """
    seen: dict[str, tuple[fx.GraphModule, tuple[Tensor, ...], Any]] = {}
    given: dict[str, tuple[Tensor, ...]] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            given[name] = tuple(x.clone() for x in inputs)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...], outputs: Any) -> None:
            seen[name] = (module, given[name], tree_map(torch.clone, outputs))

        return hook

    parts = {name: part for name, part in whole.named_children() if name.startswith(PREFIX)}
    handles = [part.register_forward_pre_hook(before(name)) for name, part in parts.items()]
    handles += [part.register_forward_hook(after(name)) for name, part in parts.items()]
    with hooked(handles):
        whole(example)
    return seen


def _replacement(part: fx.GraphModule, inputs: tuple[Tensor, ...], outputs: Any, impl: str) -> nn.Module:
    expected = outputs if isinstance(outputs, tuple | list) else (outputs,)
    program = lower(part.graph, dict(part.named_modules()), inputs)
    vectors = tuple(y.dim() == 2 for y in expected)
    for choice in chain.choices(program, inputs[0].device, impl):
        fused = Fused(program, vectors, *chain.executor(program, inputs[0].device, choice))
        if _same(fused(*inputs), tuple(expected) if len(expected) > 1 else expected[0]):
            return fused
    warnings.warn(f"{len(program.steps)} fused steps would change predictions and are left as they were", stacklevel=3)
    return part


def _same(a: Any, b: Any) -> bool:
    """Whether two results have the same tensors, bit for bit (NaN is NaN)."""
    ours, theirs = ([x for x in tree_leaves(result) if isinstance(x, Tensor)] for result in (a, b))
    return len(ours) == len(theirs) and all(
        x.equal(y) or (x.isnan().equal(y.isnan()) and x.nan_to_num(7).equal(y.nan_to_num(7)))
        for x, y in zip(ours, theirs, strict=True)
    )
