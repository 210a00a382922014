"""The one thread that touches the disk: reads what the runs have appended and posts immutable snapshots.

What has not changed is the same object as before, so that the screens have nothing to do for it. The newest runs and
the one that is being looked at come first; a long log is read in pieces, and the snapshots between say how far it is.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tq import runs
from tq.history import Follower, RunState
from tq.runs import LastWord, Status
from tui.state import RunView, Snapshot
from tui.system import Probe, System
from tui.words import clean

OUTPUT_LINES = 200
# A snapshot is posted after so much work even where there is more to read. Processor time: on a busy machine the
# screens would else be drawn more often than the logs are read.
READ_S = 0.25
# Between two pieces the user interface gets its turn.
PIECE_BYTES = 65_536
# For how long after a key: about what it takes to draw its answer.
GIVE_WAY_S = 0.05
# How often the machine is asked, the directory listed and a run that is over looked at.
SELDOM_S = 3.0
OVER = ("done", "failed", "stopped", "crashed")


class Poller(threading.Thread):
    """Calls `post(Snapshot)` every `every_s` seconds and after `poke()`, `fail(sentence)` when reading failed."""

    def __init__(
        self,
        root: Path,
        *,
        post: Callable[[Snapshot], None],
        fail: Callable[[str], None],
        begin: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        every_s: float = 0.5,
        system: Callable[[], System] | None = None,
    ) -> None:
        super().__init__(name="tq-poll", daemon=True)
        self.root = root
        self._post, self._fail, self._begin, self._clock, self._every_s = post, fail, begin, clock, every_s
        self._wake = threading.Event()
        self._done = False
        self._behind = False
        self._failed = ""
        self._watched: Path | None = None
        self._known: dict[Path, _Known] = {}
        self._listed: tuple[int, float] = (-1, 0.0)
        self._probe = system or Probe()
        self._system: tuple[System | None, float] = (None, 0.0)
        self._all = True
        self._way_until = 0.0

    def watch(self, path: Path | None) -> None:
        """Also read the output of this run: the one that is being looked at."""
        if path != self._watched:
            self._watched = path
            self.poke()

    def poke(self) -> None:
        """Poll now rather than when the time has come, and look at everything."""
        self._all = True
        self._wake.set()

    def give_way(self) -> None:
        """Somebody pressed a key: leave the interpreter to the user interface for a moment."""
        self._way_until = time.monotonic() + GIVE_WAY_S

    def close(self) -> None:
        """Ask the thread to end; it does within one poll."""
        self._done = True
        self.poke()

    def run(self) -> None:
        """The thread's body; `begin` is called first, until it succeeds."""
        begun = False
        while not self._done:
            self._wake.clear()
            try:
                if not begun:
                    self._begin()
                    begun = True
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
        """Read what is new, in the calling thread."""
        now, watched, everything = self._clock(), self._watched, self._all
        self._all = False
        self._list(everything, watched)
        deadline = time.thread_time() + READ_S
        first = self._known.get(watched) if watched else None
        if first:
            first.read(now, deadline, force=True, first=True)
            output = tuple(clean(line) for line in runs.output_tail(first.path, OUTPUT_LINES))
            first.view = replace(first.view, output=output or first.view.output, now=now)
        for known in self._known.values():
            if known is not first:
                known.read(now, deadline, force=everything)
        views = [known.view for known in self._known.values()]
        self._behind = any(view.share < 1 for view in views)
        return Snapshot(tuple(views), now, not self._behind, self._ask_system(everything))

    def _list(self, everything: bool, watched: Path | None) -> None:
        """Bring `_known` up to date with the directory; seldom, unless something was added to it or removed."""
        try:
            changed = os.stat(self.root).st_mtime_ns
        except OSError:
            changed = 0
        due = time.monotonic() - self._listed[1] >= SELDOM_S
        missing = watched is not None and watched not in self._known
        if not (everything or due or missing or changed != self._listed[0]):
            return
        self._listed = changed, time.monotonic()
        paths = runs.list_runs(self.root)
        # A run that was named on the command line may lie elsewhere; one that was deleted stays while it is looked at.
        if watched and watched not in paths and (watched in self._known or watched.is_dir()):
            paths.append(watched)
        self._known = {path: self._known.get(path) or _Known(path, self._pause) for path in paths}

    def _pause(self) -> None:
        """Between two pieces. One wait, not until there is peace: a key that is held down must not stop the reading."""
        time.sleep(max(0.0, self._way_until - time.monotonic()))

    def _ask_system(self, everything: bool) -> System | None:
        if everything or time.monotonic() - self._system[1] >= SELDOM_S:
            self._system = self._probe(), time.monotonic()
        return self._system[0]


class _Known:
    """What was read of one run. One that is over and has not changed costs two stat calls now and then."""

    def __init__(self, path: Path, pause: Callable[[], None]) -> None:
        self.path = path
        self._pause = pause
        self.view = RunView(path, Status("starting"), share=0.0)
        self._files = (f"{path}/events.jsonl", f"{path}/lock", f"{path}")
        self._stamps: tuple[tuple[int, int], ...] = ()
        self._looked = 0.0
        self._manifest: dict[str, Any] = {}
        self._follower = Follower(path)
        self._state = RunState()

    def read(self, now: float, deadline: float, *, force: bool, first: bool = False) -> None:
        """Bring `view` up to date; past the deadline (of time.thread_time) only what takes none."""
        begun = time.monotonic()
        settled = self.view.share == 1 and self.view.status.state in OVER
        if settled and not force and begun - self._looked < SELDOM_S:
            return
        self._looked = begun
        stamps = tuple(_stamp(file) for file in self._files)
        if settled and stamps == self._stamps:
            return
        self._stamps = stamps
        if not self._manifest:
            self._manifest = runs.manifest(self.path)
        share = self._read_log(deadline, first=first)
        if share == 1:
            status = self._judge(now)
        else:
            # What was read is from long ago: what counts is the end of the log. Once is enough until it is reached.
            status = self.view.status if self.view.now else runs.status(self.path, now=now)
        gone = stamps[-1] == (0, 0)
        # Half a log is not shown: its numbers would be taken for the last ones, and drawing them delays the rest.
        state = self._state if share == 1 else self.view.state
        self.view = replace(
            self.view, status=status, state=state, manifest=self._manifest, now=now, share=share, gone=gone
        )

    def _read_log(self, deadline: float, *, first: bool) -> float:
        """Read until the end or the deadline; returns how much of the log has been read."""
        # Past the deadline new events of a known log take no time, an unread log would; the first has its piece anyway.
        if time.thread_time() >= deadline and self._follower.share < 1 and not first:
            return self._follower.share
        while True:
            self._state = self._follower.poll(PIECE_BYTES)
            if (share := self._follower.share) == 1 or time.thread_time() >= deadline:
                return share
            # The user interface waits for this thread wherever it needs the interpreter: give it a turn.
            self._pause()

    def _judge(self, now: float) -> Status:
        while True:
            state = self._state
            status = runs.judge(self.path, LastWord(state.updated, state.phase, state.end), now=now)
            if status.state != "crashed":
                return status
            # The trainer may have ended between the two looks: nobody holds the run any more, so now the log is whole.
            self._state = self._follower.poll()
            if self._state is state:
                return status


def _stamp(file: str) -> tuple[int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
