"""Set every quantizer of an attached network from a few hundred images, without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tq.attach import quant_layers
from tq.hooks import evaluating
from tq.ptq.ranges import Histogram, act_affine, act_scale, weight_scale
from tq.quantizers import ActQuantizer, LearnedOffset, LearnedStep, LearnedWeight, PowerOfTwo, top_exponent


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    weight_range: str = "auto",
    act_range: str = "mse",
    percentile: float = 99.99,
    act_symmetric: bool = True,
    batch_statistics: bool = False,
) -> None:
    """Run the float network over `batches` (normalised images [B, C, H, W]) and set weight and input ranges.

    weight_range: "auto" (minmax from 4 bits on, mse below) or one of `ranges.WEIGHT_METHODS`; act_range: one of
        `ranges.ACT_METHODS`.
    act_symmetric: no zero points; else signed inputs of learned steps get one. Unsigned inputs start at zero anyway,
        and PACT, clip and one-bit codes have no zero point.
    batch_statistics: normalise with each batch's own mean and variance, for a network that has never been trained.

    Raises:
        ValueError: no batch, NaN or infinity in a layer's input.
    """
    layers = quant_layers(model)
    seen = {name: Histogram(name) for name in layers}
    for name, layer in layers.items():
        layer.observer = seen[name]
    try:
        with evaluating(model):
            model.train(batch_statistics)
            for x in batches:
                model(x)
    finally:
        for layer in layers.values():
            layer.observer = None
    for name, layer in layers.items():
        if (q := layer.input_quantizer) is not None:
            q.set_range(*_range(q, seen[name], act_range, percentile, act_symmetric))
        if isinstance(w := layer.weight_quantizer, PowerOfTwo):
            w.top.fill_(top_exponent(layer.weight))
        if isinstance(w, LearnedWeight):
            # clipping weights of 4 bits and more costs more than it saves, fewer bits cannot do without it (LOG.md)
            method = ("minmax" if w.bits >= 4 else "mse") if weight_range == "auto" else weight_range
            kind: dict[str, Any] = {"per_channel": w.per_channel, "group": w.group}
            w.set_step(weight_scale(layer.weight, w.bits, method=method, percentile=percentile, **kind))


def _range(q: ActQuantizer, seen: Histogram, method: str, percentile: float, symmetric: bool) -> tuple[float, int]:
    """Scale and zero point for a quantizer of inputs."""
    affine = isinstance(q, LearnedOffset) or (isinstance(q, LearnedStep) and not symmetric)
    if affine and q.signed and not q.binary:
        return act_affine(seen, q.qmin, q.qmax, method=method, percentile=percentile)
    return act_scale(seen, q.qmin, q.qmax, method=method, percentile=percentile), 0
