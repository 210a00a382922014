"""A queue of runs: each device has its own and works on one run at a time.

    entry = add(root, ["train", "--scheme", "w4a4"], start=True)        entries(root)        runner_status(root)

Entries are files (tq.queue_entry), so the queue outlives whoever filled it; the runner (tq.queue_runner) lives while
there is something to do. When its run has ended, an entry goes and the run remains; one that could not be started stays
and says why until it is cancelled. Bad input is a ValueError of one sentence. Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tq import runs
from tq.fresh_id import fresh_id
from tq.liveness import holder
from tq.queue_entry import Entry as Entry
from tq.queue_entry import device_name as device_name
from tq.queue_entry import devices as devices
from tq.queue_entry import entries as entries
from tq.queue_entry import entry_path, lane_folder, mutex, read_all, save
from tq.queue_runner import TQ as TQ
from tq.queue_runner import work as work

# Options of `tq train` that a queued run cannot have.
_NOT_QUEUED = ("--run-dir", "--detach", "--queue")


@dataclass(frozen=True)
class Runner:
    """The runner of one device, at one moment."""

    device: str
    working: bool
    pid: int | None = None
    """the process to signal, where there is one on this host"""
    current: Entry | None = None
    waiting: int = 0


def add(
    root: Path,
    argv: Sequence[str],
    *,
    name: str = "run",
    device: str = "auto",
    cwd: str | None = None,
    start: bool = False,
    twice: bool = True,
    command: Sequence[str] = TQ,
) -> Entry:
    """Append `tq ARGV...` (a training, or `train --resume RUN`) to the queue of `device`.

    With `start` a runner is started unless one is at work. With `twice=False` an entry with the very same arguments is
    returned instead of a second one. Raises ValueError for arguments that cannot be queued.
    """
    run, lane = _resumed(root, argv), device_name(device)
    with mutex(root):
        same = (e for e in entries(root, lane) if e.argv == tuple(argv) and not e.error)
        if not twice and (known := next(same, None)):
            return known
        if run is not None and (known := next((e for e in entries(root) if e.run == run), None)):
            raise ValueError(f"run {run} is in the queue already, as {known.id}")
        last = max((e.order for e in read_all(root, lane)), default=0)
        entry = Entry(
            id=fresh_id(lambda name: any((lane_folder(root, d) / f"{name}.json").exists() for d in devices(root))),
            device=lane,
            name=name,
            argv=tuple(argv),
            cwd=os.path.abspath(cwd or os.getcwd()),
            added=time.time(),
            order=last + 1,
            run=run,
        )
        save(root, entry)
    if start:
        start_runner(root, lane, command=command)
    return entry


def find(root: Path, text: str) -> Entry:
    """An entry by its id, its run, or a piece of either that only one has. Raises ValueError."""
    known = entries(root)
    if not known:
        raise ValueError(f"the queue of {root} is empty; add to it with: tq train ... --queue")
    exact = [e for e in known if text in (e.id, e.run)]
    found = exact or [e for e in known if text and (text in e.id or text in (e.run or ""))]
    if len(found) != 1:
        what = f"fits {len(found)} entries" if found else "is not in the queue"
        raise ValueError(f"{text!r} {what}; there are: {', '.join(e.id for e in (found or known)[:4])}")
    return found[0]


def cancel(root: Path, text: str) -> Entry:
    """Take an entry out. Raises ValueError if its run is at work: that one has to be stopped."""
    with mutex(root):
        entry = find(root, text)
        if entry.state in ("live", "starting"):
            raise ValueError(f"{entry.id} is at work as run {entry.run}; stop it with: tq runs stop {entry.run}")
        entry_path(root, entry).unlink(missing_ok=True)
    return entry


def move(root: Path, text: str, position: int) -> Entry:
    """Put a waiting entry at `position` among those that wait for its device: 0 is next, beyond the end is last."""
    with mutex(root):
        entry = find(root, text)
        if not entry.waiting:
            raise ValueError(f"{entry.id} does not wait any more ({entry.state}), so it cannot be moved")
        others = [e for e in entries(root, entry.device) if e.waiting and e.id != entry.id]
        others.insert(max(0, position), entry)
        orders = sorted(e.order for e in others)
        for one, order in zip(others, orders, strict=True):
            if one.order != order:
                save(root, dataclasses.replace(one, order=order))
        return find(root, entry.id)


def start_runner(root: Path, device: str = "auto", *, command: Sequence[str] = TQ, wait_s: float = 15.0) -> int | None:
    """Start `tq queue work` detached, unless a runner is at work. Returns its pid (None: it has ended already).

    Raises ValueError with its last words if it does not start.
    """
    lane = device_name(device)
    folder = lane_folder(root, lane)
    folder.mkdir(parents=True, exist_ok=True)
    if (held := holder(folder))[0]:
        return held[1]
    with open(folder / "runner.log", "ab") as log:
        argv = [*command, "queue", "work", "--runs", str(Path(root).absolute()), "--device", lane]
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    # Reaped by a thread, or it would stay a zombie while this process lives.
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()
    deadline = time.monotonic() + wait_s
    while not (held := holder(folder))[0] and time.monotonic() < deadline:
        # A second runner, started at the same moment, may have been faster or be done with the queue by now.
        if child.returncode is not None:
            if child.returncode == 0 or not any(e.waiting for e in entries(root, lane)):
                return None
            words = (folder / "runner.log").read_text(errors="replace").strip().rpartition("\n")[2]
            raise ValueError(f"the queue's runner did not start: {words or f'exit code {child.returncode}'}")
        time.sleep(0.02)
    return held[1] or child.pid


def stop_runner(root: Path, device: str = "auto") -> int:
    """Pause: SIGTERM, at which the current run stops with a checkpoint. Returns the pid; ValueError if none works."""
    found = runner_status(root, device)
    if found.pid is None:
        why = "works on another host" if found.working else "is at work"
        raise ValueError(f"{'the' if found.working else 'no'} runner of {found.device} {why}")
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.pid, signal.SIGTERM)
    return found.pid


def runner_status(root: Path, device: str = "auto") -> Runner:
    """Whether somebody works on the queue of `device`, and on what."""
    lane = device_name(device)
    working, pid = holder(lane_folder(root, lane))
    known = entries(root, lane)
    current = next((e for e in known if e.state in ("live", "starting")), None)
    return Runner(lane, working, pid, current, sum(e.waiting for e in known))


def _resumed(root: Path, argv: Sequence[str]) -> str | None:
    """The id of the run that `argv` goes on with, if it does. Raises ValueError for what cannot be queued."""
    if not argv or argv[0] != "train":
        raise ValueError(f"only a training can be queued, as train ...; got {' '.join(argv) or 'nothing'}")
    for word in _NOT_QUEUED:
        if word in argv:
            raise ValueError(f"{word} does not go with the queue; drop it")
    if "--resume" not in argv:
        return None
    text = "".join(argv[argv.index("--resume") + 1 :][:1])
    path = runs.find(root, text)
    if path.absolute().parent != Path(root).absolute():
        raise ValueError(f"run {path} is not in {root}; queue it in its own directory with --runs {path.parent}")
    status = runs.status(path)
    if not status.resumable:
        raise ValueError(f"run {path.name} cannot be resumed: it is {status.word}")
    return path.name
