"""What all pictures share: a row or two of panels, the colours, and a file that is the same for the same data.

The colours are Okabe and Ito's, which stay apart for colour-blind readers ("Color Universal Design", 2008).
matplotlib is imported when a figure is made, and pyplot never: no window system is asked for, no state stays behind.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
# the eight without yellow, which is lost on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
PANELS_A_ROW = 3
_DATELESS = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def check_suffix(out: Path, *, also: str = "") -> None:
    """Raise ValueError unless the name says a format; `also` is what else the caller can write."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"plot file {out} must end in {', '.join(SUFFIXES)}{also}")


def new_figure(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` empty panels. Raises ValueError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install matplotlib") from None
    rows = ceil(count / PANELS_A_ROW)
    columns = ceil(count / rows)
    figure = Figure(figsize=(5.2 * columns, 4.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    for axis in axes[:count]:
        axis.grid(True, color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def save(figure: Figure, out: Path) -> Path:
    """Write the figure in the format of the name's end and return `out`. Raises ValueError where it cannot."""
    from matplotlib import rc_context

    try:
        # no dates and no random ids: the same runs give the same file
        with rc_context({"svg.hashsalt": "tq", "svg.fonttype": "none"}):
            figure.savefig(out, dpi=150, bbox_inches="tight", metadata=_DATELESS.get(out.suffix.lower()))
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from None
    return out
