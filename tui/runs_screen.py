"""Home: the list of runs, the picture of accuracy against size beside it, and a strip about the chosen run."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Resize
from textual.widgets import DataTable, Static

from tq.history import RunState
from tq.query import Query
from tui import runs_text, state, words
from tui.columns import COLUMNS
from tui.filter_bar import FilterBar
from tui.footer import Footer
from tui.keys import Key
from tui.run_actions import RUN_KEYS, RunActions
from tui.runs_table import RunsTable
from tui.screen import TqScreen, logo, spread
from tui.state import Dot, RunView, Snapshot

# Columns of the terminal from which the picture has room beside the list.
PICTURE_FROM = 100
SCOPES = ("all", "marked", "off")
# What the key goes through; a click on a header orders by any column. "": newest first.
ORDERS = ("", "acc", "size", "best", "epoch", "loss", "name", "scheme", "state", "age")
COMPARE_AT_MOST = 6


def _needs_run(screen: RunsScreen) -> str:
    return "" if screen.run else "there is no run"


class RunsScreen(RunActions, TqScreen):
    """All runs under the root, or those that the filter leaves."""

    KEYS = (
        Key("enter", "open", "Open", "open the run", group="List", why_not=_needs_run),
        Key("slash", "filter", "Filter", "show only some: w<=4 acc>90", group="List"),
        Key("space", "mark", "Mark", "mark the run", group="List", why_not=_needs_run),
        Key("c", "compare", "Compare", "compare the marked runs", group="List", why_not=lambda s: s.why_not_compare),
        Key("n", "new", "New", "start a run from a form", group="Runs", acts=True),
        *RUN_KEYS,
        Key("o", "order", "Order", "order by the next column", group="List"),
        Key("p", "picture", "Picture", "picture: all, marked, none", group="List", why_not=lambda s: s.why_no_picture),
        Key("down,j", "move('cursor_down')", "", "the next run", group="List"),
        Key("up,k", "move('cursor_up')", "", "the run above", group="List"),
        Key("end,G", "move('scroll_bottom')", "", "the oldest run", group="List"),
        Key("home,g", "move('scroll_top')", "", "the newest run", group="List"),
        Key("O", "reverse", "", "turn the order around", group="List"),
        Key("escape", "clear", "", "drop filter, then marks", group="List", why_not=lambda s: s.why_not_clear),
    )

    def __init__(self, chosen: Path | None = None) -> None:
        super().__init__()
        self._chosen = chosen
        self._query = Query()
        self._order = ""
        self._scope = "all"
        self._marked: set[Path] = set()
        self._shown: tuple[RunView, ...] = ()
        # What the dots were made of: of hundreds of runs they are not made again for nothing.
        self._pictured: list[RunState] = []
        self._dots: tuple[Dot, ...] = ()

    def compose(self) -> ComposeResult:
        """Bar, filter, list and picture, strip, system line, footer."""
        yield Static(id="bar")
        yield FilterBar()
        with Horizontal(id="body"):
            yield RunsTable(id="runs")
            with Vertical(id="empty"):
                yield Static(id="empty-text", markup=False)
            yield Vertical(id="side")
        yield Static(id="strip")
        yield Static(id="system", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Nothing is known until the first snapshot."""
        self.query_one(RunsTable).focus()
        self.show(self.tq.snapshot)

    def on_resize(self, event: Resize) -> None:
        """Wider terminals show more columns, and the picture."""
        self.redraw()

    def on_screen_resume(self) -> None:
        """Back from a run: its output is no longer the one to read."""
        self._choose(self._chosen)

    # --- drawing ---

    def show(self, snapshot: Snapshot) -> None:
        """Draw the snapshot; the cursor stays on its run."""
        table = self.query_one(RunsTable)
        # a key may have moved the cursor since, of which the message has not come yet
        self._chosen = table.chosen or self._chosen
        self._shown = state.select(snapshot.runs, self._query, self._order, snapshot.now)
        self._marked &= {run.path for run in snapshot.runs}
        shown = [run.path for run in self._shown]
        if shown and self._chosen not in shown:
            # the next one down where the chosen run has gone
            self._choose(shown[max(0, min(table.cursor_row, len(shown) - 1))])
        left = Content.assemble(logo("runs"), ("  in ", "$muted"), words.clean(self.tq.shown_root))
        right = runs_text.counts(snapshot, len(shown), len(self._marked))
        self.put("#bar", spread(left, right, self.size.width))
        empty = self.query_one("#empty")
        # before the disk was read there is nothing to say yet
        table.display, empty.display = bool(shown), not shown and bool(snapshot.whole or snapshot.runs)
        if shown and self.focused is None:
            table.focus()
        self.put("#empty-text", runs_text.nothing(snapshot, self._query.text))
        width = self._draw_picture()
        table.lay_out(width, self._order)
        table.fill(self._shown, snapshot.now, self._chosen, self._marked)
        self._draw_strip()
        self.put("#system", words.system_line(snapshot.system))
        self.query_one(Footer).check()

    def _draw_picture(self) -> int:
        """Draw the picture where it has room; returns the columns that are left for the list."""
        side, width = self.query_one("#side"), self.size.width
        side.display = not self.why_no_picture and self._scope != "off" and bool(self._shown)
        if not side.display:
            return width
        wide = max(40, width * 2 // 5)
        side.styles.width = wide
        if side.children:
            self._update_picture()
        else:
            self.call_after_refresh(self._mount_picture)
        return width - wide

    def _mount_picture(self) -> None:
        # Imported late: plotext is a part of the start-up time that the first frame does not need.
        from tui.pareto import Pareto

        side = self.query_one("#side")
        if self.is_attached and not side.children:
            side.mount(Pareto(id="pareto"))
            self.call_after_refresh(self._update_picture)

    def _update_picture(self) -> None:
        from tui.pareto import Pareto

        for picture in self.query(Pareto):
            marked = self._scope == "marked"
            runs = [run for run in self._shown if run.path in self._marked or not marked]
            empty = "no run is marked: space marks one" if marked and not runs else "no run has written its size yet"
            states = [run.state for run in runs]
            if len(states) != len(self._pictured) or not all(map(operator.is_, states, self._pictured)):
                self._pictured, self._dots = states, state.dots(runs)
            picture.draw(self._dots, chosen=self._chosen, marked=self._marked, empty=empty)

    def _draw_strip(self) -> None:
        run = self.run
        self.query_one("#strip").display = run is not None
        if run:
            self.put("#strip", runs_text.strip(run))

    # --- the chosen run ---

    @property
    def run(self) -> RunView | None:
        """The run under the cursor."""
        path = self.query_one(RunsTable).chosen or self._chosen
        return next((run for run in self._shown if run.path == path), None)

    def _choose(self, path: Path | None) -> None:
        self._chosen = path
        # `is_current` would be true below another screen too
        if self.app.screen is self:
            self.tq.poller.watch(path)

    def on_data_table_row_highlighted(self) -> None:
        """Strip, picture and footer follow the cursor, and the poller reads that run's output."""
        if self.run is None:
            return
        self._choose(self.run.path)
        self._draw_strip()
        self.query_one(Footer).check()
        # The list first: it is what the eye follows.
        self.call_after_refresh(self._update_picture_of_now)

    def _update_picture_of_now(self) -> None:
        if self.query_one("#side").display:
            self._update_picture()

    def on_data_table_row_selected(self) -> None:
        """Enter on a row, or a click on the chosen one."""
        self.action_open()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Order by the column; once more turns it around."""
        order = next((column.sort for column in COLUMNS if column.title == event.column_key.value), "")
        if order:
            self._set_order(f"-{order}" if order == self._order else order)

    def on_pareto_picked(self, event: Any) -> None:
        """A dot in the picture was clicked."""
        self.query_one(RunsTable).choose(event.path)

    def on_filter_bar_changed(self, event: FilterBar.Changed) -> None:
        """Show what is wanted now."""
        self._query = event.wanted
        self.redraw()

    def on_filter_bar_left(self) -> None:
        """Back to the list, if there is one: a key would else go on into the filter."""
        table = self.query_one(RunsTable)
        self.set_focus(table if table.display else None)

    # --- reasons ---

    @property
    def why_not_compare(self) -> str:
        """Why the marked runs cannot be compared."""
        n = len(self._marked)
        return "" if 2 <= n <= COMPARE_AT_MOST else f"mark 2 to {COMPARE_AT_MOST} runs with space; {n} are marked"

    @property
    def why_no_picture(self) -> str:
        """Why there is no room for the picture."""
        width = self.size.width
        return "" if width >= PICTURE_FROM else f"the picture needs {PICTURE_FROM} columns; there are {width}"

    @property
    def why_not_clear(self) -> str:
        """Why there is nothing to drop."""
        return "" if self.query_one(FilterBar).display or self._marked else "there is no filter and no mark to drop"

    # --- keys ---

    def action_open(self) -> None:
        """Show the chosen run in full."""
        if run := self.run:
            self.tq.open_run(run.path)

    def action_new(self) -> None:
        """The form for a new run."""
        self.tq.open_form()

    def action_filter(self) -> None:
        """Type a filter."""
        self.query_one(FilterBar).type()

    def action_clear(self) -> None:
        """Drop the filter; without one, the marks."""
        if self.query_one(FilterBar).display:
            self.query_one(FilterBar).drop()
            self.query_one(RunsTable).focus()
        else:
            self._marked.clear()
            self.redraw()

    def action_move(self, how: str) -> None:
        """The table's own moves, also by letters; its home and end would move by columns."""
        getattr(self.query_one(RunsTable), f"action_{how}")()

    def action_mark(self) -> None:
        """Mark the chosen run, or take its mark away, and go on to the next."""
        if run := self.run:
            self._marked ^= {run.path}
            self.query_one(RunsTable).action_cursor_down()
            self.redraw()

    def action_compare(self) -> None:
        """The marked runs side by side, in the order of the list."""
        self.tq.open_comparison(tuple(run.path for run in self.tq.snapshot.runs if run.path in self._marked))

    def action_order(self) -> None:
        """Order by the next column."""
        at = ORDERS.index(self._order) if self._order in ORDERS else 0
        self._set_order(ORDERS[(at + 1) % len(ORDERS)])

    def action_reverse(self) -> None:
        """Turn the order around."""
        self._set_order(self._order.removeprefix("-") if self._order.startswith("-") else f"-{self._order or 'age'}")

    def action_picture(self) -> None:
        """All runs, only the marked ones, or no picture."""
        self._scope = SCOPES[(SCOPES.index(self._scope) + 1) % len(SCOPES)]
        self.redraw()

    def _set_order(self, order: str) -> None:
        self._order = order
        self.redraw()
