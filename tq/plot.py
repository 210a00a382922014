"""`tq plot RUN...`: loss and accuracy over the epochs, and accuracy against file size, as one PNG, SVG or PDF.

Training is drawn dim (thousands of steps, averaged into bins), evaluation bright, the best one with a star. The colours
are Okabe and Ito's, which stay apart for colour-blind readers ("Color Universal Design", 2008); beyond seven runs the
dash pattern changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tq import history
from tq.events import number
from tq.history import RunState, binned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["all", "curves", "size"]
SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's eight without yellow, which is lost on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
TRAIN_BINS = 200
_DATELESS = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Curve:
    """One run as it is drawn."""

    label: str
    state: RunState
    colour: str
    dash: str


def plot(run_paths: list[Path], out: Path, *, kind: Kind = "all") -> Path:
    """Draw the runs into `out` (format by its suffix) and return it.

    kind: "curves" (loss and accuracy), "size" (accuracy against the packed file's bytes), or "all": both, without the
    size panel where no run has written a packed file.
    Raises ValueError with one sentence: unknown kind or suffix, no runs, nothing to draw, matplotlib not installed.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"unknown kind of plot {kind!r}: expected {', '.join(get_args(Kind))}")
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"plot file {out} must end in {', '.join(SUFFIXES)}")
    if not run_paths:
        raise ValueError("there is no run to plot; name one, such as: tq plot last")
    curves = _curves(run_paths)
    sized = [curve for curve in curves if packed_point(curve.state)]
    if kind == "size" and not sized:
        raise ValueError(
            f"none of {_names(curves)} has written a packed file yet; let one finish, or plot --kind curves"
        )
    if kind != "size" and not any(curve.state.evals for curve in curves):
        raise ValueError(f"{_names(curves)} has no evaluation yet; the first comes at the end of epoch 1")
    try:
        from matplotlib import rc_context
    except ImportError:
        raise ValueError("plots need matplotlib: pip install matplotlib") from None
    figure = _figure(curves, sized, kind)
    try:
        # no dates and no random ids: the same runs give the same file
        with rc_context({"svg.hashsalt": "tq", "svg.fonttype": "none"}):
            figure.savefig(out, dpi=150, bbox_inches="tight", metadata=_DATELESS.get(out.suffix.lower()))
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from None
    return out


def packed_point(state: RunState) -> tuple[float, float] | None:
    """(bytes, accuracy in percent) of the run's packed file, or None. The file holds the run's last weights."""
    accuracy = number(state.summary.get("packed_accuracy"), state.last_acc)
    return (state.packed_bytes, accuracy) if state.packed_bytes > 0 and math.isfinite(accuracy) else None


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (bytes, accuracy) points that no other beats in both, by size."""
    front: list[tuple[float, float]] = []
    for size, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((size, accuracy))
    return front


def _curves(paths: list[Path]) -> list[Curve]:
    labels = _labels([path.resolve().name for path in paths])
    return [
        Curve(label, history.read(path), COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, (path, label) in enumerate(zip(paths, labels, strict=True))
    ]


def _labels(ids: list[str]) -> list[str]:
    """Run ids without date, time and random end wherever that still tells them apart."""
    short = ["-".join(p[2:-1]) if len(p := i.split("-")) > 3 and p[0].isdigit() and p[1].isdigit() else i for i in ids]
    return [name if short.count(name) == 1 else run for name, run in zip(short, ids, strict=True)]


def _names(curves: list[Curve]) -> str:
    names = [curve.label for curve in curves]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _figure(curves: list[Curve], sized: list[Curve], kind: Kind) -> Figure:
    # Figure alone, never pyplot: no window system is asked for and no state stays behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {"curves": 2, "size": 1, "all": 3 if sized else 2}[kind]
    figure = Figure(figsize=(5.2 * panels, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if kind != "size":
        _draw_curves(axes[0], axes[1], curves)
    if panels != 2:
        _draw_sizes(axes[-1], sized)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=8)
    return figure


def _draw_curves(loss: Axes, accuracy: Axes, curves: list[Curve]) -> None:
    # Epochs where every log says how many steps they have; else steps, which every event has.
    in_epochs = all(curve.state.steps_per_epoch for curve in curves)
    for curve in curves:
        state = curve.state
        unit = state.steps_per_epoch if in_epochs else 1
        evals = [e for e in state.evals if e.split != "train"]
        for axis, field in ((loss, "loss"), (accuracy, "acc")):
            x, y = binned([p.step / unit for p in state.points], [getattr(p, field) for p in state.points], TRAIN_BINS)
            axis.plot(x, y, color=curve.colour, linestyle=curve.dash, linewidth=0.8, alpha=0.35)
            # A run of one epoch is one point, which a line alone would not show.
            marker = "o" if len(evals) < 30 else None
            x, y = [e.step / unit for e in evals], [getattr(e, field) for e in evals]
            axis.plot(
                x,
                y,
                color=curve.colour,
                linestyle=curve.dash,
                linewidth=1.6,
                marker=marker,
                markersize=2.5,
                label=curve.label,
            )
        if best := [e for e in evals if e.acc == state.best_acc]:
            # the last, because float epochs may have had the same accuracy before the quantized ones
            accuracy.plot(
                best[-1].step / unit, best[-1].acc, "*", color=curve.colour, markersize=11, markeredgecolor="white"
            )
    for axis, title in ((loss, "loss (nat)"), (accuracy, "accuracy (%)")):
        axis.set_title(f"{title}: train dim, evaluation bright", fontsize=9, loc="left")
        axis.set_xlabel("epoch" if in_epochs else "step")
        _tidy(axis)
    accuracy.set_title("accuracy (%): train dim, evaluation bright, best \N{BLACK STAR}", fontsize=9, loc="left")


def _draw_sizes(axis: Axes, curves: list[Curve]) -> None:
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
    axis.xaxis.set_major_formatter(lambda size, _: _bytes(size))
    axis.xaxis.set_minor_formatter(lambda size, _: _bytes(size) if high / low < 10 and f"{size:e}"[0] in "25" else "")
    axis.set_title("accuracy (%) against packed file, Pareto front dashed", fontsize=9, loc="left")
    axis.set_xlabel("file size")
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    axis.grid(True, color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _bytes(size: float) -> str:
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:g} {unit}"
    return f"{size:g} B"
