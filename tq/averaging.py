"""Exponential moving average of a network's weights (Polyak averaging), on torch's AveragedModel."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of parameters and statistics; over the first steps the decay rises to its value,
    as 1 + n of 10 + n, or short runs would keep their start."""

    @torch.no_grad()
    def average(mean: Any, now: Any, count: Any) -> None:
        if not mean[0].is_floating_point():
            torch._foreach_copy_(mean, now)
            return
        # as a tensor, which a GPU need not be waited for
        kept = ((1 + count) / (10 + count)).clamp(max=decay)
        torch._foreach_mul_(mean, kept)
        torch._foreach_add_(mean, torch._foreach_mul(now, 1 - kept))

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
