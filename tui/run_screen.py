"""One run: where it stands, its numbers, its curves, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widgets import Footer, Static

from tui import run_text
from tui.chart import Chart, Curve
from tui.screen import TqScreen, logo, spread
from tui.state import RunView, Snapshot

PANELS = {"log": run_text.log, "alerts": run_text.alerts, "settings": run_text.settings, "layers": run_text.layers}
# Of a training point and of an evaluation alike.
FIGURES: dict[str, Callable[[Any], float]] = {"loss": lambda p: p.loss, "accuracy": lambda p: p.acc}


class RunScreen(TqScreen):
    """Header, two charts, and a panel of log, alerts, settings or layers."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace", "back", "Back", key_display="esc"),
        Binding("n", "new", "New"),
        Binding("s", "stop", "Stop"),
        Binding("r", "resume", "Resume"),
        Binding("c", "copy", "Copy"),
        Binding("right,tab", "panel(1)", "Panel", key_display="←→"),
        Binding("left,shift+tab", "panel(-1)", show=False),
    ]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._panel = 0
        self._drawn: tuple[str, Content] = ("", Content(""))

    def compose(self) -> ComposeResult:
        """From top to bottom; trouble is shown before any chart."""
        yield Static(id="bar")
        yield Static(id="status")
        yield Static(id="tiles")
        yield Static(id="size")
        yield Static(id="trouble")
        with Horizontal(id="charts"):
            yield Chart("loss", id="loss")
            yield Chart("accuracy %", id="accuracy")
        yield Static(id="waiting")
        with VerticalScroll(id="panel"):
            yield Static(id="panel-body")
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

    def show(self, snapshot: Snapshot) -> None:
        """Draw the snapshot."""
        run = snapshot.find(self.path)
        width = self.size.width
        if run is None or not width:
            return
        at = Content.assemble((run.path.name, "$muted"), " ")
        self.query_one("#bar", Static).update(spread(logo(run.name), at, width))
        self.query_one("#status", Static).update(run_text.status_line(run, width - 2))
        self.query_one("#tiles", Static).update(run_text.tiles(run.state, width - 2))
        size_line = self.query_one("#size", Static)
        size_line.display = bool(run.state.packed_bytes)
        size_line.update(run_text.size(run.state, width - 2))
        self._draw_trouble(run)
        self._draw_charts(run)
        self._draw_panel(run)

    def action_back(self) -> None:
        """To the list."""
        self.dismiss()

    def action_new(self) -> None:
        """The form for a new run."""
        self.tq.open_form()

    def action_copy(self) -> None:
        """The form, filled with this run's settings."""
        if run := self._run():
            self.tq.open_form(run.config)

    def action_stop(self) -> None:
        """Stop this run."""
        if run := self._run():
            self.tq.stop_run(run)

    def action_resume(self) -> None:
        """Resume this run."""
        if run := self._run():
            self.tq.resume_run(run)

    def action_panel(self, by: int) -> None:
        """The next or the previous panel."""
        self._panel = (self._panel + by) % len(PANELS)
        if run := self._run():
            self._draw_panel(run)

    def _run(self) -> RunView | None:
        return self.tq.snapshot.find(self.path)

    def _draw_trouble(self, run: RunView) -> None:
        box = self.query_one("#trouble", Static)
        box.display = bool(run.trouble)
        if run.trouble:
            first, *rest = run.trouble
            # On a small terminal the first line and the last two say most.
            rest = rest[-6 if self.size.height >= 34 else -2 :]
            box.update(
                Content("\n").join([Content.styled(first, "bold"), *(Content.styled(line, "$muted") for line in rest)])
            )

    def _draw_charts(self, run: RunView) -> None:
        s = run.state
        waiting = self.query_one("#waiting", Static)
        empty = not s.points and not s.evals
        waiting.display, self.query_one("#charts").display = empty, not empty
        if empty:
            waiting.update(run_text.waiting(run))
            return
        scale = s.steps_per_epoch or 1
        xs = [p.step / scale for p in s.points]
        evals = [e for e in s.evals if e.split != "train"]
        eval_xs = [e.step / scale for e in evals]
        for name, pick in FIGURES.items():
            curves = [
                Curve("training", "primary", tuple(xs), tuple(map(pick, s.points))),
                Curve("evaluation", "accent", tuple(eval_xs), tuple(map(pick, evals)), dots=True),
            ]
            chart = self.query_one(f"#{name}", Chart)
            chart.draw(curves, x_max=s.epochs)
            chart.border_subtitle = "epochs" if s.steps_per_epoch else "steps"

    def _draw_panel(self, run: RunView) -> None:
        name = list(PANELS)[self._panel]
        panel, body = self.query_one("#panel", VerticalScroll), self.query_one("#panel-body", Static)
        panel.border_title = Content.assemble(*(_tab(run, n, chosen=n == name) for n in PANELS))
        content = PANELS[name](run)
        if (name, content) == self._drawn:
            return
        turned = name != self._drawn[0]
        # A log is followed unless it was scrolled up; the other panels are read from their start.
        follow = name == "log" and (turned or panel.is_vertical_scroll_end)
        self._drawn = name, content
        body.update(content)
        if follow:
            panel.scroll_end(animate=False)
        elif turned:
            panel.scroll_home(animate=False)


def _tab(run: RunView, name: str, *, chosen: bool) -> tuple[str, str]:
    count = f" {len(run.state.alerts)}" if name == "alerts" and run.state.alerts else ""
    if count and not chosen and any(alert.level != "info" for alert in run.state.alerts):
        return f" ▲{name}{count} ", "bold $warning"
    return f" {name}{count} ", "reverse bold" if chosen else "$muted"
