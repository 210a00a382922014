"""Who holds a run, and from that and the end of its log: how it stands. Derived, never stored.

The lock is POSIX (`fcntl.lockf`): it dies with its process however that ends, a child that nobody has waited for
no longer holds it, forked data workers never do, and F_GETLK names the process to signal. (A pid file is wrong for
the unreaped child, `flock` survives in the workers.) Its one trap: closing ANY descriptor of the file drops it, so a
holder never opens its own lock again (see `_HELD`). The file's text, a small JSON of pid, host and time, says where
the last trainer ran. Linux and macOS; standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tq.events import Event, decode

# Silence after which a live run is called stalled: steps come five a second, other phases may say nothing for long.
STALLED_AFTER_S = {"train": 60.0, "float": 60.0}
STALLED_ELSE_S = 900.0
# A launched child that has neither taken its lock nor died is given this long before it counts as crashed.
STARTING_FOR_S = 30.0
State = Literal["starting", "live", "done", "failed", "stopped", "crashed", "remote"]
# The kinds of event that say in which phase a run is.
_TELLING = re.compile(rb'"(?:phase|start|end)"')
# By the status that an `end` event gives.
_ENDED: Mapping[str, State] = {"ok": "done", "error": "failed", "stopped": "stopped"}
# Locks that this process holds: real path of the directory -> what it wrote there. A forked child inherits the
# dict but not the lock, hence the test of "pid" wherever this is read.
_HELD: dict[str, dict[str, Any]] = {}


class RunBusy(ValueError):
    """Another trainer holds the run."""


@dataclass(frozen=True)
class Status:
    """What can be known of a run from outside, at one moment."""

    state: State
    phase: str = ""
    silent_s: float = 0.0
    """seconds since the last event"""
    pid: int | None = None
    """the process to signal, where there is one on this host"""
    host: str = ""

    @property
    def live(self) -> bool:
        """Whether a trainer is at work here."""
        return self.state in ("starting", "live")

    @property
    def resumable(self) -> bool:
        """Whether `tq train --resume` makes sense."""
        return self.state in ("failed", "stopped", "crashed")

    @property
    def word(self) -> str:
        """One or two words for people: the phase of a live run, "stalled 1m40", "silent 4m", else the state."""
        if self.state == "remote":
            return f"silent {duration(self.silent_s)}"
        if self.state != "live":
            return self.state
        if self.silent_s > STALLED_AFTER_S.get(self.phase, STALLED_ELSE_S):
            return f"stalled {duration(self.silent_s)}"
        return self.phase or "starting"


def status(path: Path, *, now: float | None = None) -> Status:
    """Derive a run's state from its lock and the end of its log."""
    return judge(path, last_word(path / "events.jsonl"), now=now)


def judge(path: Path, last: LastWord, *, now: float | None = None) -> Status:
    """`status`, for a reader that follows the log and so knows what it said last."""
    now = time.time() if now is None else now
    held, pid = holder(path)
    record = _lock_text(path)
    host = str(record.get("host", ""))
    here = host in ("", socket.gethostname())
    taken = float(record.get("t", 0.0))
    silent = max(0.0, now - max(last.t, taken)) if last.t or taken else 0.0
    # The lock of a run that is being resumed is newer than the log's old `end`.
    if last.end and not (held and taken > last.t):
        return Status(_ENDED.get(last.end, "failed"), last.phase, silent, None, host)
    if held:
        return Status("live", last.phase if last.t >= taken else "", silent, pid if here else None, host)
    if not here:
        return Status("remote", last.phase, silent, None, host)
    if not record and now - _mtime(path) < STARTING_FOR_S:
        return Status("starting", "", max(0.0, now - _mtime(path)), None, host)
    return Status("crashed", last.phase, silent, None, host)


def take(path: Path) -> int:
    """Lock `path` for this process's life; returns the descriptor, which must stay open."""
    if _held_here(path):
        raise RunBusy(busy(path, os.getpid()))
    record = {"pid": os.getpid(), "host": socket.gethostname(), "t": time.time()}
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    # Noted before it is taken: another thread that asks for the status must not open the file from now on.
    _HELD[os.path.realpath(path)] = record
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        release(path, fd)
        raise RunBusy(busy(path, holder(path)[1])) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(record).encode(), 0)
    return fd


def release(path: Path, fd: int) -> None:
    """Let go of a lock that `take` gave."""
    _HELD.pop(os.path.realpath(path), None)
    os.close(fd)


def _held_here(path: Path) -> dict[str, Any] | None:
    record = _HELD.get(os.path.realpath(path))
    return record if record and record["pid"] == os.getpid() else None


def holder(path: Path) -> tuple[bool, int | None]:
    """Whether the run's lock is held, and by which process (None: one that cannot be signalled from here)."""
    if _held_here(path):
        return True, os.getpid()
    try:
        fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False, None
    try:
        kind, pid = _getlk(fd)
    except OSError:
        return False, None
    finally:
        os.close(fd)
    if kind == fcntl.F_UNLCK:
        return False, None
    # 0 and below mean a holder in another pid namespace or host: a signal to them would hit ourselves.
    return True, pid if pid > 0 else None


def _getlk(fd: int) -> tuple[int, int]:
    """Type and pid of the lock that keeps us from a write lock on `fd`."""
    # struct flock: macOS has (start, len, pid, type, whence), Linux (type, whence, start, len, pid).
    if sys.platform == "darwin":
        _, _, pid, kind, _ = struct.unpack(
            "qqihh", fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("qqihh", 0, 0, 0, fcntl.F_WRLCK, 0))
        )
    else:
        flock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, flock))
    return kind, pid


def _lock_text(path: Path) -> dict[str, Any]:
    if record := _held_here(path):
        return record
    try:
        record = json.loads((path / "lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def busy(path: Path, pid: int | None) -> str:
    """The sentence of RunBusy."""
    return f"run {path.name} is held by a trainer{f' (pid {pid})' if pid else ''}; stop that one first"


def duration(seconds: float) -> str:
    """5s, 1m40, 2h05, 3d04: at most five characters, for a status column."""
    s = int(max(0, seconds))
    for unit, size, part, small in (("d", 86400, "", 3600), ("h", 3600, "", 60), ("m", 60, "", 1)):
        if s >= size:
            return f"{s // size}{unit}{part}{s % size // small:02d}"
    return f"{s}s"


@dataclass(frozen=True)
class LastWord:
    """The end of a log in three words."""

    t: float = 0.0
    """unix seconds of the last event"""
    phase: str = ""
    end: str = ""
    """the status of an `end` event that nothing followed"""


def last_word(path: Path) -> LastWord:
    """The end of a log, read backwards as far as the phase that it was in began."""
    size = 65_536
    while True:
        data, whole = _file_tail(path, size)
        last: Event | None = None
        end = ""
        for line in reversed(data.split(b"\n")[0 if whole else 1 : -1]):
            # Thousands of steps may follow on a phase: of them only the last is decoded.
            if last is not None and not _TELLING.search(line):
                continue
            if (event := decode(line)) is None:
                continue
            last = last or event
            if event["k"] == "phase":
                return LastWord(last["t"], str(event.get("name", "")), end)
            if event["k"] == "start":
                return LastWord(last["t"], "", end)
            if event["k"] == "end":
                end = end or str(event.get("status", "error"))
        if whole:
            return LastWord(last["t"] if last else 0.0, "", end)
        size *= 4


def _file_tail(path: Path, size: int) -> tuple[bytes, bool]:
    """The last `size` bytes, and whether that is the whole file."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            return file.read(), length <= size
    except OSError:
        return b"", True


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
