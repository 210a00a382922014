"""The one thread that touches the disk: reads what the runs have appended and posts immutable snapshots."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tq import runs
from tq.history import Follower, RunState
from tq.runs import Status
from tui.state import RunView, Snapshot, clean, spark

OUTPUT_LINES = 200
# With many or long logs the newest runs are shown first: what takes longer is left to the next poll.
READ_S = 0.25


class Poller(threading.Thread):
    """Calls `post(Snapshot)` every `every_s` seconds and after `poke()`, `fail(sentence)` when reading failed."""

    def __init__(
        self,
        root: Path,
        *,
        post: Callable[[Snapshot], None],
        fail: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        every_s: float = 0.5,
    ) -> None:
        super().__init__(name="tq-poll", daemon=True)
        self.root = root
        self._post, self._fail, self._clock, self._every_s = post, fail, clock, every_s
        self._wake = threading.Event()
        self._done = False
        self._behind = False
        self._failed = ""
        self._watched: Path | None = None
        self._known: dict[Path, _Known] = {}

    def watch(self, path: Path | None) -> None:
        """Also read the output of this run: the one that is being looked at."""
        if path != self._watched:
            self._watched = path
            self.poke()

    def poke(self) -> None:
        """Poll now rather than when the time has come."""
        self._wake.set()

    def close(self) -> None:
        """Ask the thread to end; it does within one poll."""
        self._done = True
        self.poke()

    def run(self) -> None:
        """The thread's body."""
        while not self._done:
            self._wake.clear()
            try:
                snapshot = self.poll()
            except Exception as error:  # A dashboard that silently stops updating is worse than any error.
                sentence = f"cannot read {self.root}: {type(error).__name__}: {error}"
                if sentence != self._failed:
                    self._fail(sentence)
                self._failed = sentence
            else:
                self._failed = ""
                if not self._done:
                    self._post(snapshot)
            self._wake.wait(0 if self._behind else self._every_s)

    def poll(self) -> Snapshot:
        """Read everything that is new, in the calling thread."""
        now, watched = self._clock(), self._watched
        paths = runs.list_runs(self.root)
        # A run that was named on the command line may lie elsewhere.
        if watched and watched not in paths and watched.is_dir():
            paths.append(watched)
        self._known = {path: self._known.get(path) or _Known(path) for path in paths}
        views = []
        self._behind = False
        deadline = time.monotonic() + READ_S
        for path, known in self._known.items():
            if known.unread and path != watched and time.monotonic() > deadline:
                self._behind = True
                views.append(RunView(path, runs.status(path, now=now), manifest=runs.manifest(path), now=now))
                continue
            status, state = known.read(now)
            output = tuple(clean(line) for line in runs.output_tail(path, OUTPUT_LINES)) if path == watched else ()
            views.append(RunView(path, status, state, known.manifest, output, now, known.curve))
        return Snapshot(tuple(views), now, not self._behind)


class _Known:
    """What was read of one run, so that a run which is over costs two stat calls a poll."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = {}
        self.curve = ""
        self._follower = Follower(path)
        self._seen: tuple[int, ...] = ()
        self._status = Status("starting")
        self._state = RunState()

    @property
    def unread(self) -> bool:
        """Whether its log was never read."""
        return not self._seen

    def read(self, now: float) -> tuple[Status, RunState]:
        if not self.manifest:
            self.manifest = runs.manifest(self.path)
        files = tuple(_stamp(self.path / name) for name in ("events.jsonl", "lock"))
        settled = self._status.state in ("done", "failed", "stopped", "crashed")
        if files != self._seen or not settled:
            # Status first: then a log that grows in between is never "done" without its end.
            self._status = runs.status(self.path, now=now)
            state, self._seen = self._follower.poll(), files
            if state is not self._state:
                self._state, self.curve = state, spark([p.acc for p in state.points])
        return self._status, self._state


def _stamp(path: Path) -> int:
    try:
        found = path.stat()
    except OSError:
        return 0
    return hash((found.st_size, found.st_mtime_ns))
