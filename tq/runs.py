"""Run directories: create, resume, launch, stop, and the status, which is derived and never stored.

    runs/20261121-141530-resnet20-w1a2-3f2c/
        run.json       immutable manifest, written before the first event
        events.jsonl   the log (tq.events)
        out.log        stdout and stderr of a launched trainer
        lock           held for the trainer's life: the truth about liveness

The lock is POSIX (`fcntl.lockf`): it dies with its process however that ends, a child that nobody has waited for
no longer holds it, forked data workers never do, and F_GETLK names the process to signal. Its one trap: closing
ANY descriptor of the file drops it, so a holder never opens its own lock again (see `_HELD`). Its text, a small
JSON of pid, host and time, says where the last trainer ran. Linux and macOS; standard library only.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import platform
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tq.events import EventLog, decode

MANIFEST_VERSION = 1
# Silence after which a live run is called stalled: steps come five a second, other phases may say nothing for long.
STALLED_AFTER_S = {"train": 60.0, "float": 60.0}
STALLED_ELSE_S = 900.0
# A launched child that has neither taken its lock nor died is given this long before it counts as crashed.
STARTING_FOR_S = 30.0
State = Literal["starting", "live", "done", "failed", "stopped", "crashed", "remote"]
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


class Run:
    """A run held by this process: `.path`, `.id`, `.log`. Close it, or use it as a context manager."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.id = path.name
        self._lock_fd = lock_fd
        self.log = EventLog(path / "events.jsonl")

    @property
    def manifest(self) -> dict[str, Any]:
        """The parsed run.json."""
        return manifest(self.path)

    def close(self) -> None:
        """Close the log and let go of the run. Harmless when repeated."""
        self.log.close()
        if self._lock_fd >= 0:
            _HELD.pop(os.path.realpath(self.path), None)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def create(
    root: Path,
    *,
    name: str,
    argv: Sequence[str],
    config: Mapping[str, Any],
    seed: int,
    versions: Mapping[str, str],
    device: str,
    parent: str | None = None,
    path: Path | None = None,
) -> Run:
    """Make a run directory under `root`, take its lock and write its manifest.

    `path` is a directory that `launch` made for this run (the command's --run-dir); it may hold no earlier run.
    Raises ValueError if that one is taken, OSError if the disk refuses.
    """
    if path is None:
        path = _new_directory(Path(root), name)
    path.mkdir(parents=True, exist_ok=True)
    if (path / "run.json").exists():
        raise ValueError(f"{path} already holds a run; resume that one or choose another directory")
    fd = _take_lock(path)
    record = {
        "version": MANIFEST_VERSION,
        "id": path.name,
        "name": name,
        "created": time.time(),
        "argv": list(argv),
        "cwd": os.getcwd(),
        "config": dict(config),
        "seed": seed,
        "git": _git_commit(),
        "versions": {"python": platform.python_version(), **versions},
        "device": device,
        "host": socket.gethostname(),
        "parent": parent,
    }
    _write_json(path / "run.json", record)
    return Run(path, fd)


def reopen(path: Path) -> Run:
    """Take a run up again. Raises RunBusy if another trainer holds it, ValueError if there is no run."""
    if not (path / "run.json").exists():
        raise ValueError(f"{path} holds no run (it has no run.json)")
    return Run(path, _take_lock(path))


def manifest(path: Path) -> dict[str, Any]:
    """run.json of a run; empty where it is missing (a trainer that never got that far) or damaged."""
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def status(path: Path, *, now: float | None = None) -> Status:
    """Derive a run's state from its lock and the end of its log."""
    now = time.time() if now is None else now
    last = _last_word(path / "events.jsonl")
    held, pid = _holder(path)
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


def list_runs(root: Path) -> list[Path]:
    """The run directories under `root`, newest first."""
    try:
        paths = [p for p in Path(root).iterdir() if p.is_dir() and _is_run(p)]
    except OSError:
        return []
    return sorted(paths, key=lambda p: p.name, reverse=True)


def find(root: Path, text: str) -> Path:
    """A run by path, id, "last", or a piece of the id that only one run has (its start or end is preferred).

    Raises ValueError naming the candidates or the nearest ids.
    """
    if text and _is_run(Path(text)):
        return Path(text)
    runs = {p.name: p for p in list_runs(root)}
    if not runs:
        raise ValueError(f"no runs in {root}; start one with: tq train")
    if text == "last":
        return next(iter(runs.values()))
    if text in runs:
        return runs[text]
    ends = [i for i in runs if text and (i.startswith(text) or i.endswith(text))]
    found = ends or [i for i in runs if text and text in i]
    if len(found) == 1:
        return runs[found[0]]
    if found:
        raise ValueError(
            f"{text!r} fits {len(found)} runs: {', '.join(found[:4])}{', ...' if len(found) > 4 else ''}; give more of the id"
        )
    near = difflib.get_close_matches(text, list(runs), n=3, cutoff=0.3) or list(runs)[:3]
    raise ValueError(f"no run {text!r} in {root}; nearest: {', '.join(near)}")


def stop(path: Path) -> int:
    """Ask the trainer to finish its step, write a checkpoint and end (SIGTERM). Returns its pid; ValueError if not live."""
    return _signal(path, signal.SIGTERM)


def kill(path: Path) -> int:
    """End the trainer at once, without a checkpoint (SIGKILL). Returns its pid; ValueError if not live."""
    return _signal(path, signal.SIGKILL)


def launch(
    argv: Sequence[str],
    *,
    root: Path,
    name: str = "run",
    command: Sequence[str] = (sys.executable, "-m", "tq"),
    wait_s: float = STARTING_FOR_S,
) -> Path:
    """Start `tq ARGV... --run-dir PATH` detached from this process, its output in PATH/out.log, and return PATH.

    Returns once the trainer has written its manifest, or after `wait_s`. Raises ValueError with the trainer's last
    words if it ends before that (a bad argument, say); the directory is then gone, unless there is a traceback. The trainer outlives this process.
    """
    path = _new_directory(Path(root), name)
    path.mkdir(parents=True)
    return _spawn([*command, *argv, "--run-dir", str(path)], path, wait_s)


def resume(
    path: Path, *, command: Sequence[str] = (sys.executable, "-m", "tq"), wait_s: float = STARTING_FOR_S
) -> Path:
    """Start `tq train --resume PATH` detached, as `launch` does. Raises RunBusy if a trainer holds the run."""
    held, pid = _holder(path)
    if held:
        raise RunBusy(_busy(path, pid))
    return _spawn([*command, "train", "--resume", str(path)], path, wait_s)


def output_tail(path: Path, lines: int = 20, *, max_bytes: int = 32_768) -> list[str]:
    """The last lines of a run's out.log; a progress line counts as its last state (what follows its last \\r)."""
    try:
        with open(path / "out.log", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip("\r").rpartition("\r")[2].expandtabs() for line in text.rstrip("\n").split("\n") if line][
        -lines:
    ]


def duration(seconds: float) -> str:
    """5s, 1m40, 2h05, 3d04: at most five characters, for a status column."""
    s = int(max(0, seconds))
    for unit, size, part, small in (("d", 86400, "", 3600), ("h", 3600, "", 60), ("m", 60, "", 1)):
        if s >= size:
            return f"{s // size}{unit}{part}{s % size // small:02d}"
    return f"{s}s"


# --- the lock ---


def _take_lock(path: Path) -> int:
    """Lock `path` for this process's life; returns the descriptor, which must stay open."""
    if _held_here(path):
        raise RunBusy(_busy(path, os.getpid()))
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise RunBusy(_busy(path, _holder(path)[1])) from None
    record = {"pid": os.getpid(), "host": socket.gethostname(), "t": time.time()}
    _HELD[os.path.realpath(path)] = record
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(record).encode(), 0)
    return fd


def _held_here(path: Path) -> dict[str, Any] | None:
    record = _HELD.get(os.path.realpath(path))
    return record if record and record["pid"] == os.getpid() else None


def _holder(path: Path) -> tuple[bool, int | None]:
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


def _busy(path: Path, pid: int | None) -> str:
    return f"run {path.name} is held by a trainer{f' (pid {pid})' if pid else ''}; stop that one first"


def _signal(path: Path, number: signal.Signals) -> int:
    found = status(path)
    if not found.live:
        raise ValueError(f"run {path.name} is not running ({found.word})")
    if found.pid is None:
        raise ValueError(
            f"run {path.name} has no process on this host to signal{f'; it runs on {found.host}' if found.host else ''}"
        )
    os.kill(found.pid, number)
    return found.pid


# --- the end of the log ---


@dataclass(frozen=True)
class _LastWord:
    t: float = 0.0
    phase: str = ""
    end: str = ""


def _last_word(path: Path) -> _LastWord:
    """Time of the last event, the phase it was in, and the `end` status if that came last. Reads backwards."""
    t, end, size = 0.0, "", 65_536
    while True:
        data, whole = _file_tail(path, size)
        for line in reversed(data.split(b"\n")[0 if whole else 1 : -1]):
            if not line or (event := decode(line)) is None:
                continue
            t = max(t, event["t"])
            if event["k"] == "phase":
                return _LastWord(t, str(event.get("name", "")), end)
            if event["k"] == "start":
                return _LastWord(t, "", end)
            if event["k"] == "end":
                end = end or str(event.get("status", "error"))
        if whole:
            return _LastWord(t, "", end)
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


# --- files and children ---


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("run.json", "events.jsonl", "out.log"))


def _new_directory(root: Path, name: str) -> Path:
    """A path that no run has: local time, name, four random hex digits."""
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "run"
    while (path := root / f"{time.strftime('%Y%m%d-%H%M%S')}-{slug[:60]}-{secrets.token_hex(2)}").exists():
        pass
    return path


def _spawn(command: list[str], path: Path, wait_s: float) -> Path:
    """Start a detached trainer for `path` and wait until it holds the run. Raises ValueError if it dies before."""
    # Only what this child writes counts as its last words: a resumed run's out.log has older ones.
    before = (path / "out.log").stat().st_size if (path / "out.log").exists() else 0
    with open(path / "out.log", "ab") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    exited = threading.Event()

    # Somebody has to wait for the child, or it stays a zombie for as long as this process lives.
    def reap() -> None:
        child.wait()
        exited.set()

    threading.Thread(target=reap, name=f"reap-{child.pid}", daemon=True).start()
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and not ((path / "run.json").exists() and _holder(path)[0]):
        if not exited.wait(0.02):
            continue
        if child.returncode == 0 or (before == 0 and (path / "run.json").exists()):
            break
        said = (path / "out.log").read_bytes()[before:].decode(errors="replace")
        words = next(
            (line for line in reversed(said.split("\n")) if line.strip()), f"it exited with code {child.returncode}"
        ).strip()
        # A mistake in the arguments is all said in the sentence; a traceback is kept to be read.
        if not (path / "run.json").exists() and "Traceback" not in said:
            (path / "out.log").unlink()
            path.rmdir()
        raise ValueError(f"the trainer did not start: {words}")
    return path


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".tmp")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _git_commit() -> str | None:
    """The commit of the working directory, with a + where files differ from it; None outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
