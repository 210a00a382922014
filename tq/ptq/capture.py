"""What goes into a module and what comes out, on the calibration images; the units that are recovered one by one.

A forward pass is stopped as soon as the module has been called, so that what lies behind it costs nothing. Nothing
here needs torch.fx: the order of execution is what hooks see.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tq.attach import quant_layers, sites
from tq.hooks import evaluating, hooked
from tq.layers import QuantLayer, channels_last

# a block's layers are learned together; more than a residual block's worth would overfit a few hundred images
MOST_LAYERS = 8


@dataclass(frozen=True)
class Unit:
    """What is recovered as a whole: a residual block, or one layer.

    `name` is the module in the quantized network, `target` the one of the float network with the same output (a
    layer's folded batch normalization lies outside it there), `layers` its quantized layers in order.
    """

    name: str
    target: str
    layers: tuple[str, ...]


class _Stop(Exception):
    """Ends a forward pass behind the module that was asked for."""


def float_names(model: nn.Module, float_model: nn.Module) -> dict[str, str]:
    """For every quantized layer the module of the float twin that has the same output: its normalization, or itself.

    Raises ValueError: `float_model` is not the float twin of `model`.
    """
    layers = quant_layers(model)
    if not layers:
        raise ValueError(
            f"expected a network made by tq.attach, but {type(model).__name__} has no quantized layer; attach first"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.fx cannot read")
        found = {site.name: site for site in sites(float_model)}
    for name, layer in layers.items():
        twin = float_model.get_submodule(name) if name in found else None
        if twin is None or getattr(twin, "weight", layer.weight[:0]).shape != layer.weight.shape:
            raise ValueError(
                f"expected the float copy of the network, but its layer {name} is missing or of another shape; "
                f"copy the network before tq.attach"
            )
    return {name: found[name].bn or name if layers[name].bn is not None else name for name in layers}


@torch.no_grad()
def collect(model: nn.Module, name: str, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of a module's first call in evaluation mode over all images, float32 [N, ...], on the CPU."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        inputs.append(args[0].cpu())
        outputs.append(output.cpu())
        raise _Stop

    with evaluating(model), hooked([model.get_submodule(name).register_forward_hook(hook)]):
        for x in batches:
            with contextlib.suppress(_Stop):
                model(channels_last(x))
    return torch.cat(inputs), torch.cat(outputs)


@torch.no_grad()
def calls_of(model: nn.Module, names: Sequence[str], batch: Tensor) -> dict[str, int]:
    """How often each module is called by one forward pass, in the order of the first calls; the uncalled are left out.

    A module that is called with anything but one tensor, or returns anything else, counts as -1.
    """
    calls: dict[str, int] = {}

    def enter(name: str, *_: Any) -> None:
        calls.setdefault(name, 0)

    def leave(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        calls[name] = calls[name] + 1 if plain and calls[name] >= 0 else -1

    handles = []
    for name in names:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(partial(leave, name), with_kwargs=True))
    with evaluating(model), hooked(handles):
        model(channels_last(batch))
    return calls


def units(model: nn.Module, targets: dict[str, str], batch: Tensor, *, blocks: bool) -> list[Unit]:
    """The units of a network in the order of execution; layers that are called more than once are left out.

    blocks: a module of 2 to 8 quantized layers that takes one tensor and gives one, once, is one unit, the outermost
    such module where they are nested (containers such as nn.Sequential only hold units); BRECQ, arXiv 2102.05426,
    section 3.2. Otherwise every layer is its own unit.
    """
    names = [name for name, _ in model.named_modules() if name]
    calls = calls_of(model, names, batch)
    layers = [name for name in calls if name in targets]
    found: list[Unit] = []
    for name in calls:
        if calls[name] != 1 or any(name.startswith(f"{unit.name}.") for unit in found):
            continue
        inside = tuple(layer for layer in layers if layer.startswith(f"{name}."))
        module = model.get_submodule(name)
        if isinstance(module, QuantLayer):
            found.append(Unit(name, targets[name], (name,)))
        elif blocks and 2 <= len(inside) <= MOST_LAYERS and not isinstance(module, nn.Sequential):
            found.append(Unit(name, name, inside))
    return found
