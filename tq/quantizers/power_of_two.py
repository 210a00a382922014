"""Weights of zero and powers of two (INQ, arXiv 1702.03044): the codebook, the rounding, the quantizer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PowerOfTwo(nn.Module):
    """Weights of 0 and +-2^n2 .. +-2^n1 (INQ); in training the optimizer holds those already quantized (tq.optim.inq).

    Codes are 0 and +-2^i, i = 0 .. 2^(bits-2) - 1, the scale is 2^n2. `top` is n1, fixed by the weights given here.
    """

    top: Tensor
    per_channel = False
    group = 0

    def __init__(self, bits: int, weight: Tensor) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("top", torch.tensor(float(top_exponent(weight)), device=weight.device))

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight [O, ...] float -> training: itself and ones; else codes [O, ...] and scale [O]."""
        if self.training:
            return weight, torch.ones(weight.shape[0], device=weight.device)
        scale = torch.exp2(self.top + 1 - magnitudes(self.bits))
        return nearest_power(weight, self.top, self.bits) / scale, scale.expand(weight.shape[0])


def magnitudes(bits: int) -> int:
    """How many powers of two a codebook of so many bits has: 2^(bits-2) (INQ, eq. 3; one code more is zero)."""
    return 2 ** (bits - 2)


def top_exponent(weight: Tensor) -> int:
    """n1 = floor(log2(4 s / 3)) with s = max |w| (INQ, eq. 2). Raises ValueError where that is no number."""
    largest = float(weight.detach().abs().max())
    if not 0 < largest < math.inf:
        raise ValueError(f"expected weights with a largest magnitude above 0, got {largest}; give a trained network")
    fraction, exponent = math.frexp(largest)
    return exponent if fraction >= 0.75 else exponent - 1


def nearest_power(weight: Tensor, top: Tensor, bits: int) -> Tensor:
    """Each weight as 0 or +-2^i, n2 <= i <= n1 = top, n2 = n1 + 1 - 2^(bits-2) (INQ, eq. 4).

    Below 2^(n2-1) it is 0; between powers the thresholds are 1.5 * 2^i, ties upward; above 2^n1 it saturates.
    """
    fraction, exponent = torch.frexp(weight.abs())
    nearest = exponent - (fraction < 0.75).to(exponent.dtype)
    low = top + 1 - magnitudes(bits)
    power = torch.exp2(torch.clamp(nearest.to(weight.dtype), low, top))
    return torch.where(weight.abs() < torch.exp2(low - 1), 0.0, torch.where(weight < 0, -power, power))
