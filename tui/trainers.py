"""Stopping, killing and resuming trainers from the dashboard: asked first, and told what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tq import runs
from tui import state
from tui.dialogs import Confirm
from tui.state import RunView, Snapshot

if TYPE_CHECKING:
    from tui.app import TqApp

# A trainer that was asked to stop and is still there after this long may be killed.
PATIENCE_S = 10.0


class Trainers:
    """What the app was asked to do with runs, and which of them are still to stop."""

    def __init__(self, app: TqApp) -> None:
        self._app = app
        self._stopping: dict[Path, float] = {}

    def mark(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot, with the time at which those that are still to stop were asked."""
        if not self._stopping:
            return snapshot
        live = {run.path for run in snapshot.live}
        self._stopping = {path: t for path, t in self._stopping.items() if path in live}
        marked = (replace(run, asked_t=self._stopping.get(run.path)) for run in snapshot.runs)
        return replace(snapshot, runs=tuple(marked))

    def stop(self, run: RunView, *, kill: bool = False) -> None:
        """Ask, then stop gracefully; with `kill`, or where that was asked before and has not helped, offer to kill."""
        app = self._app
        if app.refuse(app.readonly or state.why_not_stop(run)):
            return
        asked = self._stopping.get(run.path)
        text = "It ends at once. What came after its last checkpoint is lost."
        if asked is not None and app.clock() - asked >= PATIENCE_S:
            ago = runs.duration(app.clock() - asked)
            text = f"It was asked to stop {ago} ago. Killing loses what came after the last checkpoint."
            kill = True
        if kill:
            dialog, act = Confirm(f"Kill {run.name} {run.tag}?", text, yes="Kill", danger=True), runs.kill
        else:
            text = "It finishes its step, writes a checkpoint and ends. It can be resumed later."
            dialog, act = Confirm(f"Stop {run.name} {run.tag}?", text, yes="Stop"), runs.stop
        app.push_screen(dialog, partial(self._confirmed, run, act))

    def resume(self, run: RunView) -> None:
        """Start a trainer that takes up this run where its checkpoint left it."""
        app = self._app
        if app.refuse(app.readonly or state.why_not_resume(run)):
            return
        app.notify(f"resuming {run.name} {run.tag}", markup=False)
        app.run_worker(partial(self._resume, run.path), thread=True, exit_on_error=False)

    def _confirmed(self, run: RunView, act: Callable[[Path], int], yes: bool | None) -> None:
        if not yes:
            return
        try:
            pid = act(run.path)
        except (ValueError, OSError) as error:
            self._app.notify(str(error), severity="error", markup=False)
            return
        self._stopping.setdefault(run.path, self._app.clock())
        verb = "asked to stop" if act is runs.stop else "killed"
        self._app.notify(f"{run.name} {run.tag} (pid {pid}) was {verb}", markup=False)
        self._app.poller.poke()

    def _resume(self, path: Path) -> None:
        """In a worker's thread."""
        try:
            runs.resume(path)
        except (ValueError, OSError) as error:
            self._app.call_from_thread(self._app.notify, str(error), severity="error", markup=False)
        else:
            self._stopping.pop(path, None)
            self._app.poller.poke()
