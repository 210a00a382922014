"""What can be done with a run, once for the list's chosen run and for the run's own screen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tq import queue
from tui import state
from tui.keys import Key
from tui.state import RunView

if TYPE_CHECKING:
    from tui.app import TqApp


def _why_not(reason: Callable[[RunView], str]) -> Callable[[Any], str]:
    """A Key's `why_not` from a reason that looks only at the chosen run."""

    def ask(screen: RunActions) -> str:
        return reason(screen.run) if screen.run else "there is no run to do it with"

    return ask


def _no_file(run: RunView) -> str:
    return "" if run.status.state == "done" else f"{run.name} writes its file at the end ({run.word})"


def _no_packed_file(run: RunView) -> str:
    if run.config.get("scheme") == "float":
        return f"{run.name} is a float network; z quantizes it"
    return _no_file(run)


def _not_float(run: RunView) -> str:
    if run.config.get("scheme") != "float":
        return f"{run.name} is quantized already; z takes the file of a float run"
    return _no_file(run)


def _no_settings(run: RunView) -> str:
    return "" if run.config else f"{run.name} has no settings to take over (run.json is missing or damaged)"


RUN_KEYS = (
    Key("s", "stop", "Stop", "stop it after a checkpoint", "Runs", acts=True, why_not=_why_not(state.why_not_stop)),
    Key("S", "kill", "", "kill it: it ends at once", "Runs", acts=True, why_not=_why_not(state.why_not_stop)),
    Key(
        "r", "resume", "Resume", "resume from its checkpoint", "Runs", acts=True, why_not=_why_not(state.why_not_resume)
    ),
    Key("e", "enqueue", "", "queue its resumption", "Runs", acts=True, why_not=_why_not(state.why_not_resume)),
    Key("d", "duplicate", "Duplicate", "a form with its settings", "Runs", acts=True, why_not=_why_not(_no_settings)),
    Key("i", "inspect", "", "where its bytes go", "Runs", acts=True, why_not=_why_not(_no_file)),
    Key("b", "bench", "", "how fast it is beside float", "Runs", acts=True, why_not=_why_not(_no_packed_file)),
    Key("z", "quantize", "", "quantize a float run", "Runs", acts=True, why_not=_why_not(_not_float)),
    Key("u", "queue", "Queue", "the queue, and results", "Runs"),
)


class RunActions:
    """Mixin of a TqScreen; the screen's `run` is the one that is meant, and its KEYS take in RUN_KEYS."""

    if TYPE_CHECKING:

        @property
        def tq(self) -> TqApp: ...

        @property
        def run(self) -> RunView | None:
            """The run that the keys act on."""

    def action_stop(self) -> None:
        """Ask, then stop it; where that was asked before and has not helped, offer to kill."""
        self.tq.trainers.stop(self._run())

    def action_kill(self) -> None:
        """Ask, then kill it."""
        self.tq.trainers.stop(self._run(), kill=True)

    def action_resume(self) -> None:
        """Start a trainer that takes it up."""
        self.tq.trainers.resume(self._run())

    def action_enqueue(self) -> None:
        """Have it resumed when its device is free."""
        run = self._run()
        self.tq.run_worker(partial(self._enqueue, run), thread=True, exit_on_error=False)

    def action_duplicate(self) -> None:
        """The form, filled with its settings."""
        self.tq.open_form(self._run().config)

    def action_inspect(self) -> None:
        """Where the bytes of its file go."""
        from tui.job_screen import start_job

        run = self._run()
        start_job(self.tq, ["inspect", str(run.path)], title=f"{run.name} {run.tag}", run=run.path.name)

    def action_bench(self) -> None:
        """The form of `tq bench`, filled with its file."""
        self.tq.open_form({"file": self._file()}, kind="bench")

    def action_quantize(self) -> None:
        """The form of `tq quantize`, filled with its file."""
        self.tq.open_form({"file": self._file()}, kind="quantize")

    def action_queue(self) -> None:
        """The queue and the jobs."""
        self.tq.open_queue()

    def _run(self) -> RunView:
        """The chosen run; the keys are not usable without one."""
        assert self.run is not None
        return self.run

    def _file(self) -> str:
        """The run as a command takes it: by its id where it lies under the dashboard's root."""
        path = self._run().path
        return path.name if path.parent == self.tq.root else str(path)

    def _enqueue(self, run: RunView) -> None:
        """In a worker's thread."""
        app = self.tq
        try:
            entry = queue.add(
                run.path.parent,
                ["train", "--resume", str(run.path)],
                name=run.name,
                device=str(run.config.get("device", "auto")),
                start=True,
            )
        except (ValueError, OSError) as error:
            app.call_from_thread(app.notify, str(error), severity="error", markup=False)
        else:
            said = f"{run.name} {run.tag} waits for {entry.device}; u shows the queue"
            app.call_from_thread(app.notify, said, markup=False)
