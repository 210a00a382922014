"""The list of runs, with a strip about the chosen one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.events import Resize
from textual.widgets import DataTable, Footer, Static

from tui import state
from tui.screen import TqScreen, logo, spread
from tui.state import RunView, Snapshot


@dataclass(frozen=True)
class Column:
    """A column of the list: its text for a run, its width (0: what is left), and the terminal width that it needs."""

    title: str
    text: Callable[[RunView], str]
    width: int
    from_width: int = 0
    justify: Literal["left", "right"] = "left"


def _time_left(run: RunView) -> str:
    """ETA of a live run, else how long it took."""
    if not run.status.live:
        return state.span(run.elapsed_s)
    return "-" if run.state.eta_s != run.state.eta_s else f"~{state.span(run.state.eta_s)}"


def _ratio(run: RunView) -> str:
    return f"{run.state.ratio:.1f}x" if run.state.packed_bytes else "-"


COLUMNS = (
    Column("Status", lambda run: f"{run.icon} {run.word}", 15),
    Column("Run", lambda run: run.name, 0),
    Column("Id", lambda run: run.tag, 4),
    Column("Data", lambda run: state.clean(str(run.config.get("dataset", "-"))), 11, 100),
    Column("Device", lambda run: state.clean(str(run.manifest.get("device", "-"))), 7, 146),
    Column("Epoch", lambda run: state.epochs(run.state), 7, justify="right"),
    Column("Accuracy", lambda run: state.percent(state.accuracy(run.state)), 8, justify="right"),
    Column("", lambda run: run.curve, state.SPARK_WIDTH, 110),
    Column("Loss", lambda run: state.number(run.state.loss), 7, 128, justify="right"),
    Column("img/s", lambda run: state.number(run.state.img_s) if run.status.live else "-", 7, 136, justify="right"),
    Column(
        "Packed",
        lambda run: state.size(run.state.packed_bytes) if run.state.packed_bytes else "-",
        8,
        96,
        justify="right",
    ),
    Column("Ratio", _ratio, 6, justify="right"),
    Column("Time", _time_left, 6, justify="right"),
)

EMPTY = """No runs yet.

Press n to start one from a form, or in another terminal:

    tq train --model resnet20 --scheme w1a2

Runs appear here as soon as they start, whoever started them."""


class RunsScreen(TqScreen):
    """All runs under the root, newest first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # The table has an enter of its own, which the footer does not show.
        Binding("enter", "open", "Open", priority=True),
        Binding("n", "new", "New"),
        Binding("s", "stop", "Stop"),
        Binding("r", "resume", "Resume"),
        Binding("c", "copy", "Copy"),
    ]

    def __init__(self, chosen: Path | None = None) -> None:
        super().__init__()
        self._chosen = chosen
        self._columns: tuple[Column, ...] = ()
        self._columns_drawn: object = None
        self._paths: tuple[Path, ...] = ()

    def compose(self) -> ComposeResult:
        """Bar, table or the hint of an empty list, strip, footer."""
        yield Static(id="bar")
        yield DataTable(id="runs", cursor_type="row", cell_padding=1)
        with Vertical(id="empty"):
            yield Static(EMPTY, markup=False)
        yield Static(id="strip")
        yield Footer()

    def on_mount(self) -> None:
        """Nothing is known until the first snapshot."""
        self.show(self.tq.snapshot)
        self.query_one("#empty").display = False

    def on_resize(self, event: Resize) -> None:
        """Wider terminals show more columns."""
        self._draw_columns(event.size.width)
        self.redraw()

    def on_screen_resume(self) -> None:
        """Back from a run: its output is no longer the one to read."""
        self.tq.poller.watch(self._chosen)

    def show(self, snapshot: Snapshot) -> None:
        """Draw the snapshot; the cursor stays on its run."""
        live = len(snapshot.live)
        count = f"{len(snapshot.runs)} run{'s' if len(snapshot.runs) != 1 else ''}"
        right = Content.assemble((f"● {live} running", "$primary" if live else "$muted"), f"   {count} ")
        self.query_one("#bar", Static).update(
            spread(
                Content.assemble(logo("runs"), ("  in ", "$muted"), state.clean(self.tq.shown_root)),
                right,
                self.size.width,
            )
        )
        table = self.query_one("#runs", DataTable)
        table.display = bool(snapshot.runs)
        self.query_one("#empty").display = not snapshot.runs
        self._fill(table, snapshot)
        self._draw_strip()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """The strip follows the cursor, and the poller reads that run's output."""
        self._chosen = self._paths[event.cursor_row] if 0 <= event.cursor_row < len(self._paths) else None
        if self.is_current:
            self.tq.poller.watch(self._chosen)
        self._draw_strip()

    def on_data_table_row_selected(self) -> None:
        """Enter on a row, or a click on the chosen one."""
        self.action_open()

    def action_open(self) -> None:
        """Show the chosen run in full."""
        if run := self._run():
            self.tq.open_run(run.path)

    def action_new(self) -> None:
        """The form for a new run."""
        self.tq.open_form()

    def action_copy(self) -> None:
        """The form, filled with the chosen run's settings."""
        run = self._run()
        self.tq.open_form(run.config if run else None)

    def action_stop(self) -> None:
        """Stop the chosen run."""
        if run := self._run():
            self.tq.stop_run(run)

    def action_resume(self) -> None:
        """Resume the chosen run."""
        if run := self._run():
            self.tq.resume_run(run)

    def _run(self) -> RunView | None:
        return self.tq.snapshot.find(self._chosen)

    def _draw_columns(self, width: int) -> None:
        columns = tuple(column for column in COLUMNS if column.from_width <= width)
        # A cell is padded on both sides, and the scrollbar takes a column.
        left_over = max(12, width - 1 - sum(column.width + 2 for column in columns))
        if (columns, left_over) == self._columns_drawn:
            return
        self._columns_drawn = columns, left_over
        self._columns, self._paths = columns, ()
        table = self.query_one("#runs", DataTable)
        table.clear(columns=True)
        for column in columns:
            table.add_column(
                Text(column.title, justify=column.justify), width=column.width or left_over, key=column.title
            )

    def _fill(self, table: DataTable[Text], snapshot: Snapshot) -> None:
        paths = tuple(run.path for run in snapshot.runs)
        if not self._columns:
            return
        if paths != self._paths:
            chosen = self._chosen
            self._paths = paths
            with self.prevent(DataTable.RowHighlighted):
                table.clear()
                for run in snapshot.runs:
                    table.add_row(*self._cells(run), key=str(run.path))
                self._chosen = chosen if chosen in paths else (paths[0] if paths else None)
                if self._chosen:
                    table.move_cursor(row=paths.index(self._chosen))
            if self.is_current:
                self.tq.poller.watch(self._chosen)
            return
        for run in snapshot.runs:
            for column, cell in zip(self._columns, self._cells(run), strict=True):
                if table.get_cell(str(run.path), column.title) != cell:
                    table.update_cell(str(run.path), column.title, cell)

    def _cells(self, run: RunView) -> list[Text]:
        colors = self.tq.theme_variables
        cells = []
        for column in self._columns:
            words = column.text(run)
            tone = (
                run.tone if column.title == "Status" else "muted" if words == "-" or column.title in ("Id", "") else ""
            )
            style = colors.get(tone, "")
            cells.append(Text(words, style=style, justify=column.justify, no_wrap=True, overflow="ellipsis"))
        return cells

    def _draw_strip(self) -> None:
        run = self._run()
        strip = self.query_one("#strip", Static)
        strip.display = run is not None
        if run is None:
            return
        lines = [Content.assemble((f"{run.icon} ", f"bold ${run.tone}"), (run.path.name, "bold"))]
        lines.append(Content.assemble((state.verdict(run), f"${run.tone}" if run.trouble else "")))
        if run.trouble:
            # The last lines say more than the first of a long traceback.
            lines += [Content.styled(line, "$muted") for line in run.trouble[1:][-2:]]
        else:
            sizes = "  ".join(filter(None, (state.sizes(run.state), state.bits(run.state))))
            lines += [Content.styled(line, "$muted") for line in (state.command(run), sizes)]
            alert = run.state.alerts[-1] if run.state.alerts else None
            if alert and alert.level != "info":
                lines.append(Content.styled(state.clean(f"▲ {alert.title}: {alert.text}"), "$warning"))
        strip.update(Content("\n").join(lines))
