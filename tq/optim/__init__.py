"""Optimizers for low-bit training, one a file."""

from tq.optim.hysteresis_sgd import HysteresisSGD

__all__ = ["HysteresisSGD"]
