"""What waits for a device, in its order, and below it what quantize, bench and inspect are at or have found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.content import Content
from textual.events import Resize
from textual.widgets import Static

from tq import queue
from tq.byte_size import size_text
from tq.queue import Entry, Runner
from tui import jobs, results, words
from tui.footer import Footer
from tui.job_screen import REFRESH_S, SIGNS, JobScreen
from tui.jobs import Job
from tui.keys import Key
from tui.queue_table import QueueTable
from tui.results import number
from tui.screen import TqScreen, logo, spread
from tui.state import ICONS, Snapshot

EMPTY = "nothing waits: ^l in a form queues a training, e on a stopped run queues its resumption"
NO_JOBS = "no results yet: i inspects a run's file, b benches it, n has a form for quantize"


@dataclass(frozen=True)
class Found:
    """What was read from the disk at one moment."""

    entries: tuple[Entry, ...] = ()
    runners: tuple[Runner, ...] = ()
    jobs: tuple[Job, ...] = ()


def _cannot_move(screen: QueueScreen) -> str:
    if (entry := screen.entry) is None:
        return "choose an entry of the queue first (tab changes the table)"
    return "" if entry.waiting else f"{entry.name} does not wait any more ({entry.state})"


def _cannot_go(screen: QueueScreen) -> str:
    if entry := screen.entry:
        at_work = entry.state in ("live", "starting")
        return f"{entry.name} is at work; enter opens its run, s stops it there" if at_work else ""
    if job := screen.chosen_job:
        return "it is still at work; enter opens it, s stops it there" if job.state == "working" else ""
    return "there is nothing to take out"


def _cannot_open(screen: QueueScreen) -> str:
    if entry := screen.entry:
        begun = entry.run and entry.started
        return "" if begun else entry.error or f"{entry.name} has not begun; there is no run to open"
    return "" if screen.chosen_job else "there is nothing to open"


def _no_runner(screen: QueueScreen) -> str:
    return "" if screen.found.runners else "there is no queue yet"


class QueueScreen(TqScreen):
    """Two tables; the keys act on the row of the one that has the focus."""

    CSS_PATH = "queue_screen.tcss"
    KEYS: ClassVar[tuple[Key, ...]] = (
        Key("escape,backspace", "back", "Back", "back; the queue goes on"),
        Key("enter", "open", "Open", "open the run or the result", why_not=_cannot_open, priority=True),
        Key("K,shift+up", "move(-1)", "Up", "start it earlier", "Queue", acts=True, why_not=_cannot_move),
        Key("J,shift+down", "move(1)", "Down", "start it later", "Queue", acts=True, why_not=_cannot_move),
        Key("c,delete", "cancel", "Take out", "take it out, forget a result", "Queue", acts=True,
            why_not=_cannot_go),
        Key("p", "pause", "Pause", "pause the device, or go on", "Queue",
            acts=True, why_not=_no_runner),
        Key("n", "new", "New", "train, quantize or bench"),
        Key("tab,shift+tab", "app.focus_next", "Other table", "queue or results"),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.found = Found()
        self.entries = QueueTable("", "State", "Run", "Device", "Command", id="entries")
        self.jobs = QueueTable("State", "What", "Of", "When", "Found", id="jobs")
        self._failed = ""

    def compose(self) -> ComposeResult:
        """Bar, queue, results."""
        yield Static(id="bar")
        yield Static(id="lanes")
        yield self.entries
        yield Static(EMPTY, id="no-entries", classes="hint-line", markup=False)
        yield Static("results", id="results-title")
        yield self.jobs
        yield Static(NO_JOBS, id="no-jobs", classes="hint-line", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Read at once, then again and again."""
        self.set_interval(REFRESH_S, self.read)
        self.read()
        self.show(self.tq.snapshot)

    def on_resize(self, event: Resize) -> None:
        """The last column takes what is left."""
        self.redraw()

    def on_screen_resume(self) -> None:
        """Back from a run or a result."""
        self.read()

    def read(self) -> None:
        """Read queue and jobs in a worker's thread."""
        if self.app.screen is self:
            self.run_worker(self._read, thread=True, exclusive=True, group="read")

    @property
    def entry(self) -> Entry | None:
        """The chosen entry, if the queue has the focus."""
        return self._chosen(self.entries, self.found.entries, self.found.jobs)

    @property
    def chosen_job(self) -> Job | None:
        """The chosen job, if the results have the focus."""
        return self._chosen(self.jobs, self.found.jobs, self.found.entries)

    def show(self, snapshot: Snapshot) -> None:
        """Draw what was read last."""
        if not self.size.width:
            return
        waiting = sum(e.waiting for e in self.found.entries)
        right = Content.styled(f"{waiting} waiting ", "$primary" if waiting else "$muted")
        self.put("#bar", spread(logo("queue"), right, self.size.width))
        self.put("#lanes", self._lanes())
        entries = {entry.id: self._entry_cells(i, entry) for i, entry in enumerate(self.found.entries)}
        # A heading and its rows, but never so many that the results below have no room.
        self.entries.styles.height = min(len(entries) + 1, max(4, self.size.height // 2 - 3))
        self.entries.fill(entries, self.size.width)
        self.jobs.fill({job.id: self._job_cells(job) for job in self.found.jobs}, self.size.width)
        self.query_one("#no-entries").display = not self.found.entries
        self.query_one("#no-jobs").display = not self.found.jobs
        if self.focused is None and (self.found.entries or self.found.jobs):
            (self.entries if self.found.entries else self.jobs).focus()
        self.query_one(Footer).check()

    # --- keys ---

    def action_back(self) -> None:
        """To where it was opened from."""
        self.dismiss()

    def action_open(self) -> None:
        """The run of an entry, or the screen of a job."""
        if (entry := self.entry) and entry.run:
            self.tq.open_run(self.tq.root / entry.run)
        elif job := self.chosen_job:
            self.app.push_screen(JobScreen(job))

    def action_move(self, by: int) -> None:
        """One place up or down among those that wait for the same device."""
        if entry := self.entry:
            waiting = [e.id for e in self.found.entries if e.waiting and e.device == entry.device]
            place = max(0, waiting.index(entry.id) + by)
            self._act(partial(queue.move, self.tq.root, entry.id, place))

    def action_cancel(self) -> None:
        """Take the entry out, or forget the result."""
        if entry := self.entry:
            self._act(partial(queue.cancel, self.tq.root, entry.id))
        elif job := self.chosen_job:
            self._act(partial(jobs.remove, job))

    def action_pause(self) -> None:
        """Pause the queue of the chosen entry's device, or have it worked off again."""
        device = entry.device if (entry := self.entry) else self.found.runners[0].device
        runner = next((r for r in self.found.runners if r.device == device), None)
        act = queue.stop_runner if runner and runner.working else queue.start_runner
        self._act(partial(act, self.tq.root, device))

    def action_new(self) -> None:
        """A form."""
        self.tq.open_form()

    # --- work ---

    def _act(self, act: Callable[[], object]) -> None:
        """In a worker's thread, then read again."""

        def work() -> None:
            try:
                act()
            except (ValueError, OSError) as error:
                self.app.call_from_thread(self.app.notify, str(error), severity="error", markup=False)
            self._read()

        self.run_worker(work, thread=True, exit_on_error=False)

    def _read(self) -> None:
        root, failed = self.tq.root, ""
        try:
            runners = tuple(queue.runner_status(root, device) for device in queue.devices(root))
            found = Found(tuple(queue.entries(root)), runners, tuple(jobs.all_jobs(root)))
        except OSError as error:  # What was read last stays; the reason is told once, not with every try.
            found, failed = self.found, f"cannot read the queue: {error}"
        self.app.call_from_thread(self._take, found)
        if failed and failed != self._failed:
            self.app.call_from_thread(self.app.notify, failed, severity="error", markup=False)
        self._failed = failed

    def _take(self, found: Found) -> None:
        self.found = found
        self.redraw()

    # --- drawing ---

    def _chosen(self, table: QueueTable, rows: tuple[Any, ...], other: tuple[Any, ...]) -> Any:
        # With one table empty the other is meant, wherever the focus is.
        if not (table.has_focus or not other) or not 0 <= table.cursor_row < len(rows):
            return None
        return rows[table.cursor_row]

    def _lanes(self) -> Content:
        """cpu at work on resnet20-w1a2, 2 wait   cuda:0 paused, 1 waits"""
        if not self.found.runners:
            return Content("")
        parts: list[str | tuple[str, str]] = []
        for runner in self.found.runners:
            waits = f", {runner.waiting} wait{'s' if runner.waiting == 1 else ''}" if runner.waiting else ""
            if runner.working:
                name = runner.current.name if runner.current else "the next run"
                parts += [("● ", "$primary"), (runner.device, "bold"), f" at work on {words.clean(name)}{waits}   "]
            elif runner.waiting:
                parts += [("■ ", "$warning"), (runner.device, "bold"), (f" paused{waits}; p goes on   ", "$warning")]
            else:
                parts += [("○ ", "$muted"), (runner.device, "bold"), ("  idle   ", "$muted")]
        return Content.assemble(*parts)

    def _entry_cells(self, index: int, entry: Entry) -> list[Text]:
        icon, tone = ICONS.get(entry.state, ("○", "muted"))
        told = entry.error or f"tq train {' '.join(entry.argv[1:]).replace('--show progress', '').strip()}"
        color = self.tq.theme_variables.get(tone, "")
        return [
            Text(f"{index + 1}", style=self.tq.theme_variables.get("muted", "")),
            Text(f"{icon} {'waits' if entry.waiting else entry.state}", style=color),
            Text(words.clean(entry.name)),
            Text(entry.device),
            Text(words.clean(told), no_wrap=True, overflow="ellipsis"),
        ]

    def _job_cells(self, job: Job) -> list[Text]:
        icon, tone = SIGNS[job.state]
        now = self.tq.clock()
        seconds = now - job.started if job.state == "working" else now - job.ended
        span = words.span(max(0.0, seconds))
        when = f"for {span}" if job.state == "working" else f"{span} ago"
        return [
            Text(f"{icon} {job.state}", style=self.tq.theme_variables.get(tone, "")),
            Text(job.command),
            Text(words.clean(job.title)),
            Text(when),
            Text(headline(job), no_wrap=True, overflow="ellipsis"),
        ]


def headline(job: Job) -> str:
    """A result in a few words."""
    found = job.result
    if job.state != "done":
        return job.line
    if job.command == "bench":
        rows = [row for row in results.rows_of(found) if number(row, "speedup") > 0]
        best = max(rows, key=lambda row: number(row, "speedup"), default=None)
        if best is None:
            return "no contender was right"
        return f"{number(best, 'speedup'):.2f}x compiled float at batch {number(best, 'batch'):g}"
    size, full = number(found, "bytes"), number(found, "float_bytes")
    ratio = f", {full / size:.1f}x smaller" if size and math.isfinite(full / size) else ""
    accuracy = f"{words.percent(number(found, 'accuracy'), 2)}, " if job.command == "quantize" else ""
    return f"{accuracy}{size_text(size) if math.isfinite(size) else '-'}{ratio}"
