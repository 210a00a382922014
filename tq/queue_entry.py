"""Entries of the run queue: what one is, how it stands, and the files that keep it.

    runs/queue/<device>/<id>.json   an entry, written whole or not at all
                        lock        held by the device's runner for its life (tq.liveness)
                        runner.log  what the runner did
    runs/queue/mutex                held for moments by whoever changes an entry or leaves the queue

An entry says what to start and, once started, as which run; how it stands is derived from that run, never stored.
Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tq import runs
from tq.atomic import atomic
from tq.liveness import STARTING_FOR_S, State

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


def entries(root: Path, device: str | None = None) -> list[Entry]:
    """What is at work and what waits, in the order of starting; of all devices unless one is given."""
    found = [e for lane in ([device_name(device)] if device else devices(root)) for e in read_all(root, lane)]
    now = time.time()
    found = [dataclasses.replace(e, state=state_of(root, e, now)) for e in found]
    return sorted(found, key=lambda e: (e.device, e.started is None, e.order, e.id))


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


@contextlib.contextmanager
def mutex(root: Path) -> Iterator[None]:
    """Keeps other threads and processes from changing entries."""
    folder = Path(root) / "queue"
    folder.mkdir(parents=True, exist_ok=True)
    with _THREADS, open(folder / "mutex", "ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def lane_folder(root: Path, device: str) -> Path:
    """The directory of a device's queue; device as device_name gives it."""
    return Path(root) / "queue" / device.replace(":", "-")


def entry_path(root: Path, entry: Entry) -> Path:
    """The file of an entry."""
    return lane_folder(root, entry.device) / f"{entry.id}.json"


def save(root: Path, entry: Entry) -> None:
    """Write an entry, whole or not at all; the caller holds the mutex. Raises OSError."""
    record = dataclasses.asdict(entry)
    for name in ("id", "device", "state"):
        del record[name]
    path = entry_path(root, entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(json.dumps({"version": 1, **record}, indent=1).encode() + b"\n")


def read_all(root: Path, device: str) -> list[Entry]:
    """The entries of one device as they are written, without their derived state."""
    try:
        names = sorted(p for p in lane_folder(root, device).iterdir() if p.suffix == ".json")
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


def state_of(root: Path, entry: Entry, now: float) -> EntryState:
    """How an entry stands at the time `now`, in unix seconds."""
    if entry.error:
        return "failed"
    if entry.started is None:
        return "queued"
    status = runs.status(Path(root) / (entry.run or ""), now=now)
    # A run that is being resumed looks as it ended before, until its trainer has said something.
    if not status.live and now - status.silent_s < entry.started and now - entry.started < STARTING_FOR_S:
        return "starting"
    return status.state
