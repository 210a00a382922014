"""Bias correction and re-estimation of batch normalization: the cheap half of the recovery, without gradients.

Quantizing a layer's weights and inputs shifts the mean of its outputs, and often their variance. Both repairs take
all images through the quantized network in one pass and repair each layer as they pass it, so that every layer sees
inputs that are already repaired. A layer that is called more than once is left as it is.

Bias correction (Nagel et al., arXiv 1906.04721, section 4.2, empirical form): b += E[y_float] - E[y_quantized] per
channel, over images and pixels, into beta of the batch normalization, or else into the bias.

Re-estimation: running mean and variance become those of the quantized layer's outputs over all calibration images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tq.attach import quant_layers
from tq.hooks import evaluating, hooked
from tq.layers import QuantLayer, channels_last
from tq.ptq.capture import calls_of


@torch.no_grad()
def correct_bias(
    model: nn.Module, float_model: nn.Module, batches: Sequence[Tensor], targets: dict[str, str]
) -> dict[str, Tensor]:
    """Make the mean of every quantized layer's outputs that of its float twin, in place.

    batches: normalised images [B, C, H, W]; targets: from `capture.float_names`.
    Returns what was added, by layer, float32 [C].
    """
    layers = _called_once(model, batches[0])
    wanted = _float_means(float_model, batches, {targets[name]: layer for name, layer in layers.items()})
    shifts: dict[str, Tensor] = {}

    def repair(name: str, layer: QuantLayer, _: tuple[Any, ...], y: Tensor) -> Tensor:
        shift = wanted[targets[name]].to(y) - _channels(y, layer).mean(1)
        shifts[name] = shift
        if layer.bn is not None:
            layer.bn.bias.add_(shift)
        elif layer.bias is not None:
            layer.bias.add_(shift)
        else:
            layer.bias = nn.Parameter(shift)
        return y + shift.view(-1, *[1] * (-1 - layer.channel_dim))

    handles = [layer.register_forward_hook(partial(repair, name)) for name, layer in layers.items()]
    with evaluating(model), hooked(handles):
        model(channels_last(torch.cat(list(batches))))
    return shifts


@torch.no_grad()
def reestimate_norms(model: nn.Module, batches: Sequence[Tensor]) -> list[str]:
    """Set running mean and (unbiased) variance of every batch normalization inside a quantized layer, in place.

    batches: normalised images [B, C, H, W]. A normalization that stayed outside, as it could not be folded, is kept.
    Returns the names of the layers.
    """
    layers = {name: layer for name, layer in _called_once(model, batches[0]).items() if layer.bn is not None}

    def repair(layer: QuantLayer, args: tuple[Any, ...]) -> None:
        bn, layer.bn = layer.bn, None
        try:
            y = _channels(layer.forward(args[0]), layer)
        finally:
            layer.bn = bn
        assert bn is not None and bn.running_mean is not None and bn.running_var is not None
        bn.running_mean.copy_(y.mean(1))
        # one value a channel has no variance; the one from training stays
        if y.shape[1] > 1:
            bn.running_var.copy_(y.var(1))

    handles = [layer.register_forward_pre_hook(repair) for layer in layers.values()]
    with evaluating(model), hooked(handles):
        model(channels_last(torch.cat(list(batches))))
    return list(layers)


def _called_once(model: nn.Module, batch: Tensor) -> dict[str, QuantLayer]:
    layers = quant_layers(model)
    return {name: layers[name] for name, count in calls_of(model, list(layers), batch[:1]).items() if count == 1}


def _float_means(model: nn.Module, batches: Sequence[Tensor], layers: dict[str, QuantLayer]) -> dict[str, Tensor]:
    """Mean of a module's outputs per channel over all images, by the module's name, float64 [C]."""
    sums: dict[str, Tensor] = {}

    def add(name: str, _: nn.Module, __: tuple[Any, ...], y: Tensor) -> None:
        sums[name] = sums.get(name, 0) + _channels(y, layers[name]).mean(1).double() * len(y)

    handles = [model.get_submodule(name).register_forward_hook(partial(add, name)) for name in layers]
    with evaluating(model), hooked(handles):
        for x in batches:
            model(channels_last(x))
    return {name: total / sum(map(len, batches)) for name, total in sums.items()}


def _channels(y: Tensor, layer: QuantLayer) -> Tensor:
    """Outputs [N, C, H, W] or [N, ..., C] -> [C, everything else]."""
    return y.movedim(layer.channel_dim, 0).flatten(1)
