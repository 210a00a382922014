"""The stages of a run: stretches of epochs, each at one scheme with a learning-rate schedule of its own."""

from __future__ import annotations

from dataclasses import dataclass

from tq.config import TrainConfig
from tq.scheme import Scheme
from tq.training_rules import parse_stage, portions_of


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs."""

    name: str
    scheme: Scheme
    epochs: int
    portion: float | None = None
    """INQ: share of the weights that is frozen in this stage"""

    @property
    def label(self) -> str:
        """w4a4, or inq5 at 0.75: what tells the stages of a run apart."""
        return str(self.scheme) if self.portion is None else f"{self.scheme} at {self.portion:g}"


def plan(config: TrainConfig) -> list[Stage]:
    """Float epochs, then lower and lower bits, then the scheme; INQ: a stage for each portion, the first ones longer
    where the epochs do not divide."""
    scheme = Scheme.parse(config.scheme)
    stages = [Stage("float", Scheme(), config.float_epochs)] if config.float_epochs and not scheme.is_float else []
    stages += [Stage("train", *parse_stage(text)) for text in config.progressive]
    if not scheme.pow2:
        return [*stages, Stage("float" if scheme.is_float else "train", scheme, config.epochs)]
    portions = portions_of(config.portions, scheme.weight_bits)
    each, more = divmod(config.epochs, len(portions))
    return stages + [Stage("train", scheme, each + (i < more), portion) for i, portion in enumerate(portions)]


# by the fewest bits of a layer, where trained weights are the start (LOG.md); 16: the rate that trains from nothing
_SGD = {1: 0.05, 2: 0.02, 4: 0.01, 8: 0.005, 16: 0.05}
_ADAM = {1: 1e-3, 2: 1e-3, 4: 2e-4, 8: 1e-4, 16: 1e-3}


def peak_rate(config: TrainConfig, scheme: Scheme) -> float:
    """The learning rate that --lr names, or the default of a stage at this scheme."""
    if config.lr is not None:
        return config.lr
    rates = _ADAM if "adam" in config.optimizer else _SGD
    if scheme.is_float or not (config.init or config.float_epochs):
        return rates[16]
    return rates[4 if scheme.pow2 else min(scheme.weight_bits, scheme.act_bits)]
