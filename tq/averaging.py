"""Exponential moving average of a network's weights (Polyak averaging).

Not torch's AveragedModel: its counter makes a GPU wait at every step.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Average:
    """The average is `module`; over the first steps the decay rises to its value, as 1 + n of 10 + n, or short runs
    would keep their start. Integer buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.decay, self.count = copy.deepcopy(model), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights and statistics after a step."""
        kept = min((1 + self.count) / (10 + self.count), self.decay)
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        floats = [(mine, now) for mine, now in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floats], [now for _, now in floats], 1 - kept)
        for mine, now in pairs:
            if not mine.is_floating_point():
                mine.copy_(now)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"count": self.count, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over `state_dict()`."""
        self.count = state["count"]
        self.module.load_state_dict(state["module"])


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
