"""One quantize, bench or inspect: a progress line while it works, then its result."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widgets import Static

from tui import jobs, results, words
from tui.dialogs import Confirm
from tui.footer import Footer
from tui.jobs import Job
from tui.keys import Key
from tui.screen import TqScreen, logo, spread
from tui.state import Snapshot

if TYPE_CHECKING:
    from tui.app import TqApp

# Icon and colour (a theme variable) by state.
SIGNS = {
    "working": ("●", "primary"),
    "done": ("✓", "success"),
    "failed": ("✗", "error"),
    "stopped": ("■", "warning"),
}
REFRESH_S = 0.5


def start_job(app: TqApp, argv: Sequence[str], *, title: str, run: str = "") -> None:
    """Start `tq ARGV... --json` in the background and show it. When it ends somewhere out of sight, a toast says so."""

    def ended(job: Job) -> None:
        if app.is_running:
            app.call_from_thread(_tell, app, job)

    def work() -> None:
        try:
            job = jobs.start(app.root, argv, title=title, run=run, clock=app.clock, ended=ended)
        except (OSError, ValueError) as error:
            app.call_from_thread(app.notify, f"cannot start: {error}", severity="error", markup=False)
        else:
            app.call_from_thread(app.push_screen, JobScreen(job))

    app.run_worker(work, thread=True, exit_on_error=False)


def _tell(app: TqApp, job: Job) -> None:
    if isinstance(app.screen, JobScreen) and app.screen.job.path == job.path:
        app.screen.refresh_job()
        return
    severity = "information" if job.state == "done" else "warning"
    text = f"{job.command} {job.title} is {job.state}; u shows it"
    app.notify(text, severity=severity, markup=False)  # type: ignore[arg-type]


def _working(screen: JobScreen) -> str:
    return "" if screen.job.state == "working" else f"it has ended already ({screen.job.state})"


def _ended(screen: JobScreen) -> str:
    return "" if screen.job.state != "working" else "it is still at work"


def _packed(screen: JobScreen) -> str:
    if screen.job.state != "done":
        return f"there is no file yet (it is {screen.job.state})"
    return "" if screen.job.file else "the result names no file"


class JobScreen(TqScreen):
    """What was asked, how it stands, and what came of it."""

    CSS_PATH = "job_screen.tcss"
    KEYS: ClassVar[tuple[Key, ...]] = (
        Key("escape,backspace", "back", "Back", "back; what works goes on"),
        Key("s", "stop", "Stop", "stop it, as with ^c", acts=True, why_not=_working),
        Key("g", "again", "Again", "start the same command again", acts=True, why_not=_ended),
        Key("i", "inspect", "Inspect", "where the bytes of its file go", why_not=_packed),
        Key("b", "bench", "Bench", "how fast its file is beside float", acts=True, why_not=_packed),
        Key("y", "copy", "Copy command", "copy the command line"),
    )

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self._drawn: tuple[Job, int] | None = None

    def compose(self) -> ComposeResult:
        """Bar, command, state, result."""
        yield Static(id="bar")
        yield Static(id="job-command", markup=False)
        yield Static(id="job-state")
        with VerticalScroll(id="job"):
            yield Static(id="job-body")
        yield Footer()

    def on_mount(self) -> None:
        """Look at it again and again."""
        self.query_one("#job").focus()
        self.set_interval(REFRESH_S, self.refresh_job)
        self.show(self.tq.snapshot)

    def on_resize(self, event: Resize) -> None:
        """Bars are as wide as there is room."""
        self.call_after_refresh(self.redraw)

    def refresh_job(self) -> None:
        """Read it in a worker's thread, as long as something can come of it."""
        if self.job.state == "working":
            self.run_worker(self._read, thread=True, exclusive=True, group="read")

    def show(self, snapshot: Snapshot) -> None:
        """Draw the job as it was last read."""
        job, width = self.job, self.size.width
        if not width:
            return
        right = Content.styled(f"{job.id} ", "$muted")
        self.put("#bar", spread(logo(f"{job.command} {words.clean(job.title)}"), right, width))
        self.put("#job-command", "$ " + command_line(job))
        self.put("#job-state", state_line(job, self.tq.clock()))
        self.query_one(Footer).check()
        room = self.query_one("#job", VerticalScroll).scrollable_content_region.width
        if self._drawn == (job, room) or not room:
            return
        self._drawn = job, room
        body = results.result(job, room) if job.state == "done" else _said(job)
        self.query_one("#job-body", Static).update(body)

    def action_back(self) -> None:
        """Leave it; it goes on."""
        self.dismiss()

    def action_stop(self) -> None:
        """Ask, then Ctrl-C."""
        text = "It ends as with Ctrl-C. A quantize goes on from where it was when it is started again."
        self.app.push_screen(
            Confirm(f"Stop {self.job.command} {words.clean(self.job.title)}?", text, yes="Stop"), self._stop
        )

    def action_again(self) -> None:
        """The same once more, on a screen of its own."""
        self.dismiss()
        start_job(self.tq, self.job.argv, title=self.job.title, run=self.job.run)

    def action_inspect(self) -> None:
        """Where the bytes go."""
        start_job(self.tq, ["inspect", self.job.file], title=self.job.title, run=self.job.run)

    def action_bench(self) -> None:
        """The form of a bench, filled with the file."""
        self.tq.open_form({"file": self.job.file}, kind="bench")

    def action_copy(self) -> None:
        """The command line, to the terminal's clipboard."""
        self.app.copy_to_clipboard(command_line(self.job))
        self.notify("the command line was copied", markup=False)

    def _stop(self, yes: bool | None) -> None:
        if yes:
            _try(self.tq, partial(jobs.stop, self.job))

    def _read(self) -> None:
        try:
            job = jobs.read(self.job.path)
        except ValueError:
            return  # forgotten from the list, or by another dashboard: what is shown stays
        self.app.call_from_thread(self._take, job)

    def _take(self, job: Job) -> None:
        self.job = job
        self.redraw()


def command_line(job: Job) -> str:
    """As it would be typed."""
    return shlex.join(["tq", *map(words.clean, job.argv)])


def state_line(job: Job, now: float) -> Content:
    """● working 1m40  batch 32: timing"""
    icon, tone = SIGNS[job.state]
    seconds = now - job.started if job.state == "working" else job.seconds
    parts: list[str | tuple[str, str]] = [(f"{icon} {job.state}", f"bold ${tone}"), f" {words.span(max(0.0, seconds))}"]
    if job.state == "working":
        parts.append((f"  {job.line}", "$muted"))
    return Content.assemble(*parts)


def _said(job: Job) -> Content:
    """What it has said so far; of one that failed the last sentence first."""
    if job.state == "working":
        first = Content.styled("its result is shown here; esc leaves it at work", "$muted")
        return Content("\n").join([first, Content(""), *(Content(line) for line in job.log[-100:])])
    words = job.log[-1] if job.log else "it ended without a word"
    tone = "bold $error" if job.state == "failed" else "bold $warning"
    return Content("\n").join([Content.styled(words, tone), Content(""), *(Content(line) for line in job.log[-100:-1])])


def _try(app: TqApp, act: Callable[[], object]) -> None:
    """Do it, or say why not."""
    try:
        act()
    except (ValueError, OSError) as error:
        app.notify(str(error), severity="error", markup=False)
