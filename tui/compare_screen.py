"""The marked runs side by side: their curves over each other, their figures, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widgets import Static

from tui import comparison
from tui.chart import Chart
from tui.comparison import Row
from tui.curves import Curve, Picture
from tui.footer import Footer
from tui.keys import Key
from tui.screen import TqScreen, logo, spread
from tui.state import RunView, Snapshot

# One of the theme's colours a run, as many as can be told apart.
TONES = ("primary", "accent", "success", "error", "secondary", "foreground")
LABEL = 16
WIDEST = 24


class CompareScreen(TqScreen):
    """Two charts above a table with a column a run."""

    KEYS = (
        Key("escape,backspace,c", "back", "Back", "back to the list"),
        Key("down,j", "scroll(1)", "Down", "scroll the table", shown="↓"),
        Key("up,k", "scroll(-1)", "Up", "scroll the table", shown="↑"),
    )

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self.paths = tuple(paths)

    def compose(self) -> ComposeResult:
        """Bar, charts, table, footer."""
        yield Static(id="bar")
        with Horizontal(id="charts"):
            yield Chart(id="accuracy")
            yield Chart(id="loss")
        with VerticalScroll(id="comparison", can_focus=False):
            yield Static(id="table")
        yield Footer()

    def on_mount(self) -> None:
        """Draw what is known."""
        self.show(self.tq.snapshot)

    def on_resize(self, event: Resize) -> None:
        """Charts are drawn for their size, which is known after the next layout."""
        self.call_after_refresh(self.redraw)

    def show(self, snapshot: Snapshot) -> None:
        """Draw the snapshot; a run that was deleted drops out."""
        runs = [run for path in self.paths if (run := snapshot.find(path)) and not run.gone]
        left = Content.assemble(logo("compare"), (f"  {len(runs)} runs", "$muted"))
        right = Content.styled("★ the best " if len(runs) > 1 else "", "$muted")
        self.put("#bar", spread(left, right, self.size.width))
        self._draw_charts(runs)
        self.put("#table", self._table(runs))
        self.query_one(Footer).check()

    def action_back(self) -> None:
        """To the list."""
        self.dismiss()

    def action_scroll(self, by: int) -> None:
        """Move the table by a line."""
        self.query_one("#comparison").scroll_relative(y=by, animate=False)

    def _draw_charts(self, runs: Sequence[RunView]) -> None:
        for name, title, pick in (("accuracy", "accuracy %", _accuracy), ("loss", "training loss", _loss)):
            curves = [Curve(run.tag, tone, *pick(run)) for tone, run in zip(TONES, runs, strict=False) if pick(run)[0]]
            last = max([1.0, *(run.state.epochs for run in runs), *(curve.xs[-1] for curve in curves)])
            picture = Picture(title, tuple(curves), 0.0, last, "epochs", whole=last >= 3)
            self.query_one(f"#{name}", Chart).draw(picture)

    def _table(self, runs: Sequence[RunView]) -> Content:
        if not runs:
            return Content.styled("These runs have been deleted. esc goes back to the list.", "$muted")
        wide = min(WIDEST, max(8, (self.size.width - LABEL - 4) // len(runs) - 1))
        tones = TONES[: len(runs)]
        lines = [
            _line(
                "",
                [Content.styled(f"━ {run.tag}", f"bold ${tone}") for tone, run in zip(tones, runs, strict=True)],
                wide,
            ),
            _line("", [Content.styled(run.name, f"${tone}") for tone, run in zip(tones, runs, strict=True)], wide),
            *(_row(row, wide) for row in comparison.figures(runs)),
            Content(""),
        ]
        if found := comparison.differences(runs):
            lines += [Content.styled("what differs", "bold"), *(_row(row, wide) for row in found)]
        else:
            lines.append(Content.styled("All settings, versions and devices are the same.", "$muted"))
        return Content("\n").join(lines)


def _accuracy(run: RunView) -> tuple[list[float], list[float]]:
    """Evaluations by epoch; of a run that has none yet, what it trains at."""
    evals = [one for one in run.state.evals if one.split != "train"]
    return _over_epochs(run, evals or run.state.points, lambda one: one.acc)


def _loss(run: RunView) -> tuple[list[float], list[float]]:
    return _over_epochs(run, run.state.points, lambda one: one.loss)


def _over_epochs(run: RunView, points: Sequence[Any], pick: Callable[[Any], float]) -> tuple[list[float], list[float]]:
    scale = run.state.steps_per_epoch or 1
    return [one.step / scale for one in points], [pick(one) for one in points]


def _row(row: Row, wide: int) -> Content:
    cells = []
    for i, text in enumerate(row.cells):
        if i in row.best:
            cells.append(Content.assemble((text, "bold $success"), (" ★", "$accent")))
        else:
            cells.append(Content.styled(text, "$muted" if text == "-" else ""))
    return _line(row.label, cells, wide)


def _line(label: str, cells: Sequence[Content], wide: int) -> Content:
    parts = [Content.styled(f"{label[: LABEL - 1]:<{LABEL}}", "$muted")]
    for cell in cells:
        parts += [cell.truncate(wide, ellipsis=True, pad=True), Content(" ")]
    return Content("").join(parts)
