"""The charts of a run: which of them are in sight, which one is chosen, and how all of them are looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from textual.app import ComposeResult
from textual.containers import Container

from tq.history import RunState
from tui import curves, metrics
from tui.chart import Chart
from tui.curves import Picture, Window
from tui.metrics import METRICS, Metric, View

# Rows from which two charts stand one above the other, and columns of the screen from which three stand side by side.
TWO_ROWS, THREE_COLUMNS = 24, 150


class ChartGrid(Container):
    """Pages of charts; the one with the chosen chart is shown. `draw` after every change."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.view = View()
        self.alone = False
        """the chosen chart has all the room"""
        self._chosen = 0
        self._pictures: dict[str, tuple[RunState, View, Picture]] = {}

    def compose(self) -> ComposeResult:
        """Every chart there may be; those that are not in sight are hidden."""
        for metric in METRICS:
            yield Chart(id=metric.name)

    def choose(self, state: RunState, by: int) -> None:
        """The next or the previous chart, around the ends."""
        self._chosen = (self._chosen + by) % len(metrics.available(state))

    def choose_chart(self, state: RunState, chart: Chart) -> None:
        """The one that was clicked."""
        self._chosen = [metric.name for metric in metrics.available(state)].index(chart.id or "")

    def zoom(self, state: RunState, by: int) -> None:
        """Twice as near (by > 0) or as far."""
        covered = metrics.axis(state, self.view.x).covered
        change = curves.zoom_in if by > 0 else curves.zoom_out
        self._look(window=change(self.view.window, covered))

    def pan(self, by: int) -> None:
        """A quarter of the window to the left or right."""
        self._look(window=curves.pan(self.view.window or Window(), by / 4))

    def whole(self) -> None:
        """From the start to the planned end."""
        self._look(window=None)

    def turn_axis(self) -> None:
        """The next unit of the x axis."""
        self._look(x=curves.XS[(curves.XS.index(self.view.x) + 1) % len(curves.XS)])

    def turn_log(self, state: RunState) -> None:
        """Logarithmic or linear y axis of the chosen chart."""
        self._look(log=self.view.log ^ {metrics.available(state)[self._chosen].name})

    def turn_smoothing(self) -> None:
        """More smoothing, after the strongest none."""
        self._look(smoothing=(self.view.smoothing + 1) % len(curves.SMOOTHING))

    def draw(self, state: RunState) -> None:
        """Show the page of the chosen chart."""
        known = metrics.available(state)
        self._chosen = min(self._chosen, len(known) - 1)
        columns, rows = self._shape(len(known))
        page = self._chosen // (columns * rows)
        shown = known[page * columns * rows : (page + 1) * columns * rows]
        self.styles.grid_size_columns = min(columns, len(shown))
        self.styles.grid_size_rows = rows if len(shown) > columns else 1
        for metric in METRICS:
            chart = self.query_one(f"#{metric.name}", Chart)
            chart.display = metric in shown
            chart.set_class(metric is known[self._chosen] and len(shown) > 1, "chosen")
            if metric in shown:
                chart.draw(self._picture(state, metric, known))

    def _look(self, **changes: Any) -> None:
        self.view = replace(self.view, **changes)

    def _shape(self, count: int) -> tuple[int, int]:
        """Columns and rows of the charts that are in sight at once."""
        if self.alone:
            return 1, 1
        wide = self.screen.size.width >= THREE_COLUMNS and count > 2
        return (3 if wide else 2), (2 if self.size.height >= TWO_ROWS else 1)

    def _picture(self, state: RunState, metric: Metric, known: tuple[Metric, ...]) -> Picture:
        """The same object as long as nothing in it is new, so that the chart need not draw."""
        old = self._pictures.get(metric.name)
        if old is not None and old[0] is state and old[1] == self.view:
            return old[2]
        made = metrics.picture(state, metric, self.view, place=f"{known.index(metric) + 1}/{len(known)}")
        self._pictures[metric.name] = state, self.view, made
        return made
