"""Optimizers for low-bit training, one a file."""

from tq.optim.hysteresis_sgd import HysteresisSGD
from tq.optim.inq import INQSGD, INQScheduler, reset_lr_scheduler
from tq.optim.qsgd import QSGD
from tq.optim.qtadam import QtAdam, QtAdamW
from tq.optim.quantized_update import QuantizedUpdate
from tq.optim.resolution import Resolution

__all__ = [
    "INQSGD",
    "QSGD",
    "HysteresisSGD",
    "INQScheduler",
    "QtAdam",
    "QtAdamW",
    "QuantizedUpdate",
    "Resolution",
    "reset_lr_scheduler",
]
