"""The dashboard's application: one poller, one snapshot, and the screens that show it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.theme import Theme

from tq import runs
from tui import state
from tui.dialogs import Confirm, Help
from tui.poll import Poller
from tui.runs_screen import RunsScreen
from tui.screen import TqScreen
from tui.state import RunView, Snapshot

THEME = Theme(
    name="tq",
    primary="#6cb6ff",
    secondary="#9aa5ce",
    accent="#e0af68",
    success="#57c38a",
    warning="#e0af68",
    error="#f7768e",
    foreground="#c9d1d9",
    background="#0f1318",
    surface="#151a21",
    panel="#1c232c",
    dark=True,
    variables={"footer-key-foreground": "#6cb6ff", "border": "#6cb6ff", "border-blurred": "#2d3743"},
)
SEVERITIES: dict[str, Literal["information", "warning", "error"]] = {"error": "error", "warning": "warning"}
# A trainer that was asked to stop and is still there after this long may be killed.
PATIENCE_S = 10.0


class TqApp(App[None]):
    """`TqApp(root).run()`; with `run`, opens on that run."""

    CSS_PATH = "app.tcss"
    TITLE = "tq"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", "Quit"),
        Binding("question_mark", "keys", "Help", key_display="?"),
        Binding("ctrl+c", "leave", show=False, priority=True),
    ]

    class Polled(Message):
        """A new snapshot has come from the poller's thread."""

        def __init__(self, snapshot: Snapshot) -> None:
            super().__init__()
            self.snapshot = snapshot

    class Failed(Message):
        """The poller's thread could not read."""

        def __init__(self, sentence: str) -> None:
            super().__init__()
            self.sentence = sentence

    def __init__(
        self, root: Path, run: Path | None = None, *, clock: Callable[[], float] = time.time, every_s: float = 0.5
    ) -> None:
        super().__init__()
        self.register_theme(THEME)
        self.theme = "tq"
        # One spelling of every path: runs are told apart by it.
        self.root = Path(root).absolute()
        self.shown_root = str(root)
        self.clock = clock
        self.readonly = ""
        self.snapshot = Snapshot(now=clock())
        self._first_run = run.absolute() if run else None
        self._polled = asyncio.Event()
        self._stopping: dict[Path, float] = {}
        self._alerts_seen: dict[Path, int] = {}
        self.poller = Poller(
            self.root,
            post=lambda snapshot: self._from_thread(self.Polled(snapshot)),
            fail=lambda sentence: self._from_thread(self.Failed(sentence)),
            clock=clock,
            every_s=every_s,
        )

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Ours beyond Textual's: text of second rank ($text-muted needs a background, which bare text has not)."""
        return {"muted": "#7f8b99"}

    def on_mount(self) -> None:
        """Show the list at once; the poller fills it."""
        self.push_screen(RunsScreen(self._first_run))
        if self._first_run is not None:
            self.open_run(self._first_run)
        self.poller.start()

    def on_unmount(self) -> None:
        """Let the poller's thread end."""
        self.poller.close()

    def on_tq_app_polled(self, message: Polled) -> None:
        """Keep the snapshot and draw it, on screens in the background too: they are then right when uncovered."""
        self._stopping = {
            p: t for p, t in self._stopping.items() if (run := message.snapshot.find(p)) and run.status.live
        }
        marked = tuple(
            replace(run, asked_t=self._stopping[run.path]) if run.path in self._stopping else run
            for run in message.snapshot.runs
        )
        self.snapshot = replace(message.snapshot, runs=marked)
        for screen in self.screen_stack:
            if isinstance(screen, TqScreen):
                screen.redraw()
        self._tell_news()
        if self.snapshot.whole:
            self._polled.set()

    def on_tq_app_failed(self, message: Failed) -> None:
        """Say that the disk could not be read."""
        self.notify(message.sentence, severity="error", markup=False)

    async def polled(self, times: int = 2) -> None:
        """Wait for snapshots that were begun after this call: the first to arrive may be older (tests, screenshots)."""
        for _ in range(times):
            self._polled.clear()
            self.poller.poke()
            await self._polled.wait()

    def open_run(self, path: Path) -> None:
        """Show one run in full."""
        # Imported late: plotext is a quarter of the start-up time and the list does not need it.
        from tui.run_screen import RunScreen

        self.push_screen(RunScreen(path))

    def open_form(self, values: dict[str, Any] | None = None, *, kind: str = "train") -> None:
        """Show the form for a new run, a quantize or a bench, filled with `values` (of an older run's config)."""
        from tui.new_run import NewRunScreen

        self.push_screen(NewRunScreen(values or {}, kind=kind))

    def open_queue(self) -> None:
        """Show the queue, and what quantize, bench and inspect are at or have found."""
        from tui.queue_screen import QueueScreen

        self.push_screen(QueueScreen())

    def stop_run(self, run: RunView, *, kill: bool = False) -> None:
        """Ask, then stop gracefully; with `kill`, or where that was asked before and has not helped, offer to kill."""
        if run.status.state != "live":
            self.notify(f"{run.name} is not running ({run.word})", severity="warning", markup=False)
            return
        asked = self._stopping.get(run.path)
        if asked is not None and self.clock() - asked >= PATIENCE_S:
            ago = runs.duration(self.clock() - asked)
            text = f"It was asked to stop {ago} ago. Killing loses what came after the last checkpoint."
            dialog, act = Confirm(f"Kill {run.name} {run.tag}?", text, yes="Kill", danger=True), runs.kill
        elif kill:
            text = "It ends at once. What came after its last checkpoint is lost."
            dialog, act = Confirm(f"Kill {run.name} {run.tag}?", text, yes="Kill", danger=True), runs.kill
        else:
            text = "It finishes its step, writes a checkpoint and ends. It can be resumed later."
            dialog, act = Confirm(f"Stop {run.name} {run.tag}?", text, yes="Stop"), runs.stop
        self.push_screen(dialog, partial(self._stop_confirmed, run, act))

    def resume_run(self, run: RunView) -> None:
        """Start a trainer that takes up this run where its checkpoint left it."""
        if not run.status.resumable:
            why = "is still running" if run.status.live else f"cannot be resumed ({run.word})"
            self.notify(f"{run.name} {why}", severity="warning", markup=False)
            return
        self.notify(f"resuming {run.name} {run.tag}", markup=False)
        self.run_worker(partial(self._resume, run.path), thread=True, exit_on_error=False)

    def action_keys(self) -> None:
        """Show the keys and the signs."""
        if not isinstance(self.screen, Help):
            self.push_screen(Help())

    def action_leave(self) -> None:
        """Quit; with runs under way, first say that they go on."""
        live = self.snapshot.live
        if not live:
            self.exit()
            return
        names = ", ".join(f"{run.name} {run.tag}" for run in live[:3]) + (", ..." if len(live) > 3 else "")
        title = f"{go_on(len(live))} without the dashboard"
        dialog = Confirm(
            title,
            f"{names}. Open the dashboard again at any time to see how far they are.",
            yes="Quit",
            no="Stay",
            q=True,
        )
        self.push_screen(dialog, lambda yes: self.exit() if yes else None)

    def _from_thread(self, message: Message) -> None:
        # A snapshot that arrives after the end is for nobody.
        if self.is_running:
            self.post_message(message)

    def _stop_confirmed(self, run: RunView, act: Callable[[Path], int], yes: bool | None) -> None:
        if not yes:
            return
        try:
            pid = act(run.path)
        except (ValueError, OSError) as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self._stopping.setdefault(run.path, self.clock())
        verb = "asked to stop" if act is runs.stop else "killed"
        self.notify(f"{run.name} {run.tag} (pid {pid}) was {verb}", markup=False)
        self.poller.poke()

    def _resume(self, path: Path) -> None:
        """In a worker's thread."""
        try:
            runs.resume(path)
        except (ValueError, OSError) as error:
            self.call_from_thread(self.notify, str(error), severity="error", markup=False)
        else:
            self._stopping.pop(path, None)
            self.poller.poke()

    def _tell_news(self) -> None:
        """A toast for each alert that came while the dashboard was open."""
        if not self.snapshot.whole:
            return
        for run in self.snapshot.runs:
            alerts = run.state.alerts
            seen = self._alerts_seen.setdefault(run.path, len(alerts))
            for alert in alerts[seen:][-3:]:
                severity = SEVERITIES.get(alert.level, "information")
                title = state.clean(f"{run.name} {run.tag}: {alert.title}")
                self.notify(state.clean(alert.text), title=title, severity=severity, markup=False)
            self._alerts_seen[run.path] = len(alerts)


def main(root: Path, run: Path | None = None, *, once: bool = False) -> None:
    """Open the dashboard on the list of runs in `root`, or on one run; `once` prints the list and returns."""
    if once:
        print_once(root)
        return
    app = TqApp(root, run)
    app.run()
    if live := app.snapshot.live:
        print(f"{go_on(len(live))}: {', '.join(view.path.name for view in live)}")


def print_once(root: Path) -> None:
    """Print the list of runs as a table of text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tui.runs_screen import COLUMNS

    poller = Poller(Path(root), post=lambda _: None, fail=lambda _: None)
    while not (snapshot := poller.poll()).whole:
        pass
    if not snapshot.runs:
        print(f"no runs in {root}; start one with: tq train")
        return
    # Piped to a file there is no terminal to fit: take what the columns need.
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    columns = [c for c in COLUMNS if c.from_width <= console.width]
    for column in columns:
        table.add_column(column.title, justify=column.justify, no_wrap=True)
    for view in snapshot.runs:
        table.add_row(*(Text(column.text(view)) for column in columns))
    console.print(table)


def screenshot(
    root: Path,
    run: Path | None,
    svg_path: Path,
    *,
    size: tuple[int, int] = (120, 36),
    clock: Callable[[], float] = time.time,
) -> None:
    """Draw the list, or one run, without a terminal and save it as an SVG file."""

    async def draw() -> None:
        app = TqApp(root, run, clock=clock, every_s=3600)
        async with app.run_test(size=size) as pilot:
            await app.polled()
            await pilot.pause()
            Path(svg_path).write_text(app.export_screenshot(title="tq"), encoding="utf-8")

    asyncio.run(draw())


def go_on(n: int) -> str:
    """1 run goes on, 2 runs go on."""
    return "1 run goes on" if n == 1 else f"{n} runs go on"
