"""Bytes against loss or accuracy over an allocation's front, as one PNG, SVG or PDF; the style is tq/plot.py's.

The predicted front is a line, dim, for it is a model; what was measured are points; the chosen file has a star.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tq.plot import COLOURS, SUFFIXES

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
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"plot file {out} must end in {', '.join(SUFFIXES)}")
    if not predicted:
        raise ValueError("there is no point to plot; allocate bits first")
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install matplotlib") from None
    panels = 2 if measured or chosen or uniform else 1
    figure = Figure(figsize=(5.2 * panels, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    _draw_predicted(axes[0], predicted)
    if panels == 2:
        _draw_measured(axes[1], measured, chosen, uniform, measured_label)
    for axis in axes:
        _finish(axis, target_bytes)
    try:
        # no dates and no random ids: the same points give the same file
        with rc_context({"svg.hashsalt": "tq", "svg.fonttype": "none"}):
            dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(out.suffix.lower())
            figure.savefig(out, dpi=150, bbox_inches="tight", metadata=dateless)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from None
    return out


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
    axis.grid(True, color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
