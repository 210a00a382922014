"""One run: where it stands, its numbers, its curves, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from textual.app import ComposeResult
from textual.containers import Center, Container, VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widgets import Input, Static

from tq.history import RunState
from tui import curves, metrics, panels, run_text
from tui.chart import Chart
from tui.curves import Picture, Window
from tui.footer import Footer
from tui.keys import Key
from tui.metrics import METRICS, View
from tui.panels import Search
from tui.run_actions import RUN_KEYS, RunActions
from tui.screen import LEAST, TqScreen, logo, spread
from tui.state import RunView, Snapshot

# Rows of a chart from which two of them stand one above the other, and columns from which three stand side by side.
TWO_ROWS, THREE_COLUMNS = 24, 150


def _nothing_found(screen: RunScreen) -> str:
    lines = screen.run.output if screen.run else ()
    return f"no line has {screen.search.needle!r}" if screen.search.needle and not screen.search.matches(lines) else ""


def _no_search(screen: RunScreen) -> str:
    return _nothing_found(screen) if screen.search.needle else "nothing is searched for; / starts a search"


def _no_window(screen: RunScreen) -> str:
    return "" if screen.view.window else "the whole run is in sight; + zooms in"


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
        self.view = View()
        self.search = Search()
        self._chart = 0
        self._panel = 0
        self._full: Literal["", "chart", "panel"] = ""
        """what has the screen for itself"""
        self._drawn: tuple[Any, ...] = ()
        self._texts: dict[str, Content] = {}
        self._pictures: dict[str, tuple[RunState, View, Picture]] = {}

    def compose(self) -> ComposeResult:
        """From top to bottom; trouble is shown before any chart."""
        yield Static(id="bar")
        yield Static(id="status")
        yield Static(id="tiles")
        yield Static(id="size")
        yield Static(id="trouble")
        with Container(id="charts"):
            for metric in METRICS:
                yield Chart(id=metric.name)
        with Center(id="waiting"):
            yield Static(id="waiting-text")
        with VerticalScroll(id="panel"):
            yield Static(id="panel-body")
        yield Input(placeholder="search the log; enter keeps the matches, n and N walk through them", id="search")
        yield Footer()

    def on_mount(self) -> None:
        """Draw what is known; the poller reads this run's output from now on."""
        self.query_one("#panel").focus()
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
        self._put("#bar", spread(logo(run.name), at, width))
        self._put("#status", run_text.status_line(run, width - 2))
        self._put("#tiles", run_text.tiles(run.state, width - 2))
        self._put("#size", run_text.size(run.state, width - 2))
        self._arrange(run)
        self._draw_trouble(run)
        self._draw_charts(run)
        self._draw_panel(run)
        self.query_one(Footer).check()

    # --- keys ---

    def action_back(self) -> None:
        """One thing at a time: the search, the full size, the screen."""
        if self.query_one("#search").has_class("open"):
            self._close_search()
        elif self.search.needle:
            self.search = Search()
            self.redraw()
        elif self._full:
            self._fill_with("")
        else:
            self.dismiss()

    def action_chart(self, by: int) -> None:
        """Choose another chart."""
        if self.run:
            self._chart = (self._chart + by) % len(metrics.available(self.run.state))
            self.redraw()

    def action_maximise(self) -> None:
        """The chosen chart alone, and back."""
        self._fill_with("" if self._full == "chart" else "chart")

    def action_full(self) -> None:
        """The panel alone, and back."""
        self._fill_with("" if self._full == "panel" else "panel")

    def action_zoom(self, by: int) -> None:
        """Twice as near or as far."""
        if self.run:
            covered = metrics.axis(self.run.state, self.view.x).covered
            change = curves.zoom_in if by > 0 else curves.zoom_out
            self._look(window=change(self.view.window, covered))

    def action_pan(self, by: int) -> None:
        """A quarter of the window to the left or right."""
        self._look(window=curves.pan(self.view.window or Window(), by / 4))

    def action_whole(self) -> None:
        """From the start to the planned end."""
        self._look(window=None)

    def action_axis(self) -> None:
        """The next unit of the x axis."""
        self._look(x=curves.XS[(curves.XS.index(self.view.x) + 1) % len(curves.XS)])

    def action_log(self) -> None:
        """Logarithmic or linear y axis of the chosen chart."""
        if self.run:
            name = metrics.available(self.run.state)[self._chart].name
            self._look(log=self.view.log ^ {name})

    def action_smooth(self) -> None:
        """More smoothing, after the strongest none."""
        self._look(smoothing=(self.view.smoothing + 1) % len(curves.SMOOTHING))

    def action_panel(self, by: int) -> None:
        """The next or the previous panel."""
        self._panel = (self._panel + by) % len(panels.NAMES)
        self.redraw()

    def action_search(self) -> None:
        """Open the line that is typed into; the log comes into sight."""
        self._panel = 0
        box = self.query_one("#search", Input)
        box.add_class("open")
        box.value = self.search.needle
        box.focus()
        self.redraw()

    def action_next(self) -> None:
        """The next match; with nothing searched for n means what it means everywhere: a new run."""
        if self.search.needle:
            self.action_match(1)
        else:
            self.tq.open_form()

    def action_match(self, by: int) -> None:
        """To another match; they go from the newest line upwards, as the log is read from its end."""
        if self.run:
            self._panel = 0
            self.search = self.search.step(by, self.run.output)
            self.redraw()
            self._scroll_to_match()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search as it is typed; the last match first."""
        if self.run:
            search = Search(event.value)
            self.search = search.step(-1, self.run.output)
            self.redraw()
            self._scroll_to_match()

    def on_input_submitted(self) -> None:
        """Keep the matches and give the keys back to the panel."""
        self.query_one("#search").remove_class("open")
        self.query_one("#panel").focus()

    def on_chart_chosen(self, event: Chart.Chosen) -> None:
        """A click chooses, a double click maximises."""
        if self.run:
            names = [metric.name for metric in metrics.available(self.run.state)]
            self._chart = names.index(event.chart.id or "")
            if event.twice:
                self.action_maximise()
            self.redraw()

    def on_chart_scrolled(self, event: Chart.Scrolled) -> None:
        """The wheel zooms."""
        self.action_zoom(event.by)

    # --- drawing ---

    def _look(self, **changes: Any) -> None:
        self.view = replace(self.view, **changes)
        self.redraw()

    def _fill_with(self, what: Literal["", "chart", "panel"]) -> None:
        self._full = what
        self.redraw()
        # Grid and bars are made for the room that there is after the next layout.
        self.call_after_refresh(self.redraw)

    def _arrange(self, run: RunView) -> None:
        """Show what has a place now. (A class on the screen would have every widget's style looked up again.)"""
        self.query_one("#tiles").display = not self._full
        self.query_one("#size").display = not self._full and bool(run.state.packed_bytes)
        self.query_one("#waiting").display = self._full != "panel" and not self.has_curves
        self.query_one("#charts").display = self._full != "panel" and self.has_curves
        panel = self.query_one("#panel")
        panel.display = self._full != "chart"
        panel.styles.height = "1fr" if self._full == "panel" else "30%"

    def _close_search(self) -> None:
        self.search = Search()
        self.on_input_submitted()
        self.redraw()

    def _put(self, selector: str, content: Content, *, layout: bool = False) -> None:
        """Update a text, if it has changed: a layout twice a second is what would keep an idle dashboard busy."""
        if self._texts.get(selector) != content:
            self._texts[selector] = content
            self.query_one(selector, Static).update(content, layout=layout)

    def _draw_trouble(self, run: RunView) -> None:
        box = self.query_one("#trouble", Static)
        # On a small terminal the first line and the last two say most.
        found = run_text.trouble(run, 6 if self.size.height >= 34 else 2)
        box.display = found is not None
        if found is not None:
            tone, words = found
            box.set_classes(tone)
            self._put("#trouble", words, layout=True)

    def _draw_charts(self, run: RunView) -> None:
        if not self.has_curves:
            self._put("#waiting-text", run_text.waiting(run), layout=True)
            return
        charts = self.query_one("#charts")
        known = metrics.available(run.state)
        self._chart = min(self._chart, len(known) - 1)
        columns, rows = self._grid(len(known), charts.size.height)
        page = self._chart // (columns * rows)
        shown = known[page * columns * rows : (page + 1) * columns * rows]
        charts.styles.grid_size_columns = min(columns, len(shown))
        charts.styles.grid_size_rows = rows if len(shown) > columns else 1
        for metric in METRICS:
            chart = self.query_one(f"#{metric.name}", Chart)
            chart.display = metric in shown
            chart.set_class(metric is known[self._chart] and len(shown) > 1, "chosen")
            if metric in shown:
                chart.draw(self._picture(run.state, metric))

    def _grid(self, count: int, height: int) -> tuple[int, int]:
        """Columns and rows of the charts that are in sight at once."""
        if self._full == "chart":
            return 1, 1
        return (3 if self.size.width >= THREE_COLUMNS and count > 2 else 2), (2 if height >= TWO_ROWS else 1)

    def _picture(self, state: RunState, metric: metrics.Metric) -> Picture:
        """The same object as long as nothing in it is new, so that the chart need not draw."""
        known = metrics.available(state)
        old = self._pictures.get(metric.name)
        if old is not None and old[0] is state and old[1] == self.view:
            return old[2]
        made = metrics.picture(state, metric, self.view, place=f"{known.index(metric) + 1}/{len(known)}")
        self._pictures[metric.name] = state, self.view, made
        return made

    def _draw_panel(self, run: RunView) -> None:
        name = panels.NAMES[self._panel]
        panel, body = self.query_one("#panel", VerticalScroll), self.query_one("#panel-body", Static)
        panel.border_title = Content.assemble(*(_tab(run, n, chosen=n == name) for n in panels.NAMES))
        panel.border_subtitle = self._found(run) if name == "log" else ""
        width = panel.scrollable_content_region.width
        content = panels.log(run, self.search) if name == "log" else panels.PANELS[name](run, width)
        if (name, content) == self._drawn:
            return
        turned = not self._drawn or name != self._drawn[0]
        # A log is followed unless it was scrolled up; the other panels are read from their start.
        follow = name == "log" and not self.search.needle and (turned or panel.is_vertical_scroll_end)
        self._drawn = name, content
        body.update(content)
        if follow:
            panel.scroll_end(animate=False)
        elif turned:
            panel.scroll_home(animate=False)

    def _found(self, run: RunView) -> Content:
        """How many lines match, for the panel's lower border."""
        if not self.search.needle:
            return Content("")
        found = len(self.search.matches(run.output))
        words = f"{self.search.at % found + 1} of {found} lines" if found else "no line"
        return Content(f"{words} with {self.search.needle!r} · n and N walk · esc ends")

    def _scroll_to_match(self) -> None:
        line = self.search.line(self.run.output) if self.run else None
        if line is not None:
            panel = self.query_one("#panel", VerticalScroll)
            panel.scroll_to(y=max(0, line - panel.size.height // 2), animate=False)


def _tab(run: RunView, name: str, *, chosen: bool) -> tuple[str, str]:
    count = f" {len(run.state.alerts)}" if name == "alerts" and run.state.alerts else ""
    if count and not chosen and any(alert.level != "info" for alert in run.state.alerts):
        return f" ▲{name}{count} ", "bold $warning"
    return f" {name}{count} ", "reverse bold" if chosen else "$muted"
