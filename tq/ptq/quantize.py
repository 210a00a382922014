"""Post-training quantization in one call: attach, calibrate, done. No training, no labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tq.attach import attach
from tq.ptq.calibrate import calibrate
from tq.ptq.images import checked
from tq.scheme import Scheme


def quantize(
    model: nn.Module,
    loader: Iterable[Any],
    scheme: str | Scheme = "w8a8",
    *,
    weight_range: str = "mse",
    act_range: str = "mse",
    percentile: float = 99.99,
    first_last: str = "8",
    override: Iterable[str] = (),
    granularity: str = "channel",
) -> nn.Module:
    """Quantize a trained float network in place, in simulated form; `tq.save` or `tq.convert` packs it.

    Args:
        model: a trained float network; its batch normalizations are folded where torch.fx shows that they follow a
            layer.
        loader: batches of normalised images [B, C, H, W], or (images, labels) pairs; labels are ignored.
        scheme: "w8a8", "w4a8", "w2a8", "w1a16", ...
        weight_range, act_range: "minmax", "percentile" or "mse" (least squared error).
        first_last: bits of the first and the last layer: "16", "8" or "same".
        override: PATTERN=SCHEME, the last match wins.

    Raises:
        ValueError: no image, NaN or infinity, a network that does not run on the images alone, a pattern that matches
            no layer, nothing to quantize.
    """
    images = checked(model, loader)
    attach(model, scheme, first_last=first_last, override=override, granularity=granularity)
    calibrate(model.eval(), images, weight_range=weight_range, act_range=act_range, percentile=percentile)
    return model
