"""What the quantizers pass back through their rounding (straight-through estimator, arXiv 1308.3432)."""

from __future__ import annotations

import torch
from torch import Tensor

# The least scale: an all-zero channel has one to divide by.
TINY = 1e-8


def straight_through(value: Tensor, exact: Tensor, passes: Tensor) -> Tensor:
    """Forward `exact`; backward the gradient of `value` where `passes`."""
    return exact.detach() + torch.where(passes, value - value.detach(), 0.0)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Forward x; backward the gradient times `factor` (LSQ, arXiv 1902.08153, section 2.2)."""
    return x.detach() + (x - x.detach()) * factor


def sign(x: Tensor) -> Tensor:
    """1 where x >= 0, else -1."""
    return torch.where(x >= 0, 1.0, -1.0)
