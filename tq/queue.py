"""A queue of runs: each device has its own and works on one run at a time.

    runs/queue/<device>/<id>.json   an entry, written whole or not at all
                        lock        held by the device's runner for its life (tq.liveness)
                        runner.log  what the runner did
    runs/queue/mutex                held for moments by whoever changes an entry or leaves the queue

An entry says what to start and, once started, as which run; how it stands is derived from that run, never stored.
When its run has ended, the entry goes and the run remains. The runner (`work`) lives while there is something to do.
SIGTERM pauses it: the current run stops with a checkpoint and is the first to go on. After SIGKILL or a power failure
the next runner waits for a run that is still at work and resumes one that crashed. Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tq import runs
from tq.atomic import atomic
from tq.liveness import STARTING_FOR_S, RunBusy, State, holder, release, take

TQ = (sys.executable, "-m", "tq")
POLL_S = 0.5
# Until a trainer has to hold its run; one that ends before is noticed at once.
START_S = 600.0
# Options of `tq train` that a queued run cannot have, and those that name its own run.
_NOT_QUEUED = ("--run-dir", "--detach", "--queue")
EntryState = Literal["queued"] | State
# lockf does not keep threads of one process apart.
_THREADS = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """One run that is to be started, or has been."""

    id: str
    device: str
    """cpu or cuda:N, the queue it waits in"""
    name: str = ""
    argv: tuple[str, ...] = ()
    """as runs.launch takes it: ("train", ...)"""
    cwd: str = ""
    """directory that relative paths in argv start from"""
    added: float = 0.0
    """unix seconds"""
    order: int = 0
    """lowest first"""
    run: str | None = None
    """id of the run it became, or of the one that it is to go on with"""
    started: float | None = None
    """unix seconds; None while it waits"""
    error: str = ""
    """why it could not be started; such an entry stays until it is cancelled"""
    state: EntryState = "queued"
    """derived when it is read: queued, the state of its run, or failed with an `error`"""

    @property
    def waiting(self) -> bool:
        """Whether a runner will start it."""
        return self.started is None and not self.error


@dataclass(frozen=True)
class Runner:
    """The runner of one device, at one moment."""

    device: str
    working: bool
    pid: int | None = None
    """the process to signal, where there is one on this host"""
    current: Entry | None = None
    waiting: int = 0


# --- what a user does ---


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
    with _mutex(root):
        same = (e for e in entries(root, lane) if e.argv == tuple(argv) and not e.error)
        if not twice and (known := next(same, None)):
            return known
        if run is not None and (known := next((e for e in entries(root) if e.run == run), None)):
            raise ValueError(f"run {run} is in the queue already, as {known.id}")
        last = max((e.order for e in _read_all(root, lane)), default=0)
        entry = Entry(
            id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
            device=lane,
            name=name,
            argv=tuple(argv),
            cwd=os.path.abspath(cwd or os.getcwd()),
            added=time.time(),
            order=last + 1,
            run=run,
        )
        _save(root, entry)
    if start:
        start_runner(root, lane, command=command)
    return entry


def entries(root: Path, device: str | None = None) -> list[Entry]:
    """What is at work and what waits, in the order of starting; of all devices unless one is given."""
    found = [e for lane in ([device_name(device)] if device else devices(root)) for e in _read_all(root, lane)]
    now = time.time()
    found = [dataclasses.replace(e, state=_state(root, e, now)) for e in found]
    return sorted(found, key=lambda e: (e.device, e.started is None, e.order, e.id))


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
    with _mutex(root):
        entry = find(root, text)
        if entry.state in ("live", "starting"):
            raise ValueError(f"{entry.id} is at work as run {entry.run}; stop it with: tq runs stop {entry.run}")
        _path(root, entry).unlink(missing_ok=True)
    return entry


def move(root: Path, text: str, position: int) -> Entry:
    """Put a waiting entry at `position` among those that wait for its device: 0 is next, beyond the end is last."""
    with _mutex(root):
        entry = find(root, text)
        if not entry.waiting:
            raise ValueError(f"{entry.id} does not wait any more ({entry.state}), so it cannot be moved")
        others = [e for e in entries(root, entry.device) if e.waiting and e.id != entry.id]
        others.insert(max(0, position), entry)
        orders = sorted(e.order for e in others)
        for one, order in zip(others, orders, strict=True):
            if one.order != order:
                _save(root, dataclasses.replace(one, order=order))
        return find(root, entry.id)


def start_runner(root: Path, device: str = "auto", *, command: Sequence[str] = TQ, wait_s: float = 15.0) -> int | None:
    """Start `tq queue work` detached, unless a runner is at work. Returns its pid (None: it has ended already).

    Raises ValueError with its last words if it does not start.
    """
    lane = device_name(device)
    folder = _lane(root, lane)
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
    working, pid = holder(_lane(root, lane))
    known = entries(root, lane)
    current = next((e for e in known if e.state in ("live", "starting")), None)
    return Runner(lane, working, pid, current, sum(e.waiting for e in known))


def devices(root: Path) -> list[str]:
    """The devices that have a queue here."""
    try:
        return sorted(p.name.replace("-", ":") for p in (Path(root) / "queue").iterdir() if p.is_dir())
    except OSError:
        return []


def device_name(device: str) -> str:
    """cpu or cuda:N. `auto` is told without torch: the first NVIDIA device file, so that it shares cuda:0's queue."""
    if device == "auto":
        seen = glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dxg")
        return "cuda:0" if seen and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1") else "cpu"
    if device == "cuda":
        return "cuda:0"
    if not re.fullmatch(r"cpu|cuda:\d+", device):
        raise ValueError(f"unknown device {device!r}: expected auto, cpu, cuda or cuda:N")
    return device


# --- the runner ---


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
    folder = _lane(root, lane)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fd = take(folder)
    except RunBusy:
        pid = holder(folder)[1]
        raise ValueError(f"a runner works on {lane} already{f' (pid {pid})' if pid else ''}") from None
    try:
        while not should_stop():
            with _mutex(root):
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
    with _mutex(root):
        if not _path(root, entry).exists():
            path.rmdir() if not go_on else None
            return None  # cancelled a moment ago
        _save(root, entry)
    try:
        _launch(root, entry, path, go_on, command)
    except (ValueError, OSError) as error:
        with contextlib.suppress(OSError):
            path.rmdir()  # empty, if the trainer left no word in it
        with _mutex(root):
            _save(root, dataclasses.replace(entry, error=str(error), run=path.name if path.exists() else None))
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
    while holder(path)[0] or (state := _state(root, entry, time.time())) in ("live", "starting") or should_stop():
        if should_stop():
            # Put back first: whatever happens to this process now, the run goes on with the next runner.
            with _mutex(root):
                _save(root, dataclasses.replace(entry, started=None))
            _say(f"paused; {path.name} goes on when a runner works again")
            _stop(path, poll_s)
            return
        time.sleep(poll_s)
    if state in ("crashed", "remote") and not ours:
        _say(f"{path.name} was cut off")
        with _mutex(root):
            _save(root, dataclasses.replace(entry, started=None))
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
    with _mutex(root):
        _path(root, entry).unlink(missing_ok=True)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


# --- entries and files ---


def _state(root: Path, entry: Entry, now: float) -> EntryState:
    if entry.error:
        return "failed"
    if entry.started is None:
        return "queued"
    status = runs.status(Path(root) / (entry.run or ""), now=now)
    # A run that is being resumed looks as it ended before, until its trainer has said something.
    if not status.live and now - status.silent_s < entry.started and now - entry.started < STARTING_FOR_S:
        return "starting"
    return status.state


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


def _lane(root: Path, device: str) -> Path:
    return Path(root) / "queue" / device.replace(":", "-")


def _path(root: Path, entry: Entry) -> Path:
    return _lane(root, entry.device) / f"{entry.id}.json"


def _save(root: Path, entry: Entry) -> None:
    record = dataclasses.asdict(entry)
    for name in ("id", "device", "state"):
        del record[name]
    path = _path(root, entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(json.dumps({"version": 1, **record}, indent=1).encode() + b"\n")


def _read_all(root: Path, device: str) -> list[Entry]:
    try:
        names = sorted(p for p in _lane(root, device).iterdir() if p.suffix == ".json")
    except OSError:
        return []
    return [entry for path in names if (entry := _read(path, device)) is not None]


def _read(path: Path, device: str) -> Entry | None:
    """One entry; None if it has just been taken away. A damaged one has an `error`, so that no runner starts it."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return _entry(path.stem, device, raw)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        return Entry(path.stem, device, "?", error=f"{path} is damaged; take it out with: tq queue cancel {path.stem}")


def _entry(name: str, device: str, raw: dict[str, Any]) -> Entry:
    """Build an entry from its JSON, every type checked; unknown keys are ignored. Raises ValueError and the like."""
    argv, run, started = raw["argv"], raw["run"], raw["started"]
    if not isinstance(argv, list) or not isinstance(run, str | None) or os.sep in (run or ""):
        raise ValueError(name)
    return Entry(
        id=name,
        device=device,
        name=str(raw["name"]),
        argv=tuple(str(word) for word in argv),
        cwd=str(raw["cwd"]),
        added=float(raw["added"]),
        order=int(raw["order"]),
        run=run,
        started=None if started is None else float(started),
        error=str(raw["error"]),
    )


@contextlib.contextmanager
def _mutex(root: Path) -> Iterator[None]:
    """Keeps other threads and processes from changing entries."""
    folder = Path(root) / "queue"
    folder.mkdir(parents=True, exist_ok=True)
    with _THREADS, open(folder / "mutex", "ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
