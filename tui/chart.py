"""Line charts of a run: the training curve as a line, evaluations as dots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from textual.color import Color
from textual.content import Content
from textual_plotext import PlotextPlot

from tq.history import binned


@dataclass(frozen=True)
class Curve:
    """One series. `tone` is a theme variable; dots for few points, a line for many."""

    label: str
    tone: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False


class Chart(PlotextPlot):
    """A chart with its legend in the border's title. Hides nothing: NaN draws as a gap."""

    def __init__(self, title: str, *, id: str) -> None:
        super().__init__(id=id)
        self._heading = title
        self._drawn: object = None
        self._asked: tuple[Sequence[Curve], float, tuple[float, float] | None] | None = None

    def on_resize(self) -> None:
        """The ticks depend on the size: draw again what was asked for, not only at the next snapshot."""
        if self._asked is not None:
            curves, x_max, y_range = self._asked
            self.draw(curves, x_max=x_max, y_range=y_range)

    def draw(self, curves: Sequence[Curve], *, x_max: float, y_range: tuple[float, float] | None = None) -> None:
        """Draw `curves` from x = 0 to `x_max` (or as far as they go). Nothing happens when nothing has changed."""
        self._asked = curves, x_max, y_range
        width, height = self.content_size
        key = (tuple(curves), x_max, width, height, self.app.theme)
        if key == self._drawn or width < 12 or height < 4:
            return
        self._drawn = key
        colors = self.app.theme_variables
        plt = self.plt
        plt.clear_figure()
        plt.frame(False)
        kept = []
        for curve in curves:
            # Braille has two dots a column: more points than that cannot be told apart.
            xs, ys = (curve.xs, curve.ys) if curve.dots else binned(curve.xs, curve.ys, 2 * width)
            color = Color.parse(colors[curve.tone]).rgb
            for part_xs, part_ys in _pieces(xs, ys):
                kept += [(x, y) for x, y in zip(part_xs, part_ys, strict=True)]
                if curve.dots or len(part_xs) == 1:
                    plt.scatter(part_xs, part_ys, marker="dot", color=color)
                else:
                    plt.plot(part_xs, part_ys, marker="braille", color=color)
        self.border_title = self._legend(curves)
        x_end = max([x_max, *(x for x, _ in kept)]) or 1.0
        low, high = y_range or _span([y for _, y in kept])
        plt.xlim(0, x_end)
        plt.ylim(low, high)
        x_ticks = ticks(0, x_end, max(3, width // 6), whole=True)
        y_ticks = ticks(low, high, max(3, height // 2))
        plt.xticks(x_ticks, [f"{x:g}" for x in x_ticks])
        plt.yticks(y_ticks, [f"{y:g}" for y in y_ticks])
        self.refresh()

    def _legend(self, curves: Sequence[Curve]) -> Content:
        parts: list[Content | tuple[str, str]] = [Content.styled(self._heading, "bold")]
        for curve in curves:
            parts += [("  • " if curve.dots else "  ━ ", f"${curve.tone}"), (curve.label, "$muted")]
        return Content.assemble(*parts)


def ticks(low: float, high: float, at_most: int, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / at_most))
    found: list[float] = []
    for step in (m * power for m in (1, 2, 5, 10, 20, 50)):
        if whole and step < 1:
            continue
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        # One tick alone gives no scale: then rather one or two too many.
        if last - first < 1 and found:
            break
        found = [round(i * step, 12) for i in range(first, last + 1)]
        if len(found) <= at_most:
            break
    return found


def _span(ys: Sequence[float]) -> tuple[float, float]:
    """The range to draw: a little more than the data; the few highest spikes of a long curve may leave it."""
    if not ys:
        return 0.0, 1.0
    ordered = sorted(ys)
    low, high = ordered[0], ordered[-1 if len(ordered) < 50 else -1 - len(ordered) // 100]
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (max(0.0, low - pad) if low >= 0 else low - pad), high + pad


def _pieces(xs: Sequence[float], ys: Sequence[float]) -> Iterator[tuple[list[float], list[float]]]:
    """The finite stretches of a curve."""
    piece: tuple[list[float], list[float]] = ([], [])
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            piece[0].append(x)
            piece[1].append(y)
        elif piece[0]:
            yield piece
            piece = ([], [])
    if piece[0]:
        yield piece
