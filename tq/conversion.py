"""Training form -> packed form: the step after which weights are integers."""

from __future__ import annotations

import copy

from torch import nn

from tq.attach import quant_layers
from tq.packed import format_of, make_packed


def convert(model: nn.Module, *, impl: str = "auto") -> nn.Module:
    """A packed copy of an attached network, in evaluation mode; its predictions equal `model.eval()`'s bit for bit.

    impl: "auto", "cpu" or "reference", see triton_kernels.ops.
    Raises ValueError when nothing in the network is quantized, and for weights that are NaN or infinite.
    """
    if not quant_layers(model):
        raise ValueError(f"{type(model).__name__} has no quantized layer to pack; call tq.attach first")
    packed = copy.deepcopy(model).eval()
    for name, layer in quant_layers(packed).items():
        new = make_packed(format_of(layer), layer, impl=impl).to(layer.weight.device).eval()
        try:
            new.fill(layer)
        except ValueError as error:
            raise ValueError(f"layer {name} cannot be packed: {error}") from None
        new.prepare()
        packed.set_submodule(name, new)
    return packed
