"""The runner of a device's queue: starts one run, waits for its end, starts the next, until nothing waits.

SIGTERM (`should_stop`) pauses it: the current run stops with a checkpoint and is the first to go on. After SIGKILL or a
power failure the next runner waits for a run that is still at work and resumes one that was cut off. Standard library
only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tq import runs
from tq.liveness import RunBusy, holder, release, take
from tq.queue_entry import Entry, device_name, entries, entry_path, lane_folder, mutex, save, state_of

TQ = (sys.executable, "-m", "tq")
POLL_S = 0.5
# Until a trainer has to hold its run; one that ends before is noticed at once.
START_S = 600.0


def work(
    root: Path,
    device: str = "auto",
    *,
    command: Sequence[str] = TQ,
    should_stop: Callable[[], bool] = lambda: False,
    poll_s: float = POLL_S,
) -> None:
    """Work the queue of a device off, then return. Raises ValueError if another runner does so already.

    Once `should_stop` is true the current run is stopped with a checkpoint and waits, first in the queue.
    """
    root, lane = Path(root).absolute(), device_name(device)
    folder = lane_folder(root, lane)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fd = take(folder)
    except RunBusy:
        pid = holder(folder)[1]
        raise ValueError(f"a runner works on {lane} already{f' (pid {pid})' if pid else ''}") from None
    try:
        while not should_stop():
            with mutex(root):
                entry = next((e for e in entries(root, lane) if not e.error), None)
                if entry is None:
                    # Inside the mutex: whoever adds an entry now finds that nobody is at work.
                    release(folder, fd)
                    fd = -1
                    return
            ours = entry.waiting
            if not ours or (entry := _begin(root, entry, command)):
                _watch(root, entry, ours, should_stop, poll_s)
    finally:
        if fd >= 0:
            release(folder, fd)


def _begin(root: Path, entry: Entry, command: Sequence[str]) -> Entry | None:
    """Start a waiting entry, or go on with its run; None where nothing came of it."""
    old = root / entry.run if entry.run else None
    if old is not None and runs.status(old).state == "done":
        _drop(root, entry, "is done already")
        return None
    go_on = old is not None and bool(runs.manifest(old))
    path = old if old is not None and go_on else runs.reserve(root, entry.name)
    # Noted before the start, so that a runner that is killed here leaves a trace to follow.
    entry = dataclasses.replace(entry, run=path.name, started=time.time())
    with mutex(root):
        if not entry_path(root, entry).exists():
            path.rmdir() if not go_on else None
            return None  # cancelled a moment ago
        save(root, entry)
    try:
        _launch(root, entry, path, go_on, command)
    except (ValueError, OSError) as error:
        with contextlib.suppress(OSError):
            path.rmdir()  # empty, if the trainer left no word in it
        with mutex(root):
            save(root, dataclasses.replace(entry, error=str(error), run=path.name if path.exists() else None))
        _say(f"{entry.id} {entry.name}: {error}")
        return None
    _say(f"{entry.id} {'goes on' if go_on else 'started'} as {path.name}")
    return entry


def _launch(root: Path, entry: Entry, path: Path, go_on: bool, command: Sequence[str]) -> None:
    """Returns when a trainer holds the run. Raises ValueError with its last words if it ends before."""
    if not go_on:
        if not os.path.isdir(entry.cwd):
            raise ValueError(f"{entry.cwd}, where it was added, does not exist any more")
        argv, cwd = entry.argv, entry.cwd
        runs.launch(argv, root=root, name=entry.name, command=command, wait_s=START_S, path=path, cwd=cwd)
    elif not runs.status(path).live:
        runs.resume(path, command=command, wait_s=START_S)


def _watch(root: Path, entry: Entry, ours: bool, should_stop: Callable[[], bool], poll_s: float) -> None:
    """Wait for the end of an entry's run. `ours`: this runner started it, so a crash is the run's own."""
    path = root / (entry.run or "")
    # The lock alone is asked while it is held: to read the end of a long log twice a second is not free.
    while holder(path)[0] or (state := state_of(root, entry, time.time())) in ("live", "starting") or should_stop():
        if should_stop():
            # Put back first: whatever happens to this process now, the run goes on with the next runner.
            with mutex(root):
                save(root, dataclasses.replace(entry, started=None))
            _say(f"paused; {path.name} goes on when a runner works again")
            _stop(path, poll_s)
            return
        time.sleep(poll_s)
    if state in ("crashed", "remote") and not ours:
        _say(f"{path.name} was cut off")
        with mutex(root):
            save(root, dataclasses.replace(entry, started=None))
    else:
        _drop(root, entry, f"{path.name}: {state}")


def _stop(path: Path, poll_s: float) -> None:
    """Ask a run to stop, as soon as there is somebody to ask, and wait until it has."""
    asked = False
    while runs.status(path).live:
        if not asked:
            with contextlib.suppress(ValueError):
                asked = runs.stop(path) > 0
        time.sleep(poll_s)


def _drop(root: Path, entry: Entry, why: str) -> None:
    _say(f"{entry.id} {why}")
    with mutex(root):
        entry_path(root, entry).unlink(missing_ok=True)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)
