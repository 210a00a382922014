"""What the log says of each quantized layer at the end of an epoch."""

from __future__ import annotations

import math

import torch
from torch import nn

from tq.attach import quant_layers
from tq.oscillation import Oscillation
from tq.packed import format_of
from tq.quantizers import per_weight


@torch.no_grad()
def layer_report(model: nn.Module, moves: Oscillation) -> dict[str, dict[str, float]]:
    """By layer: bits, act_bits, bytes of its codes; of integer weights their mean scale, their signal-to-noise ratio in
    dB, and the shares of codes that changed in a step (mean since the last report), oscillate, or are frozen."""
    changed = moves.layers()
    found: dict[str, dict[str, float]] = {}
    for name, layer in quant_layers(model).items():
        form = format_of(layer)
        width = 4 if form.weight_bits == 16 else 1
        found[name] = {
            "bits": form.weight_bits,
            "act_bits": form.act_bits,
            "bytes": width * math.prod(form.stored_shape),
        }
        found[name] |= changed.get(name, {})
        if form.weight_bits == 16:
            continue
        was_training = layer.training
        codes, scale = layer.eval().weight_codes()
        layer.train(was_training)
        value = codes * per_weight(scale, codes)
        noise = (layer.weight - value).square().sum().clamp_min(1e-30)
        sqnr_db = 10 * torch.log10(layer.weight.square().sum() / noise)
        found[name] |= {"scale": float(scale.mean()), "sqnr_db": float(sqnr_db)}
    return found
