"""The table of runs: row i shows the i-th run, so that a new order or a new run changes cells and not the table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from tui import words
from tui.columns import GAP, Column, fitting
from tui.state import RunView

MARK = "◆"


class RunsTable(DataTable[Text]):
    """`lay_out` chooses the columns for a width, `fill` shows runs; the cursor stays on its run."""

    # The screen's keys move by runs, where the table's own would move by columns.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home", "scroll_top", show=False),
        Binding("end", "scroll_bottom", show=False),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, cursor_type="row", cell_padding=0)
        self._columns: tuple[tuple[Column, int], ...] = ()
        self._laid_out: object = None
        # By row: the run, what else its cells show (its mark, the theme), the cells, and when its age is another.
        self._slots: list[tuple[RunView, tuple[object, ...], list[Text], float]] = []

    @property
    def chosen(self) -> Path | None:
        """The run under the cursor, as it is drawn."""
        row = self.cursor_row
        return self._slots[row][0].path if 0 <= row < len(self._slots) else None

    def choose(self, path: Path) -> None:
        """Put the cursor on a run, if it is in the list."""
        for row, (run, *_) in enumerate(self._slots):
            if run.path == path:
                self.move_cursor(row=row)

    def lay_out(self, width: int, sort: str) -> None:
        """Choose the columns; the one that `sort` orders by has an arrow."""
        # a scrollbar takes a column, the mark of a run two
        columns = fitting(width - 1 - 2)
        if (columns, sort) == self._laid_out:
            return
        self._laid_out, self._columns = (columns, sort), columns
        self._slots = []
        self.clear(columns=True)
        self.add_column("", width=2, key="mark")
        arrow = "▴" if sort.startswith("-") else "▾"
        marked = False
        for column, wide in columns:
            title = column.title
            if column.sort and column.sort == sort.removeprefix("-") and not marked:
                title, marked = title + arrow, True
            self.add_column(_fit(title, column, wide), width=wide + GAP, key=column.title)

    def fill(self, runs: Sequence[RunView], now: float, chosen: Path | None, marked: Collection[Path]) -> None:
        """Show these runs in this order, the cursor on `chosen`."""
        with self.prevent(DataTable.RowHighlighted):
            for row, run in enumerate(runs):
                self._show(row, run, now, run.path in marked)
            while len(self._slots) > len(runs):
                self._slots.pop()
                self.remove_row(str(len(self._slots)))
            at = next((row for row, run in enumerate(runs) if run.path == chosen), None)
            if at is not None and at != self.cursor_row:
                self.move_cursor(row=at)

    def _show(self, row: int, run: RunView, now: float, mark: bool) -> None:
        made_of = (mark, self.app.theme)
        old = self._slots[row] if row < len(self._slots) else None
        # `is` for the run: comparing two of them field by field takes longer than drawing one
        if old and old[0] is run and old[1] == made_of and now < old[3]:
            return
        cells, until = self._cells(run, now, mark), now + words.age_lasts(now - run.started)
        if old is None:
            self._slots.append((run, made_of, cells, until))
            self.add_row(*cells, key=str(row))
            return
        self._slots[row] = run, made_of, cells, until
        for name, before, after in zip(("mark", *(c.title for c, _ in self._columns)), old[2], cells, strict=True):
            if before != after or before.style != after.style:
                self.update_cell(str(row), name, after)

    def _cells(self, run: RunView, now: float, mark: bool) -> list[Text]:
        colors = self.app.theme_variables
        cells = [Text(f"{MARK} " if mark else "  ", style=colors["accent"])]
        for column, wide in self._columns:
            words = column.text(run, now)
            if column.title == "Run":
                cells.append(_name(run, words, wide, colors["muted"]))
                continue
            quiet = words in ("-", "…") or column.title in ("Curve", "Age")
            tone = run.tone if column.title == "Status" else "muted" if quiet else ""
            cells.append(_fit(words, column, wide, colors.get(tone, "")))
        return cells


def _name(run: RunView, words: str, wide: int, quiet: str) -> Text:
    """resnet20-w1a2 3f2c: the tag tells runs of one name apart, so a long name gives way to it."""
    text = Text(words)
    text.truncate(wide - 5, overflow="ellipsis")
    text.append(f" {run.tag}", style=quiet)
    text.truncate(wide + GAP, pad=True)
    return text


def _fit(words: str, column: Column, wide: int, style: str = "") -> Text:
    text = Text(words, style=style, no_wrap=True, end="")
    text.truncate(wide, overflow="ellipsis")
    text.align(column.justify, wide)
    text.pad_right(GAP)
    return text
