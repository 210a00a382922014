"""The dashboard's application: one poller, one snapshot, and the screens that show it."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from textual import events
from textual.app import App
from textual.filter import LineFilter
from textual.message import Message
from textual.theme import Theme

from tui import settings, words
from tui.ascii import Ascii
from tui.dialogs import Confirm, Help
from tui.keys import Key, Keyed, rows
from tui.poll import Poller
from tui.runs_screen import RunsScreen
from tui.screen import TqScreen
from tui.settings import Settings
from tui.state import Snapshot
from tui.system import System
from tui.theme import THEME, VARIABLES
from tui.trainers import Trainers

SEVERITIES: dict[str, Literal["information", "warning", "error"]] = {"error": "error", "warning": "warning"}


class TqApp(Keyed, App[None]):
    """`TqApp(root).run()`; with `run`, opens on that run."""

    CSS_PATH = "app.tcss"
    TITLE = "tq"
    ENABLE_COMMAND_PALETTE = False
    KEYS: ClassVar[tuple[Key, ...]] = (
        Key("question_mark", "keys", "Help", "keys and signs", group="Everywhere"),
        Key("q", "leave", "Quit", "leave; runs go on", group="Everywhere"),
        Key("ctrl+p", "palette", "Palette", "find a command", group="Everywhere"),
        Key("t", "theme", "Theme", "choose a theme", group="Everywhere"),
        Key("x", "export", "Export", "this screen as an SVG", group="Everywhere"),
        Key("ctrl+c", "leave", "", "leave from anywhere", group="Everywhere", priority=True),
    )

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
        self,
        root: Path,
        run: Path | None = None,
        *,
        clock: Callable[[], float] = time.time,
        every_s: float = 0.5,
        readonly: str = "",
        note: str = "",
        ascii: bool = False,
        system: Callable[[], System] | None = None,
        beat: Callable[[], None] | None = None,
    ) -> None:
        """`readonly`: why nothing may be started or stopped, "" where it may; `note`: a word in the footer for it.

        beat: called five times a second (a replay writes its events then).
        """
        super().__init__()
        self.register_theme(THEME)
        self._ascii: tuple[LineFilter, ...] = (Ascii(),) if ascii else ()
        self.readonly, self.note, self._beat = readonly, note, beat
        self._complaint = ""
        try:
            self._settings = settings.load()
        except ValueError as error:
            self._settings, self._complaint = Settings(), str(error)
        self.theme = self._settings.theme if self._settings.theme in self.available_themes else THEME.name
        # One spelling of every path: runs are told apart by it.
        self.root = Path(root).absolute()
        self.shown_root = str(root)
        self.clock = clock
        self.snapshot = Snapshot(now=clock(), whole=False)
        self._first_run = run.absolute() if run else None
        self._polled = asyncio.Event()
        self.trainers = Trainers(self)
        self._alerts_seen: dict[Path, int] = {}
        self.poller = Poller(
            self.root,
            post=lambda snapshot: self._from_thread(self.Polled(snapshot)),
            fail=lambda sentence: self._from_thread(self.Failed(sentence)),
            begin=self._load_charts,
            clock=clock,
            every_s=every_s,
            system=system,
        )

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's, and with --ascii ours."""
        return [*super().get_line_filters(), *self._ascii]

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Ours beyond Textual's."""
        return VARIABLES

    def on_mount(self) -> None:
        """Show the list at once; the poller fills it."""
        self.push_screen(RunsScreen(self._first_run))
        if self._first_run is not None:
            self.open_run(self._first_run)
        if self._complaint:
            self.notify(self._complaint, severity="warning", markup=False)
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self.call_after_refresh(self._start_reading)
        if self._beat:
            self.set_interval(0.2, self._beat)

    def _start_reading(self) -> None:
        # After the first frame: reading would take the interpreter away from drawing it. What exists by now stays, so
        # the collector, which `tq tui` has kept away from it, need never look at it.
        gc.freeze()
        gc.enable()
        # Whoever waits for the interpreter gets it after so long: at the default of 5 ms, and with several turns to a
        # key, one would wait for the reading thread more than for the drawing.
        sys.setswitchinterval(0.001)
        self.poller.start()

    @staticmethod
    def _load_charts() -> None:
        # In the poller's thread and before any run is listed: at the first key it would be half of what the key costs.
        import tui.pareto  # noqa: F401

    def on_unmount(self) -> None:
        """Let the poller's thread end."""
        self.poller.close()

    async def on_event(self, event: events.Event) -> None:
        """Whoever presses a key waits for its answer, not for the reading."""
        if isinstance(event, events.InputEvent):
            self.poller.give_way()
        await super().on_event(event)

    def on_tq_app_polled(self, message: Polled) -> None:
        """Keep the snapshot and draw it, on screens in the background too: they are then right when uncovered."""
        self.snapshot = self.trainers.mark(message.snapshot)
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
            async with asyncio.timeout(60):
                await self._polled.wait()

    def open_run(self, path: Path) -> None:
        """Show one run in full."""
        # Imported late: plotext is a quarter of the start-up time and the list does not need it.
        from tui.run_screen import RunScreen

        self.push_screen(RunScreen(path))

    def open_comparison(self, paths: Sequence[Path]) -> None:
        """Show runs side by side."""
        from tui.compare_screen import CompareScreen

        self.push_screen(CompareScreen(paths))

    def open_form(self, values: dict[str, Any] | None = None, *, kind: str = "train") -> None:
        """Show the form for a new run, a quantize or a bench, filled with `values` (of an older run's config)."""
        if self.refuse(self.readonly):
            return
        from tui.new_run import NewRunScreen

        self.push_screen(NewRunScreen(values or {}, kind=kind))

    def open_queue(self) -> None:
        """Show the queue, and what quantize, bench and inspect are at or have found."""
        from tui.queue_screen import QueueScreen

        self.push_screen(QueueScreen())

    def action_keys(self) -> None:
        """Show the keys and the signs."""
        if not isinstance(self.screen, Help):
            self.push_screen(Help(rows(self.screen, self)))

    def action_palette(self) -> None:
        """Find a command by a part of what it does."""
        from textual.command import CommandPalette

        from tui.palette import KeyCommands

        if not any(isinstance(screen, CommandPalette) for screen in self.screen_stack):
            self.push_screen(CommandPalette(providers=[KeyCommands], placeholder="What do you want to do?"))

    def action_theme(self) -> None:
        """Choose a theme; it is remembered."""
        self.search_themes()

    def action_export(self) -> None:
        """Save what is on the screen as an SVG in the working directory."""
        name = f"tq-{time.strftime('%Y%m%d-%H%M%S', time.localtime(self.clock()))}.svg"
        try:
            Path(name).write_text(self.export_screenshot(title="tq"), encoding="utf-8")
        except OSError as error:
            self.notify(f"cannot write {name}: {error.strerror}", severity="error", markup=False)
        else:
            self.notify(f"saved {Path(name).absolute()}", markup=False)

    def action_leave(self) -> None:
        """Quit; with runs under way, first say that they go on."""
        live = self.snapshot.live
        if not live or self.readonly:
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

    def refuse(self, reason: str) -> bool:
        """Say why something is not done; False where there is no reason."""
        if reason:
            self.notify(reason, severity="warning", markup=False)
        return bool(reason)

    def _theme_changed(self, theme: Theme) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, TqScreen):
                screen.redraw()
        if theme.name == self._settings.theme:
            return
        self._settings = replace(self._settings, theme=theme.name)
        try:
            settings.save(self._settings)
        except OSError as error:
            self.notify(f"the theme cannot be remembered: {error}", severity="warning", markup=False)

    def _from_thread(self, message: Message) -> None:
        # A snapshot that arrives after the end is for nobody.
        if self.is_running:
            self.post_message(message)

    def _tell_news(self) -> None:
        """A toast for each alert that came while the dashboard was open."""
        if not self.snapshot.whole:
            return
        for run in self.snapshot.runs:
            alerts = run.state.alerts
            seen = self._alerts_seen.setdefault(run.path, len(alerts))
            for alert in alerts[seen:][-3:]:
                severity = SEVERITIES.get(alert.level, "information")
                title = words.clean(f"{run.name} {run.tag}: {alert.title}")
                self.notify(words.clean(alert.text), title=title, severity=severity, markup=False)
            self._alerts_seen[run.path] = len(alerts)


def go_on(n: int) -> str:
    """1 run goes on, 2 runs go on."""
    return "1 run goes on" if n == 1 else f"{n} runs go on"
