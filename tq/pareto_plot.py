"""Bytes against loss or accuracy over an allocation's front, as one PNG, SVG or PDF.

The predicted front is a line, dim, for it is a model; what was measured are points; the chosen file has a star.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tq.picture import COLOURS, check_suffix, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

XY = tuple[float, float]


def plot_front(
    out: Path,
    *,
    predicted: Sequence[XY],
    measured: Sequence[XY] = (),
    chosen: XY | None = None,
    uniform: Sequence[tuple[str, float, float]] = (),
    target_bytes: int | None = None,
    measured_label: str = "top-1 drop (points)",
) -> Path:
    """Draw into `out` (format by its suffix) and return it.

    predicted: (file bytes, loss in nats) of the front, on the left axis.
    measured, chosen: (file bytes, whatever measured_label says), on a panel of their own where there are any.
    uniform: (name, file bytes, measured value) of networks with one width for all layers, for comparison.
    Raises ValueError with one sentence: unknown suffix, an empty front, matplotlib not installed, cannot write.
    """
    check_suffix(out)
    if not predicted:
        raise ValueError("there is no point to plot; allocate bits first")
    figure, axes = new_figure(2 if measured or chosen or uniform else 1)
    _draw_predicted(axes[0], predicted)
    for axis in axes[1:]:
        _draw_measured(axis, measured, chosen, uniform, measured_label)
    for axis in axes:
        _finish(axis, target_bytes)
    return save(figure, out)


def _draw_predicted(axis: Axes, points: Sequence[XY]) -> None:
    sizes, losses = zip(*sorted(points), strict=True)
    axis.plot(sizes, losses, color=COLOURS[0], linewidth=1.0, marker=".", markersize=3, alpha=0.6)
    # losses span four decades, and the interesting end is the small one
    axis.set_yscale("log" if min(losses) > 0 else "linear")
    axis.set_title("predicted loss (nats an image) against file size", fontsize=9, loc="left")


def _draw_measured(
    axis: Axes, points: Sequence[XY], chosen: XY | None, uniform: Sequence[tuple[str, float, float]], label: str
) -> None:
    if points:
        axis.plot(*zip(*sorted(points), strict=True), "o-", color=COLOURS[1], markersize=5, linewidth=1)
    for name, size, value in uniform:
        axis.plot(size, value, "s", color="0.5", markersize=5)
        axis.annotate(name, (size, value), xytext=(6, -3), textcoords="offset points", fontsize=7)
    if chosen is not None:
        axis.plot(*chosen, "*", color=COLOURS[1], markersize=13, markeredgecolor="white")
    axis.set_title(f"{label} against file size, chosen \N{BLACK STAR}", fontsize=9, loc="left")


def _finish(axis: Axes, target: int | None) -> None:
    from matplotlib.ticker import EngFormatter

    if target is not None:
        axis.axvline(target, color="0.5", linewidth=0.8, linestyle="--")
    axis.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axis.set_xlabel("file size")
