"""Bytes against loss over an allocation's front, and the error of the file that was chosen, as one PNG, SVG or PDF.

The predicted front is a line, dim, for it is a model; the file, which was measured, has a star.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tq.picture import COLOURS, check_suffix, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

XY = tuple[float, float]


def plot_front(out: Path, *, predicted: Sequence[XY], chosen: XY, target_bytes: int | None = None) -> Path:
    """Draw into `out` (format by its suffix) and return it.

    predicted: (file bytes, loss in nats an image) of the front. chosen: (file bytes, top-1 error in percent) of the
    file as measured. target_bytes: the limit that was given, a line in both panels.
    Raises ValueError with one sentence: unknown suffix, an empty front, matplotlib not installed, cannot write.
    """
    check_suffix(out)
    if not predicted:
        raise ValueError("there is no point to plot; allocate bits first")
    figure, (left, right) = new_figure(2)
    _draw_predicted(left, predicted)
    right.plot(*chosen, "*", color=COLOURS[1], markersize=13, markeredgecolor="white")
    right.set_title("top-1 error of the file (%) against file size, chosen \N{BLACK STAR}", fontsize=9, loc="left")
    for axis in (left, right):
        _finish(axis, target_bytes)
    return save(figure, out)


def _draw_predicted(axis: Axes, points: Sequence[XY]) -> None:
    sizes, losses = zip(*sorted(points), strict=True)
    axis.plot(sizes, losses, color=COLOURS[0], linewidth=1.0, marker=".", markersize=3, alpha=0.6)
    # losses span four decades, and the interesting end is the small one
    axis.set_yscale("log" if min(losses) > 0 else "linear")
    axis.set_title("predicted loss (nats an image) against file size", fontsize=9, loc="left")


def _finish(axis: Axes, target: int | None) -> None:
    from matplotlib.ticker import EngFormatter

    if target is not None:
        axis.axvline(target, color="0.5", linewidth=0.8, linestyle="--")
    axis.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axis.set_xlabel("file size")
