"""Scaled signs and learned steps: weights as integers of 1 to 8 bits times a scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tq.quantizers.gradient import TINY, scale_gradient, sign, straight_through
from tq.quantizers.groups import by_group, per_weight, spread
from triton_kernels.layout import code_range


class ScaledSign(nn.Module):
    """w -> sign(w) with scale mean|w|, per output channel, per tensor or per group.

    With `held_by_optimizer` the parameter already is +-s (hysteresis-sgd keeps the latent weights): training uses it
    as it is, evaluation resolves it by its sign.
    """

    bits = 1

    def __init__(self, *, per_channel: bool = True, group: int = 0) -> None:
        super().__init__()
        self.per_channel, self.group = per_channel, group
        self.held_by_optimizer = False

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight [O, ...] float -> codes [O, ...], scale [O] or [O, ...]."""
        if self.held_by_optimizer and self.training:
            return weight, torch.ones(weight.shape[0], device=weight.device)
        scale = self.scale(weight.detach())
        latent = weight / per_weight(scale, weight)
        return sign(weight).detach() + (latent - latent.detach()), scale

    def scale(self, weight: Tensor) -> Tensor:
        """weight [O, ...] -> mean magnitudes [O], or [O, ...] of groups."""
        if self.group:
            scale = by_group(weight.abs(), self.group, lambda rows: rows.mean(1))
            return spread(scale, weight.shape, self.group).clamp_min(TINY)
        scale = weight.abs().flatten(1).mean(1)
        if not self.per_channel:
            scale = scale.mean().expand(weight.shape[0])
        return scale.clamp_min(TINY)


class LearnedWeight(nn.Module):
    """LSQ for weights; calibration sets `step`, training learns it."""

    def __init__(self, bits: int, weight: Tensor, *, per_channel: bool = True, group: int = 0) -> None:
        super().__init__()
        self.bits = bits
        self.qmin, self.qmax = code_range(bits)
        self.per_channel, self.group = per_channel, group
        # LSQ's own start, section 2.1; calibration replaces it
        size = weight.detach().abs()
        if group:
            means = by_group(size, group, lambda rows: rows.mean(1))
        else:
            means = size.flatten(1).mean(1) if per_channel else size.mean()[None]
        self.step = nn.Parameter(torch.empty_like(means))
        self.set_step(2 * means / self.qmax**0.5)

    @torch.no_grad()
    def set_step(self, step: Tensor) -> None:
        """step: [O] (per channel), [1] or [O, groups], float32, positive; zero (an all-zero channel) becomes tiny."""
        self.step.copy_(step.clamp_min(TINY))

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight [O, ...] float -> codes [O, ...], scale [O] or [O, ...]."""
        count = weight.numel() / self.step.numel()
        step = scale_gradient(self.step.abs().clamp_min(TINY), (count * self.qmax) ** -0.5)
        scale = spread(step, weight.shape, self.group) if self.group else step.expand(weight.shape[0])
        scaled = weight / per_weight(scale, weight)
        exact = sign(scaled) if self.bits == 1 else scaled.round().clamp(self.qmin, self.qmax)
        inside = (scaled >= self.qmin) & (scaled <= self.qmax)
        return straight_through(scaled, exact, inside), scale
