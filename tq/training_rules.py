"""What the settings of a training may be and what goes together: quantized updates, INQ, the way down, overrides.

Each function raises ValueError with one sentence. Standard library only, as tq.config.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tq.scheme import Scheme

if TYPE_CHECKING:
    from tq.config.train import TrainConfig

QUANTIZED_UPDATE = ("qsgd", "qtadam", "qtadamw")
# the settings of their updates, and the rules that read each
RESOLUTION_SETTINGS = {
    "resolution": ("on-demand", "scheduled", "log-t"),
    "qp": ("on-demand", "log-t"),
    "shared_resolution": ("on-demand",),
    "compensation_kappa": ("scheduled",),
    "compensation_tau0": ("scheduled",),
}

# what only some optimizers read
OPTIMIZER_SETTINGS = {
    "hysteresis": ("hysteresis-sgd",),
    "hysteresis_mode": ("hysteresis-sgd",),
    "hysteresis_relative": ("hysteresis-sgd",),
    **dict.fromkeys(RESOLUTION_SETTINGS, QUANTIZED_UPDATE),
}

# INQ, section 3.3 (3 bits); 2 bits: ours, on from there
_PORTIONS = {
    2: (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0),
    3: (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
}


def check_optimizer(config: TrainConfig) -> None:
    """Ranges, and that no setting is given of an optimizer or a rule that is not chosen."""
    if not config.momentum < 1:
        raise ValueError(f"momentum must be below 1, got {config.momentum}")
    if not 0 <= config.qp <= 32:
        raise ValueError(f"qp must be from 0 to 32, got {config.qp}")
    if not 0 <= config.compensation_tau0 <= 1:
        raise ValueError(f"compensation_tau0 must be a fraction from 0 to 1, got {config.compensation_tau0}")
    default = {field.name: field.default for field in dataclasses.fields(config)}
    for name, readers in OPTIMIZER_SETTINGS.items():
        if getattr(config, name) == default[name]:
            continue
        if config.optimizer not in readers:
            users = ", ".join(readers)
            raise ValueError(f"{name} is of optimizer {users}, but the optimizer is {config.optimizer}; drop it")
        if name in RESOLUTION_SETTINGS and config.resolution not in RESOLUTION_SETTINGS[name]:
            users = ", ".join(RESOLUTION_SETTINGS[name])
            raise ValueError(f"{name} is of resolution {users}, but the resolution is {config.resolution}; drop it")


def check_inq(config: TrainConfig, scheme: Scheme) -> None:
    """INQ's settings, and that they are not given where nothing reads them."""
    if (config.method == "inq") != scheme.pow2:
        raise ValueError(
            f"method inq goes with the schemes inq2 to inq8 and those with it, got method {config.method} and scheme "
            f"{config.scheme}; change one of them"
        )
    if not scheme.pow2 and any(parse_override(rule)[1].pow2 for rule in config.override):
        raise ValueError(
            "override with inq<bits> needs an inq scheme, whose portions freeze the weights; use --scheme inq5"
        )
    if config.method != "inq":
        if config.portions or config.portion_strategy != "pruning":
            raise ValueError("portions and portion_strategy are of method inq; drop them, or choose --scheme inq5")
        return
    if config.optimizer in QUANTIZED_UPDATE:
        raise ValueError(
            f"method inq needs an optimizer that moves each weight by itself, such as sgd or adamw, got "
            f"{config.optimizer}, whose resolution would depend on the frozen weights; change one of them"
        )
    if config.ema or config.oscillation_freeze or config.progressive:
        raise ValueError("ema, oscillation_freeze and progressive do not go with method inq; drop them")
    if config.portions:
        check_portions(config.portions)
    if config.epochs < (steps := len(portions_of(config.portions, scheme.weight_bits))):
        raise ValueError(f"epochs must be at least the {steps} portions of inq, got {config.epochs}; raise it")


def check_portions(portions: Sequence[float]) -> None:
    """Raise ValueError unless the portions are above 0, increasing, and end at 1."""
    given = ", ".join(f"{portion:g}" for portion in portions) or "none"
    if not portions or not portions[0] > 0 or any(not a < b for a, b in pairwise(portions)):
        raise ValueError(f"expected increasing portions above 0, such as 0.5 0.75 0.875 1, got {given}; sort them")
    if portions[-1] != 1:
        raise ValueError(f"expected portions that end at 1, so that every weight is quantized, got {given}; add 1")


def portions_of(portions: Sequence[float], bits: int) -> tuple[float, ...]:
    """The given portions, or the default of so many bits: fewer bits need more and smaller steps."""
    return tuple(portions) or _PORTIONS.get(bits, (0.5, 0.75, 0.875, 1.0))


def check_recipe(config: TrainConfig, scheme: Scheme) -> None:
    """Distillation, averaging, progressive stages and what is of one-bit weights only."""
    for name in ("distill", "ema", "oscillation_freeze"):
        if getattr(config, name) > 1 or (name == "ema" and config.ema == 1):
            raise ValueError(
                f"{name} must be from 0 to {'below ' if name == 'ema' else ''}1, got {getattr(config, name)}"
            )
    if not (math.isfinite(config.distill_temperature) and config.distill_temperature > 0):
        raise ValueError(f"distill_temperature must be a positive number, got {config.distill_temperature}")
    if config.distill and not (config.teacher or config.init or config.float_epochs):
        raise ValueError("distill needs a float teacher; give --teacher FILE, --init FILE or --float-epochs")
    if config.distill and scheme.is_float:
        raise ValueError("distill teaches quantized networks, but the scheme is float; drop it")
    if config.teacher and not config.distill:
        raise ValueError("a teacher teaches only with --distill above 0, such as 0.7")
    if config.weight_regularization and scheme.weight_bits != 1:
        raise ValueError(f"weight_regularization is of one-bit weights, but the scheme is {config.scheme}; drop it")
    if config.ema and config.optimizer == "hysteresis-sgd":
        raise ValueError("ema does not go with hysteresis-sgd, whose weights are binary; drop it")
    if config.oscillation_freeze and scheme.weight_bits == 16:
        raise ValueError(f"oscillation_freeze is of quantized weights, but the scheme is {config.scheme}; drop it")
    for stage in config.progressive:
        parse_stage(stage)
    if config.progressive and scheme.is_float:
        raise ValueError("progressive stages lead to a quantized scheme, but the scheme is float; drop them")


def parse_stage(text: str) -> tuple[Scheme, int]:
    """'w4a4:2' -> (Scheme(4, 4), 2 epochs). Raises ValueError."""
    name, sep, epochs = text.rpartition(":")
    if not sep or not epochs.isdecimal() or int(epochs) < 1:
        raise ValueError(f"progressive stages must be SCHEME:EPOCHS such as w4a4:2, got {text!r}")
    scheme = Scheme.parse(name)
    if scheme.is_float or scheme.pow2:
        raise ValueError(f"progressive stages are of the schemes w<bits>a<bits>, got {name}; float: --float-epochs")
    return scheme, int(epochs)


def parse_override(rule: str) -> tuple[str, Scheme]:
    """'layer3.*=w2a4' -> ('layer3.*', Scheme(2, 4)). Raises ValueError."""
    pattern, sep, name = rule.rpartition("=")
    if not sep or not pattern:
        raise ValueError(f"override must be PATTERN=SCHEME such as 'layer3.*=w2a4', got {rule!r}")
    return pattern, Scheme.parse(name)
