"""One run: where it stands, its numbers, its curves, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.containers import Center
from textual.content import Content
from textual.events import Resize
from textual.widgets import Input, Static

from tui import run_text
from tui.chart import Chart
from tui.chart_grid import ChartGrid
from tui.footer import Footer
from tui.keys import Key
from tui.panel import Panel
from tui.panels import Search
from tui.run_actions import RUN_KEYS, RunActions
from tui.screen import LEAST, TqScreen, logo, spread
from tui.state import RunView, Snapshot


def _nothing_found(screen: RunScreen) -> str:
    lines = screen.run.output if screen.run else ()
    search = screen.panel.search
    return f"no line has {search.needle!r}" if search.needle and not search.matches(lines) else ""


def _no_search(screen: RunScreen) -> str:
    return _nothing_found(screen) if screen.panel.search.needle else "nothing is searched for; / starts a search"


def _no_window(screen: RunScreen) -> str:
    return "" if screen.charts.view.window else "the whole run is in sight; + zooms in"


def _no_curve(screen: RunScreen) -> str:
    return "" if screen.has_curves else "there is no curve yet"


class RunScreen(RunActions, TqScreen):
    """Header, charts, and a panel of log, alerts, layers, phases or settings."""

    CSS_PATH = "run_screen.tcss"
    KEYS: ClassVar[tuple[Key, ...]] = (
        Key("escape,backspace", "back", "Back", "back, step by step"),
        Key("tab", "panel(1)", "Panel", "next panel: log, layers, ...", "Panel"),
        Key("shift+tab", "panel(-1)", "", "previous panel", "Panel"),
        Key("slash", "search", "Search", "search in the log", "Panel"),
        Key("c", "chart(1)", "Chart", "choose the next chart", "Charts", why_not=_no_curve),
        Key("C", "chart(-1)", "", "choose the previous chart", "Charts", why_not=_no_curve),
        Key("m", "maximise", "Max", "the chosen chart alone", "Charts", why_not=_no_curve),
        Key("plus,equals_sign", "zoom(1)", "Zoom", "zoom in, to the newest", "Charts", why_not=_no_curve),
        Key("minus", "zoom(-1)", "", "zoom out", "Charts", why_not=_no_window),
        *RUN_KEYS,
        Key("left", "pan(-1)", "", "earlier", "Charts", why_not=_no_window),
        Key("right", "pan(1)", "", "later", "Charts", why_not=_no_window),
        Key("0", "whole", "", "the whole run", "Charts", why_not=_no_window),
        Key("a", "axis", "Axis", "x: epochs, steps or time", "Charts", why_not=_no_curve),
        Key("l", "log", "Log", "log y of the chosen chart", "Charts", why_not=_no_curve),
        Key("w", "smooth", "Smooth", "smooth: off, 1, 5, 20 %", "Charts", why_not=_no_curve),
        Key("f", "full", "Full", "the panel alone", "Panel"),
        Key("n", "next", "", "next match, or a new run", "Panel", why_not=_nothing_found),
        Key("N", "match(-1)", "", "previous match", "Panel", why_not=_no_search),
    )

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._seen: RunView | None = None
        self.charts = ChartGrid(id="charts")
        self.panel = Panel(id="panel")
        self._full: Literal["", "chart", "panel"] = ""
        """what has the screen for itself"""

    def compose(self) -> ComposeResult:
        """From top to bottom; trouble is shown before any chart."""
        yield Static(id="bar")
        yield Static(id="status")
        yield Static(id="tiles")
        yield Static(id="size")
        yield Static(id="trouble")
        yield self.charts
        with Center(id="waiting"):
            yield Static(id="waiting-text")
        yield self.panel
        yield Input(placeholder="search the log; enter keeps the matches, n and N walk through them", id="search")
        yield Footer()

    def on_mount(self) -> None:
        """Draw what is known; the poller reads this run's output from now on."""
        self.panel.focus()
        self.show(self.tq.snapshot)

    def on_screen_resume(self) -> None:
        """Back from a dialog or the form."""
        self.tq.poller.watch(self.path)

    def on_resize(self, event: Resize) -> None:
        """Charts are drawn for their size, which is known after the next layout."""
        self.call_after_refresh(self.redraw)

    @property
    def run(self) -> RunView | None:
        """This run as it was last seen; that is kept where its directory has gone."""
        return self._seen

    @property
    def has_curves(self) -> bool:
        """Whether there is anything to draw."""
        return self.run is not None and bool(self.run.state.points or self.run.state.evals)

    def show(self, snapshot: Snapshot) -> None:
        """Draw the snapshot."""
        width, height = self.size
        found = snapshot.find(self.path)
        self._seen = found or (replace(self._seen, gone=True) if self._seen else None)
        if self.run is None or width < LEAST[0] or height < LEAST[1]:
            return
        run = self.run
        at = Content.assemble((run.path.name, "$muted"), " ")
        self.put("#bar", spread(logo(run.name), at, width), layout=False)
        self.put("#status", run_text.status_line(run, width - 2), layout=False)
        self.put("#tiles", run_text.tiles(run.state, width - 2), layout=False)
        self.put("#size", run_text.size(run.state, width - 2), layout=False)
        self._arrange(run)
        self._draw_trouble(run)
        if self.has_curves:
            self.charts.draw(run.state)
        else:
            self.put("#waiting-text", run_text.waiting(run))
        self.panel.draw(run)
        self.query_one(Footer).check()

    # --- keys ---

    def action_back(self) -> None:
        """One thing at a time: the search, the full size, the screen."""
        if self.query_one("#search").has_class("open"):
            self._close_search()
        elif self.panel.search.needle:
            self.panel.search = Search()
            self.redraw()
        elif self._full:
            self._fill_with("")
        else:
            self.dismiss()

    def action_chart(self, by: int) -> None:
        """Choose another chart."""
        if self.run:
            self.charts.choose(self.run.state, by)
            self.redraw()

    def action_maximise(self) -> None:
        """The chosen chart alone, and back."""
        self._fill_with("" if self._full == "chart" else "chart")

    def action_full(self) -> None:
        """The panel alone, and back."""
        self._fill_with("" if self._full == "panel" else "panel")

    def action_zoom(self, by: int) -> None:
        """Nearer or farther."""
        if self.run:
            self.charts.zoom(self.run.state, by)
            self.redraw()

    def action_pan(self, by: int) -> None:
        """Earlier or later."""
        self.charts.pan(by)
        self.redraw()

    def action_whole(self) -> None:
        """The whole run."""
        self.charts.whole()
        self.redraw()

    def action_axis(self) -> None:
        """Another unit of the x axis."""
        self.charts.turn_axis()
        self.redraw()

    def action_log(self) -> None:
        """Logarithmic y axis, and back."""
        if self.run:
            self.charts.turn_log(self.run.state)
            self.redraw()

    def action_smooth(self) -> None:
        """Another smoothing."""
        self.charts.turn_smoothing()
        self.redraw()

    def action_panel(self, by: int) -> None:
        """The next or the previous panel."""
        self.panel.turn(by)
        self.redraw()

    def action_search(self) -> None:
        """Open the line that is typed into; the log comes into sight."""
        self.panel.show_log()
        box = self.query_one("#search", Input)
        box.add_class("open")
        box.value = self.panel.search.needle
        box.focus()
        self.redraw()

    def action_next(self) -> None:
        """The next match; with nothing searched for n means what it means everywhere: a new run."""
        if self.panel.search.needle:
            self.action_match(1)
        else:
            self.tq.open_form()

    def action_match(self, by: int) -> None:
        """To another match; they go from the newest line upwards, as the log is read from its end."""
        self._find(self.panel.search, by)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search as it is typed; the last match first."""
        self._find(Search(event.value), -1)

    def on_input_submitted(self) -> None:
        """Keep the matches and give the keys back to the panel."""
        self.query_one("#search").remove_class("open")
        self.panel.focus()

    def on_chart_chosen(self, event: Chart.Chosen) -> None:
        """A click chooses, a double click maximises."""
        if self.run:
            self.charts.choose_chart(self.run.state, event.chart)
            if event.twice:
                self.action_maximise()
            self.redraw()

    def on_chart_scrolled(self, event: Chart.Scrolled) -> None:
        """The wheel zooms."""
        self.action_zoom(event.by)

    # --- drawing ---

    def _find(self, search: Search, by: int) -> None:
        if self.run:
            self.panel.show_log()
            self.panel.search = search.step(by, self.run.output)
            self.redraw()
            self.panel.scroll_to_match(self.run)

    def _fill_with(self, what: Literal["", "chart", "panel"]) -> None:
        self._full = what
        self.charts.alone = what == "chart"
        self.redraw()
        # Grid and bars are made for the room that there is after the next layout.
        self.call_after_refresh(self.redraw)

    def _arrange(self, run: RunView) -> None:
        """Show what has a place now. (A class on the screen would have every widget's style looked up again.)"""
        self.query_one("#tiles").display = not self._full
        self.query_one("#size").display = not self._full and bool(run.state.packed_bytes)
        self.query_one("#waiting").display = self._full != "panel" and not self.has_curves
        self.charts.display = self._full != "panel" and self.has_curves
        self.panel.display = self._full != "chart"
        self.panel.styles.height = "1fr" if self._full == "panel" else "30%"

    def _close_search(self) -> None:
        self.panel.search = Search()
        self.on_input_submitted()
        self.redraw()

    def _draw_trouble(self, run: RunView) -> None:
        box = self.query_one("#trouble", Static)
        # On a small terminal the first line and the last two say most.
        found = run_text.trouble(run, 6 if self.size.height >= 34 else 2)
        box.display = found is not None
        if found is not None:
            tone, words = found
            box.set_classes(tone)
            self.put("#trouble", words)
