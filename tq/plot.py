"""`tq plot RUN...`: what the logs of runs say, as one PNG, SVG or PDF, or as the CSV of their error trends.

Each run has a colour, beyond seven runs the dash pattern changes; a panel shows the runs that have what it draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tq import history, panels, picture
from tq.error_trend import write_csv
from tq.panels import Curve, packed_point
from tq.run_state import RunState

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["all", "curves", "errors", "resolution", "portion", "size"]
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Panel:
    """has: whether a run can be drawn in it; lacking: the sentence, after "none of RUNS", when none can."""

    draw: Callable[[Axes, list[Curve]], None]
    has: Callable[[RunState], bool]
    lacking: str


def _logged(name: str) -> Callable[[RunState], bool]:
    return lambda state: any(math.isfinite(getattr(point, name)) for point in state.points)


def _begun(state: RunState) -> bool:
    return bool(state.points or state.held_out)


LOSS = Panel(panels.draw_loss, _begun, "has logged a step yet; give it a moment")
ACCURACY = Panel(panels.draw_accuracy, _begun, LOSS.lacking)
ERRORS = Panel(
    panels.draw_errors,
    lambda state: bool(state.held_out),
    "has an evaluation yet; the first comes at the end of epoch 1",
)
RESOLUTION = Panel(
    panels.draw_resolution,
    _logged("p_mean"),
    "has logged a resolution; train with --optimizer qsgd, qtadam or qtadamw, or plot --kind curves",
)
PORTION = Panel(
    panels.draw_portion,
    _logged("portion"),
    "has logged a portion of quantized weights; train with --scheme inq5, or plot --kind curves",
)
SIZE = Panel(
    panels.draw_sizes,
    lambda state: packed_point(state) is not None,
    "has written a packed file yet; let one finish, or plot --kind curves",
)
# the first of a kind has to be there, the others are drawn where a run has them
KINDS: dict[str, tuple[Panel, ...]] = {
    "all": (LOSS, ACCURACY, RESOLUTION, PORTION, SIZE),
    "curves": (LOSS, ACCURACY),
    "errors": (ERRORS,),
    "resolution": (RESOLUTION,),
    "portion": (PORTION,),
    "size": (SIZE,),
}
assert tuple(KINDS) == get_args(Kind)


def plot(run_paths: list[Path], out: Path, *, kind: Kind = "all") -> Path:
    """Draw the runs into `out` and return it; a name in .csv gets the table of tq/error_trend.py, whatever the kind.

    kind: "curves" (loss and accuracy), "errors" (100 - accuracy, an epoch a point), "resolution" (of quantized
    updates), "portion" (of the weights, INQ), "size" (accuracy against the packed file's bytes), or "all" but errors,
    which are the accuracy upside down: those of them that a run has.
    Raises ValueError with one sentence: unknown kind or suffix, no runs, nothing to draw, matplotlib not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of plot {kind!r}: expected {', '.join(KINDS)}")
    table = out.suffix.lower() == ".csv"
    if not table:
        picture.check_suffix(out, also=", or in .csv for the errors of every epoch as a table")
    if not run_paths:
        raise ValueError("there is no run to plot; name one, such as: tq plot last")
    states = [history.read(path) for path in run_paths]
    curves = _curves(run_paths, states)
    wanted = KINDS["errors" if table else kind]
    drawn = {panel: found for panel in wanted if (found := [c for c in curves if panel.has(c.state)])}
    if wanted[0] not in drawn:
        raise ValueError(f"none of {_names(curves)} {wanted[0].lacking}")
    if table:
        return write_csv(run_paths, states, out)
    figure, axes = picture.new_figure(len(drawn))
    for axis, (panel, found) in zip(axes, drawn.items(), strict=True):
        panel.draw(axis, found)
    handles, labels = axes[0].get_legend_handles_labels()
    # no wider than the panels
    columns = min(len(labels), 2 * len(axes), 4)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return picture.save(figure, out)


def _curves(paths: list[Path], states: list[RunState]) -> list[Curve]:
    labels = _labels([path.resolve().name for path in paths])
    # Epochs where every log says how many steps they have; else steps, which every event has.
    in_epochs = all(state.steps_per_epoch for state in states)
    return [
        Curve(
            label,
            state,
            picture.COLOURS[i % len(picture.COLOURS)],
            DASHES[i // len(picture.COLOURS) % len(DASHES)],
            in_epochs,
        )
        for i, (state, label) in enumerate(zip(states, labels, strict=True))
    ]


def _labels(ids: list[str]) -> list[str]:
    """Run ids without date, time and random end wherever that still tells them apart."""
    short = ["-".join(p[2:-1]) if len(p := i.split("-")) > 3 and p[0].isdigit() and p[1].isdigit() else i for i in ids]
    return [name if short.count(name) == 1 else run for name, run in zip(short, ids, strict=True)]


def _names(curves: list[Curve]) -> str:
    names = [curve.label for curve in curves]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
