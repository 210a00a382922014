"""What a stage of training keeps beside the network: the optimizer, and what follows each of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tq.averaging import Average
from tq.config import TrainConfig
from tq.optim import INQScheduler
from tq.oscillation import Oscillation
from tq.stages import Stage, peak_rate
from tq.step import make_optimizer
from tq.training_rules import portions_of


class StageState:
    """Made for a network that has the form of the stage; the portions of INQ share one."""

    def __init__(self, model: nn.Module, config: TrainConfig, stage: Stage, *, steps_per_epoch: int) -> None:
        self.model = model
        self.peak = peak_rate(config, stage.scheme)
        self.optimizer = make_optimizer(
            model,
            config,
            lr=self.peak,
            epochs=stage.epochs if stage.portion is None else config.epochs,
            steps_per_epoch=steps_per_epoch,
        )
        self.oscillation = Oscillation(model, self.optimizer, threshold=config.oscillation_freeze)
        self.average = Average(model, config.ema) if config.ema else None
        self.inq: INQScheduler | None = None
        if stage.portion is not None:
            portions = portions_of(config.portions, stage.scheme.weight_bits)
            self.inq = INQScheduler(self.optimizer, portions, config.portion_strategy, seed=config.seed)

    @property
    def evaluated(self) -> nn.Module:
        """The network that counts: the averaged one where there is one."""
        return self.average.module if self.average is not None else self.model

    def after_step(self) -> None:
        """Hold what is frozen, count what has changed, average."""
        if self.inq is not None:
            self.inq.hold()
        self.oscillation.observe()
        if self.average is not None:
            self.average.update(self.model)

    def finish(self) -> None:
        """The averaged weights are what a stage gives."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
            self.average = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the stage, by part; the network is among them."""
        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "oscillation": self.oscillation,
            "average": self.average,
            "inq": self.inq,
        }
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over `state_dict()`, made in a stage like this one."""
        # The network first: making some optimizers changes it.
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # Checkpoints of before 2026-11-22 have no such figures, and these begin anew.
        if "tracks" in state.get("oscillation", {}):
            self.oscillation.load_state_dict(state["oscillation"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.inq is not None:
            self.inq.load_state_dict(state["inq"])
