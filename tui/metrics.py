"""Which charts a run has, and each as a Picture of its RunState under the view that was chosen. No Textual here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tq.run_state import Eval, Point, RunState
from tui import curves
from tui.curves import SMOOTHING, Curve, Picture, Window, X


@dataclass(frozen=True)
class Metric:
    """One chart: its curves of the steps, and of the evaluations where they have the same quantity."""

    name: str
    title: str
    points: dict[str, Callable[[Point], float]]
    """by label"""
    evals: Callable[[Eval], float] | None = None
    best: Callable[..., tuple[float, float]] | None = None
    """max or min: which evaluation is the best one"""


METRICS = (
    Metric("loss", "loss", {"train": lambda p: p.loss}, lambda e: e.loss, min),
    Metric("accuracy", "accuracy %", {"train": lambda p: p.acc}, lambda e: e.acc, max),
    Metric("lr", "learning rate", {"": lambda p: p.lr}),
    Metric("speed", "images/s", {"": lambda p: p.img_s}),
    Metric("flips", "flips %", {"": lambda p: 100 * p.flip_rate}),
    Metric(
        "resolution",
        "resolution p of 2^-p",
        {"min": lambda p: p.p_min, "mean": lambda p: p.p_mean, "max": lambda p: p.p_max},
    ),
    Metric("portion", "frozen by INQ %", {"": lambda p: 100 * p.portion}),
)
BY_NAME = {metric.name: metric for metric in METRICS}
# One curve is bright; of several the middle one.
_TONES = {"train": "primary-darken-2", "min": "primary-darken-2", "max": "primary-darken-2"}


@dataclass(frozen=True)
class View:
    """How all charts of a run are looked at: they share the x axis and its window."""

    x: X = "epoch"
    window: Window | None = None
    """None: from the start to the planned end"""
    smoothing: int = 0
    """index into SMOOTHING"""
    log: frozenset[str] = field(default_factory=frozenset)
    """names of the metrics on a logarithmic axis"""


@dataclass(frozen=True)
class Axis:
    """The x axis of a run: where its data begin and end, and where they will end by plan."""

    label: str
    scale: float
    """what a step, or a second, is divided by"""
    first: float
    last: float
    planned: float

    @property
    def covered(self) -> float:
        """How much of the whole axis has data, 0 to 1."""
        return self.last / self.planned if self.planned > 0 else 1.0


def available(state: RunState) -> tuple[Metric, ...]:
    """Loss and accuracy always, the rest where the log has numbers of it. The newest point tells."""
    last = state.points[-1] if state.points else None
    return tuple(
        m
        for m in METRICS
        if m.evals or (last is not None and any(math.isfinite(pick(last)) for pick in m.points.values()))
    )


def axis(state: RunState, x: X) -> Axis:
    """The axis; epochs fall back to steps where the log does not say how many steps an epoch has."""
    if x == "time":
        times = [p.t for p in state.points[:1] + state.points[-1:]] + [e.t for e in state.evals[:1] + state.evals[-1:]]
        last = max(times, default=0.0)
        planned = last + (state.eta_s if math.isfinite(state.eta_s) else 0.0)
        scale, label = curves.time_unit(planned)
        # What came before the first step (data, compile) is no part of the curves.
        return Axis(label, scale, min(times, default=0.0) / scale, last / scale, planned / scale)
    epochs = x == "epoch" and state.steps_per_epoch > 0
    scale = state.steps_per_epoch if epochs else 1
    steps = [p.step for p in state.points[-1:]] + [e.step for e in state.evals[-1:]]
    last = max(steps, default=0.0) / scale
    planned = max(last, state.total_steps / scale)
    return Axis("epochs" if epochs else "steps", scale, 0.0, last, planned)


def picture(state: RunState, metric: Metric, view: View, *, place: str = "") -> Picture:
    """The picture of one metric; `place` says which of how many it is."""
    on = axis(state, view.x)
    seconds = view.x == "time"
    low, high = (on.first, on.planned) if view.window is None else view.window.within(on.first, on.last)
    # Time axes begin with the first step, the others at 0.
    low = low if seconds or view.window else 0.0
    xs = [(p.t if seconds else p.step) / on.scale for p in state.points]
    share = SMOOTHING[view.smoothing]
    lines = [
        Curve(label, _TONES.get(label, "primary"), xs, curves.smooth([pick(p) for p in state.points], share))
        for label, pick in metric.points.items()
    ]
    if metric.evals:
        lines.append(_evaluations(state, metric, on, seconds=seconds))
    return Picture(
        title=metric.title,
        curves=tuple(lines),
        x_low=low,
        x_high=high,
        x_label=on.label,
        whole=on.label == "epochs" and high - low >= 3,
        log=metric.name in view.log,
        note=" · ".join(filter(None, (place, f"smooth {100 * share:g}%" if share else ""))),
    )


def _evaluations(state: RunState, metric: Metric, on: Axis, *, seconds: bool) -> Curve:
    evals = [e for e in state.evals if e.split != "train"]
    assert metric.evals is not None and metric.best is not None
    xs = [(e.t if seconds else e.step) / on.scale for e in evals]
    ys = [metric.evals(e) for e in evals]
    # An accuracy of the float epochs before is no measure for the quantized ones.
    rivals = [(y, x) for e, x, y in zip(evals, xs, ys, strict=True) if math.isfinite(y) and e.stage == state.stage]
    best = metric.best(rivals, key=lambda pair: pair[0]) if rivals else None
    return Curve("eval", "accent", xs, ys, dots=True, best=(best[1], best[0]) if best else None)
