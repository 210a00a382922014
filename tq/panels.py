"""The panels of a plot of runs, a function each: loss, accuracy, error, resolution, portion, accuracy against size.

Training is drawn dim (thousands of steps, averaged into bins), evaluation bright, the best one with a star.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tq.events import number
from tq.history import binned
from tq.run_state import RunState

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN_BINS = 200
# fewer points than this are marked: a line alone would not show a single one
MARKED = 30
XY = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One run as it is drawn; in_epochs: over epochs, else over steps."""

    label: str
    state: RunState
    colour: str
    dash: str
    in_epochs: bool

    @property
    def style(self) -> dict[str, Any]:
        return {"color": self.colour, "linestyle": self.dash}

    def x(self, step: float) -> float:
        return step / self.state.steps_per_epoch if self.in_epochs else step


def packed_point(state: RunState) -> XY | None:
    """(bytes, accuracy in percent) of the run's packed file, or None. The file holds the run's last weights."""
    accuracy = number(state.summary.get("packed_accuracy"), state.last_acc)
    return (state.packed_bytes, accuracy) if state.packed_bytes > 0 and math.isfinite(accuracy) else None


def pareto(points: list[XY]) -> list[XY]:
    """The (bytes, accuracy) points that no other beats in both, by size."""
    front: list[XY] = []
    for size, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((size, accuracy))
    return front


def draw_loss(axis: Axes, curves: list[Curve]) -> None:
    """Loss over time."""
    for curve in curves:
        _dim(axis, curve, *_of_points(curve, "loss"))
        _bright(axis, curve, [e.loss for e in curve.state.held_out])
    _over_time(axis, curves, "loss (nat): train dim, evaluation bright")


def draw_accuracy(axis: Axes, curves: list[Curve]) -> None:
    """Accuracy over time."""
    for curve in curves:
        _dim(axis, curve, *_of_points(curve, "acc"))
        _bright(axis, curve, [e.acc for e in curve.state.held_out])
        if top := curve.state.best:
            _star(axis, curve, top.step, top.acc)
    _over_time(axis, curves, "accuracy (%): train dim, evaluation bright, best \N{BLACK STAR}")


def draw_errors(axis: Axes, curves: list[Curve]) -> None:
    """100 - accuracy over time, a point an epoch."""
    for curve in curves:
        found, top = curve.state.held_out, curve.state.best
        _dim(axis, curve, [curve.x(e.step) for e in found], [100 - e.train_acc for e in found])
        label = f"{curve.label} ({100 - top.acc:.2f} %)" if top else curve.label
        _bright(axis, curve, [100 - e.acc for e in found], label=label)
        if top:
            _star(axis, curve, top.step, 100 - top.acc)
    axis.set_ylim(bottom=0)
    _over_time(axis, curves, "error (%): train dim, test bright, best \N{BLACK STAR}")


def draw_resolution(axis: Axes, curves: list[Curve]) -> None:
    """p over time: the mean over the tensors, in a band from the smallest to the largest."""
    for curve in curves:
        x, low = _of_points(curve, "p_min")
        axis.fill_between(x, low, _of_points(curve, "p_max")[1], color=curve.colour, alpha=0.15, linewidth=0)
        x, mean = _of_points(curve, "p_mean")
        axis.plot(x, mean, **curve.style, linewidth=1.6, marker=_marker(mean), markersize=2.5, label=curve.label)
    _over_time(axis, curves, "resolution p, updates are multiples of 2$^{-p}$: mean and range of tensors")


def draw_portion(axis: Axes, curves: list[Curve]) -> None:
    """Portion of the weights that are quantized for good, as the stairs it is."""
    for curve in curves:
        points = [p for p in curve.state.points if math.isfinite(p.portion)]
        # the corners alone; an average of two stairs would be a stair that never was
        corners = [next(stair) for _, stair in groupby(points, lambda p: p.portion)] + points[-1:]
        x, y = [curve.x(p.step) for p in corners], [p.portion for p in corners]
        axis.plot(x, y, **curve.style, drawstyle="steps-post", linewidth=1.6, label=curve.label)
        if len(points) == 1:
            axis.plot(x, y, "o", color=curve.colour, markersize=2.5)
    axis.set_ylim(0, 1.05)
    _over_time(axis, curves, "portion of the weights quantized for good")


def draw_sizes(axis: Axes, curves: list[Curve]) -> None:
    """Accuracy against the bytes of the packed file."""
    from matplotlib.ticker import EngFormatter

    points = []
    for curve in curves:
        point = packed_point(curve.state)
        assert point is not None
        points.append(point)
        axis.plot(*point, "o", color=curve.colour, markersize=7, label=curve.label)
        axis.annotate(curve.label, point, xytext=(6, -3), textcoords="offset points", fontsize=7)
    front = pareto(points)
    if len(front) > 1:
        axis.plot(*zip(*front, strict=True), color="0.55", linewidth=1, linestyle="--", zorder=0)
    axis.set_xscale("log")
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    # room for the labels, and a range that one point alone would not have
    axis.set_xlim(low / 1.5, high * 2.5)
    units = EngFormatter(unit="B")
    axis.xaxis.set_major_formatter(units)
    axis.xaxis.set_minor_formatter(lambda size, _: units(size) if high / low < 10 and f"{size:e}"[0] in "25" else "")
    axis.set_title("accuracy (%) against packed file, Pareto front dashed", fontsize=9, loc="left")
    axis.set_xlabel("file size")


def _of_points(curve: Curve, name: str) -> tuple[list[float], list[float]]:
    points = curve.state.points
    return binned([curve.x(p.step) for p in points], [getattr(p, name) for p in points], TRAIN_BINS)


def _dim(axis: Axes, curve: Curve, x: list[float], y: list[float]) -> None:
    axis.plot(x, y, **curve.style, linewidth=0.8, alpha=0.35, marker=_marker(y), markersize=2)


def _bright(axis: Axes, curve: Curve, y: list[float], *, label: str = "") -> None:
    x = [curve.x(e.step) for e in curve.state.held_out]
    axis.plot(x, y, **curve.style, linewidth=1.6, marker=_marker(y), markersize=2.5, label=label or curve.label)


def _marker(y: Sequence[float]) -> str | None:
    return "o" if sum(map(math.isfinite, y)) < MARKED else None


def _star(axis: Axes, curve: Curve, step: float, y: float) -> None:
    axis.plot(curve.x(step), y, "*", color=curve.colour, markersize=11, markeredgecolor="white")


def _over_time(axis: Axes, curves: list[Curve], title: str) -> None:
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel("epoch" if curves[0].in_epochs else "step")
    axis.locator_params(axis="x", integer=True)
