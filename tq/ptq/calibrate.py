"""Set every quantizer of an attached network from a few hundred images, without labels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tq.attach import quant_layers
from tq.ptq.ranges import Histogram, act_scale, weight_scale
from tq.quantizers import LearnedWeight


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    weight_range: str = "mse",
    act_range: str = "mse",
    percentile: float = 99.99,
    batch_statistics: bool = False,
) -> None:
    """Run the float network over `batches` (normalised images [B, C, H, W]) and set weight and input ranges.

    batch_statistics: normalise with each batch's own mean and variance, for a network that has never been trained.

    Raises:
        ValueError: no batch, NaN or infinity in a layer's input.
    """
    layers = quant_layers(model)
    was_training = model.training
    seen = {name: Histogram(name) for name in layers}
    for name, layer in layers.items():
        layer.observer = seen[name]
    try:
        model.train(batch_statistics)
        for x in batches:
            model(x)
    finally:
        for layer in layers.values():
            layer.observer = None
        model.train(was_training)
    for name, layer in layers.items():
        if (q := layer.input_quantizer) is not None:
            q.set_range(act_scale(seen[name], q.qmin, q.qmax, method=act_range, percentile=percentile))
        if isinstance(w := layer.weight_quantizer, LearnedWeight):
            w.set_step(
                weight_scale(
                    layer.weight, w.bits, method=weight_range, percentile=percentile, per_channel=w.per_channel
                )
            )
