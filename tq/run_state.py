"""What is known of one run at a moment: its numbers, its curves, its evaluations. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Fields that two neighbouring points have no mean of: the last holds.
STATES = ("lr", "p_min", "p_mean", "p_max", "portion")


class Point(NamedTuple):
    """`n` neighbouring step events: the mean of loss, acc, img_s and flip_rate, the last of everything else."""

    step: float
    epoch: float
    loss: float
    acc: float
    lr: float
    img_s: float
    flip_rate: float
    p_min: float
    p_mean: float
    p_max: float
    portion: float
    t: float
    """seconds of work since the run began: the time between a stop and a resume is left out"""
    n: int = 1


# Those that a step event has, in Point's order.
STEP_FIELDS = Point._fields[: Point._fields.index("t")]


class Eval(NamedTuple):
    """One evaluation, acc in percent, and the training up to it.

    train_loss and train_acc are means over the steps since the evaluation before, STATES those of the last of them.
    NaN where the log does not say.
    """

    step: float
    epoch: float
    split: str
    loss: float
    acc: float
    train_loss: float
    train_acc: float
    lr: float
    p_min: float
    p_mean: float
    p_max: float
    portion: float
    t: float = math.nan
    """seconds of work, as of a Point"""
    stage: str = ""
    """as RunState's"""


class LayerFigures(NamedTuple):
    """What is known of one layer; NaN where the log does not say."""

    bits: float = math.nan
    act_bits: float = math.nan
    bytes: float = math.nan
    scale: float = math.nan
    """mean of the weight scales"""
    flips: float = math.nan
    """share of the weights whose code changed, 0 to 1"""
    oscillating: float = math.nan
    """share of the weights that go to and fro between two codes, 0 to 1"""
    sqnr_db: float = math.nan
    """signal-to-quantization-noise ratio in dB"""


class Alert(NamedTuple):
    """A message of the trainer. level: info, warning or error."""

    t: float
    level: str
    title: str
    text: str


@dataclass(frozen=True)
class RunState:
    """A snapshot of one run's log. Numbers that are not known (yet) are NaN or 0."""

    epochs: int = 0
    steps_per_epoch: int = 0
    step: int = 0
    epoch: int = 0
    loss: float = math.nan
    acc: float = math.nan
    lr: float = math.nan
    img_s: float = math.nan
    flip_rate: float = math.nan
    p_min: float = math.nan
    p_mean: float = math.nan
    p_max: float = math.nan
    portion: float = math.nan
    nan_step: int = 0
    """the first step with a loss that is no number; 0: there is none"""
    phase: str = ""
    phase_t: float = 0.0
    """when the phase began, unix seconds"""
    stage: str = ""
    """what the steps train at present: float, w4a4, inq5 at 0.75, ... (in older logs float or train)"""
    best_acc: float = math.nan
    """best evaluation of this stage, percent; float epochs and higher bits do not count once lower ones have begun"""
    last_acc: float = math.nan
    float_bytes: float = 0
    packed_bytes: float = 0
    layers: dict[str, float] = field(default_factory=dict)
    """bits by layer name"""
    layer_figures: dict[str, LayerFigures] = field(default_factory=dict)
    figures_step: int = 0
    """the step that they were taken at"""
    phases: dict[str, float] = field(default_factory=dict)
    """seconds spent in each phase that has ended, in the order of their first beginning"""
    sys: dict[str, Any] = field(default_factory=dict)
    """the last `sys` event's fields"""
    checkpoint_step: int = 0
    resumed_from: int = 0
    started: float = 0.0
    updated: float = 0.0
    """unix seconds of the first and the last event"""
    eta_s: float = math.nan
    end: str = ""
    """"" while none was seen, else ok, error or stopped"""
    error: str = ""
    traceback: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    evals: tuple[Eval, ...] = ()
    alerts: tuple[Alert, ...] = ()

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def held_out(self) -> tuple[Eval, ...]:
        """The evaluations on images that were not trained on."""
        return tuple(e for e in self.evals if e.split != "train")

    @property
    def best(self) -> Eval | None:
        """The evaluation of best_acc: the last such, for a float epoch may have had the same accuracy before."""
        return next((e for e in reversed(self.held_out) if e.acc == self.best_acc), None)

    @property
    def progress(self) -> float:
        """0 to 1; NaN where the log does not say how long the run is."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else math.nan

    @property
    def ratio(self) -> float:
        """Float size over packed size; NaN before there is one."""
        return self.float_bytes / self.packed_bytes if self.packed_bytes else math.nan
