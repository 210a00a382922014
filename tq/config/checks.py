"""What the configs of several commands check, and the names that they know. Each function raises ValueError."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tq.config_io import choices
from tq.scheme import did_you_mean

MODELS = (
    *("cnn", "lenet", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *("resnet20-a", "resnet32-a", "resnet44-a", "resnet56-a", "resnet110-a", "resnet18", "resnet50"),
)
DATASETS = ("digits", "mnist", "cifar10", "cifar100", "imagefolder")


def check_group(config: Any) -> None:
    """That a group size is given only where weights are grouped."""
    at_least("group_size", config.group_size, 1)
    if config.granularity != "group" and config.group_size != type(config).group_size:
        raise ValueError(f"group_size is of granularity group, but it is {config.granularity}; change one of them")


def check_choices(config: Any) -> None:
    """That every field with a choice of words has one of them."""
    for field in dataclasses.fields(config):
        if allowed := choices(field):
            known(field.name, getattr(config, field.name), allowed)


def known(what: str, value: str, names: tuple[str, ...], *, extra: bool = False) -> None:
    """That `value` is one of the names; `extra` lets it pass anyway."""
    if value not in names and not extra:
        raise ValueError(
            f"unknown {what} {value!r}: expected one of {', '.join(names)}{did_you_mean(str(value), names)}"
        )


def at_least(what: str, value: float, low: float) -> None:
    """That `value` is a finite number from `low` on."""
    if not (math.isfinite(value) and value >= low):
        raise ValueError(f"{what} must be at least {low}, got {value}")
