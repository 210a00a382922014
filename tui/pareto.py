"""The picture nobody else has: accuracy against size on a log axis, with the Pareto front through the best runs.

Drawn with plotext, of which the log axis is not used: its limits and ticks do not go together there, so x is log10.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

from textual.app import RenderResult
from textual.color import Color
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual_plotext import PlotextPlot

from tq.byte_size import size_text
from tui.curves import ticks
from tui.state import Dot

# A run at the right edge still has room for its name.
LABEL_ROOM = 8


class Pareto(PlotextPlot):
    """`draw(dots, ...)`; a click on a dot posts `Picked`."""

    class Picked(Message):
        """A run was clicked."""

        def __init__(self, path: Path) -> None:
            super().__init__()
            self.path = path

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._dots: tuple[Dot, ...] = ()
        self._chosen: Path | None = None
        self._marked: Collection[Path] = ()
        self._drawn: object = None
        self._cells: list[tuple[int, int, Dot]] = []
        self._empty = ""

    def draw(self, dots: Sequence[Dot], *, chosen: Path | None, marked: Collection[Path], empty: str) -> None:
        """Show these runs, the chosen one bright; `empty` is said where there are none."""
        self._dots, self._chosen, self._marked, self._empty = tuple(dots), chosen, frozenset(marked), empty
        key = (self._dots, chosen, self._marked, empty, self.content_size, self.app.theme)
        if key == self._drawn:
            return
        self._drawn = key
        front = sum(dot.front for dot in dots)
        self.border_title = Content.assemble(("accuracy %", "bold"), (" against size", "$muted"))
        self.border_subtitle = f"{len(dots)} run{'s' * (len(dots) != 1)}, {front} on the front" if dots else ""
        self._plot_dots()
        self.refresh()

    def on_resize(self) -> None:
        """The places of the labels depend on the size."""
        self.draw(self._dots, chosen=self._chosen, marked=self._marked, empty=self._empty)

    def render(self) -> RenderResult:
        """The plot, or why there is none."""
        return super().render() if self._dots else Content.styled(self._empty, "$muted")

    def on_click(self, event: Click) -> None:
        """Choose the run nearest to the mouse, if one is near."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        near = [(abs(x - offset.x) + 2 * abs(y - offset.y), i) for i, (x, y, _) in enumerate(self._cells)]
        if near and min(near)[0] <= 4:
            self.post_message(self.Picked(self._cells[min(near)[1]][2].path))

    def _plot_dots(self) -> None:
        width, height = self.content_size
        self._cells = []
        if not self._dots or width < 20 or height < 5:
            return
        plt, colors = self.plt, {k: Color.parse(v).rgb for k, v in self._colors().items()}
        plt.clear_figure()
        plt.frame(False)
        frame = _Frame(self._dots, width, height)
        plt.xlim(frame.x0, frame.x1)
        plt.ylim(frame.y0, frame.y1)
        plt.xticks([math.log10(x) for x in frame.x_ticks], [size_text(x) for x in frame.x_ticks])
        plt.yticks(frame.y_ticks, frame.y_labels)
        for dataset in {dot.dataset for dot in self._dots}:
            front = [dot for dot in self._dots if dot.front and dot.dataset == dataset]
            xs, ys = [math.log10(dot.bytes) for dot in front], [dot.accuracy for dot in front]
            if len(front) > 1:
                plt.plot(xs, ys, marker="braille", color=colors["line"])
        # The last to be drawn is on top: the chosen run.
        for dot in sorted(self._dots, key=self._rank):
            sign, tone = ("◆", "chosen") if dot.path == self._chosen else ("●", self._tone(dot))
            plt.scatter([math.log10(dot.bytes)], [dot.accuracy], marker=sign, color=colors[tone])
            self._cells.append((*frame.cell(dot), dot))
        taken: set[tuple[int, int]] = {(x, y) for x, y, _ in self._cells}
        for dot in sorted(self._dots, key=self._rank, reverse=True):
            if dot.path == self._chosen or dot.front or dot.path in self._marked:
                tone = "chosen" if dot.path == self._chosen else "label"
                if place := frame.place(dot, taken):
                    plt.text(dot.label, *place, color=colors[tone], background="default", alignment="left")

    def _colors(self) -> dict[str, str]:
        found = self.app.theme_variables
        tones = {"line": "secondary", "front": "success", "other": "muted", "marked": "primary"}
        return {name: found[tone] for name, tone in {**tones, "chosen": "accent", "label": "foreground"}.items()}

    def _tone(self, dot: Dot) -> str:
        return "marked" if dot.path in self._marked else "front" if dot.front else "other"

    def _rank(self, dot: Dot) -> int:
        return 3 if dot.path == self._chosen else 2 if dot.path in self._marked else int(dot.front)


class _Frame:
    """The axes: ranges, ticks, and which cell of the screen a run falls on."""

    def __init__(self, dots: Sequence[Dot], width: int, height: int) -> None:
        xs, ys = [math.log10(dot.bytes) for dot in dots], [dot.accuracy for dot in dots]
        pad_y = 0.08 * (max(ys) - min(ys)) or 1.0
        self.y0, self.y1 = max(0.0, min(ys) - pad_y), max(ys) + pad_y
        self.y_ticks = ticks(self.y0, self.y1, max(3, height // 3))
        self.y_labels = [f"{y:g}" for y in self.y_ticks]
        # plotext puts the numbers of the y axis to the left, and those of the x axis below
        self.left = max(map(len, self.y_labels))
        self.columns, self.rows = max(2, width - self.left), max(2, height - 1)
        # at least a factor of two, so that one size alone has an axis too
        span = max(max(xs) - min(xs), math.log10(2))
        middle = (max(xs) + min(xs)) / 2
        self.x0, self.x1 = middle - 0.55 * span, middle + (0.55 + LABEL_ROOM / self.columns) * span
        self.x_ticks = _log_ticks(self.x0, self.x1, max(2, self.columns // 10))

    def cell(self, dot: Dot) -> tuple[int, int]:
        """Column and row of a run within the widget's content."""
        x = (math.log10(dot.bytes) - self.x0) / (self.x1 - self.x0)
        y = (dot.accuracy - self.y0) / (self.y1 - self.y0)
        # as plotext rounds
        return self.left + round(x * (self.columns - 1)), self.rows - 1 - round(y * (self.rows - 1))

    def place(self, dot: Dot, taken: set[tuple[int, int]]) -> tuple[float, float] | None:
        """Where the name of a run can stand (of its first letter); None where all is taken. Takes its cells."""
        column, row = self.cell(dot)
        right, left = column + 2, column - 1 - len(dot.label)
        middle = min(max(self.left, column - len(dot.label) // 2), self.left + self.columns - len(dot.label))
        # above first: the front's line runs to the left and to the right
        for first, y in ((middle, row - 1), (right, row), (left, row), (middle, row + 1), (right, row + 1)):
            inside = self.left <= first <= self.left + self.columns - len(dot.label) and 0 <= y < self.rows
            cells = {(x, y) for x in range(first - 1, first + len(dot.label) + 1)} - {(column, row)}
            if inside and not cells & taken:
                taken |= cells
                x, y_up = (first - self.left) / (self.columns - 1), (self.rows - 1 - y) / (self.rows - 1)
                return self.x0 + x * (self.x1 - self.x0), self.y0 + y_up * (self.y1 - self.y0)
        return None


def _log_ticks(low: float, high: float, at_most: int) -> list[float]:
    """1, 2, 5 times powers of ten between 10^low and 10^high; fewer where they would not fit."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in decades for m in steps if low <= math.log10(m * 10.0**e) <= high]
        if len(found) <= at_most:
            break
    return found[:: math.ceil(len(found) / at_most)] if found else [10 ** ((low + high) / 2)]
