"""A line chart of a run: training dim, evaluations bright, the best one marked. The numbers come from tui.curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from textual.color import Color
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual_plotext import PlotextPlot

from tui import curves
from tui.curves import Curve, Picture


class Chart(PlotextPlot):
    """Draws a Picture for its size. Hides nothing: NaN draws as a gap, and a click chooses the chart."""

    # plotext draws on the surface colour
    DEFAULT_CSS = """
    Chart {
        border: round $border-blurred;
        background: $surface;
        border-title-color: $foreground;
        border-subtitle-color: $muted;
    }
    Chart.chosen { border: round $primary; }
    """

    class Chosen(Message):
        """The chart was clicked; `twice` for a double click."""

        def __init__(self, chart: Chart, twice: bool) -> None:
            super().__init__()
            self.chart, self.twice = chart, twice

    class Scrolled(Message):
        """The wheel was turned over the chart: by > 0 asks for a closer look."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._asked: Picture | None = None
        self._drawn: tuple[Picture, int, int, str] | None = None

    def on_resize(self) -> None:
        """The ticks depend on the size: draw again what was asked for, not only at the next snapshot."""
        if self._asked is not None:
            self.draw(self._asked)

    def on_click(self, event: Click) -> None:
        """Choose it; twice maximises it."""
        self.post_message(self.Chosen(self, event.chain == 2))

    def on_mouse_scroll_up(self) -> None:
        """Closer."""
        self.post_message(self.Scrolled(1))

    def on_mouse_scroll_down(self) -> None:
        """Farther."""
        self.post_message(self.Scrolled(-1))

    def draw(self, picture: Picture) -> None:
        """Draw. Nothing happens when neither picture, size nor theme has changed."""
        self._asked = picture
        width, height = self.content_size
        drawn, self._drawn = self._drawn, (picture, width, height, self.app.theme)
        # By identity first: comparing long curves takes as long as drawing them.
        same = drawn is not None and drawn[1:] == self._drawn[1:] and (drawn[0] is picture or drawn[0] == picture)
        if same or width < 12 or height < 3:
            return
        self.border_title, self.border_subtitle = _legend(picture), _below(picture)
        plt = self.plt
        plt.clear_figure()
        plt.frame(False)
        ys = [y for curve in picture.curves for y in self._line(curve, picture, width)]
        low, high = (curves.log_span if picture.log else curves.span)(ys)
        for curve in picture.curves:
            self._mark(curve, picture, (low, high))
        x_high = picture.x_high if picture.x_high > picture.x_low else picture.x_low + 1
        plt.xlim(picture.x_low, x_high)
        plt.ylim(low, high)
        x_ticks = curves.ticks(picture.x_low, x_high, max(3, width // 7), whole=picture.whole)
        plt.xticks(x_ticks, [curves.tick_text(x) for x in x_ticks])
        y_ticks = (curves.log_ticks if picture.log else curves.ticks)(low, high, max(3, height // 2))
        # All labels of one width: the axis then does not jump when a tick comes or goes.
        words = [curves.tick_text(10**y if picture.log else y) for y in y_ticks]
        plt.yticks(y_ticks, [f"{word:>5}" for word in words])
        self.refresh()

    def _line(self, curve: Curve, picture: Picture, width: int) -> list[float]:
        """Draw one curve; the values that it has drawn."""
        # Braille has two dots a column: more points than that cannot be told apart.
        xs, ys = curves.shown(curve, picture.x_low, picture.x_high, 2 * width, log=picture.log)
        color = Color.parse(self.app.theme_variables[curve.tone]).rgb
        few = curve.dots and 3 * len(xs) <= width
        for part_xs, part_ys in curves.pieces(xs, ys):
            if len(part_xs) > 1:
                self.plt.plot(part_xs, part_ys, marker="braille", color=color)
            if few or len(part_xs) == 1:
                self.plt.scatter(part_xs, part_ys, marker="dot", color=color)
        return ys

    def _mark(self, curve: Curve, picture: Picture, span: tuple[float, float]) -> None:
        """A star at the best point, if it is in sight."""
        if curve.best is None:
            return
        x, y = curve.best
        if picture.log:
            y = math.log10(y) if y > 0 else math.nan
        if picture.x_low <= x <= picture.x_high and span[0] <= y <= span[1]:
            color = Color.parse(self.app.theme_variables["success"]).rgb
            self.plt.scatter([x], [y], marker="★", color=color)


def _legend(picture: Picture) -> Content:
    parts: list[Content | tuple[str, str]] = [Content.styled(picture.title, "bold"), (" ", "")]
    for curve in picture.curves:
        if curve.label:
            parts += [(" • " if curve.dots else " ━ ", f"${curve.tone}"), (curve.label, "$muted")]
        if curve.best is not None:
            parts += [(" ★ ", "$success"), (f"{curve.best[1]:.4g}", "")]
    return Content.assemble(*parts)


def _below(picture: Picture) -> str:
    words: Sequence[str] = (picture.note, "log y" if picture.log else "", picture.x_label)
    return " · ".join(filter(None, words))
