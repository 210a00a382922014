"""Run directories: create, resume, launch, stop, and the status, which is derived and never stored.

    runs/20261121-141530-resnet20-w1a2-3f2c/
        run.json       immutable manifest, written before the first event
        events.jsonl   the log (tq.events)
        out.log        stdout and stderr of a launched trainer
        lock           held for the trainer's life: the truth about liveness

Standard library only. Who holds a run, and how it stands, is found out in tq.liveness.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tq.atomic import atomic
from tq.events import EventLog
from tq.fresh_id import fresh_id
from tq.liveness import STARTING_FOR_S, busy, holder, release, take
from tq.liveness import LastWord as LastWord
from tq.liveness import RunBusy as RunBusy
from tq.liveness import Status as Status
from tq.liveness import duration as duration
from tq.liveness import judge as judge
from tq.liveness import status as status

MANIFEST_VERSION = 1


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
            release(self.path, self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Bystander(Run):
    """A run that another process on this machine holds: its path, and a log that drops everything."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, -1)
        self.log.close()


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
    out: Path | None = None,
    path: Path | None = None,
) -> Run:
    """Make a run directory under `root`, take its lock and write its manifest.

    `out` is where its network is to be copied to at the end, also when it ends after a resumption.
    `path` is a directory that `launch` made for this run (the command's --run-dir); it may hold no earlier run.
    Raises ValueError if that one is taken, OSError if the disk refuses.
    """
    if path is None:
        path = _new_directory(Path(root), name)
    path.mkdir(parents=True, exist_ok=True)
    if (path / "run.json").exists():
        raise ValueError(f"{path} already holds a run; resume that one or choose another directory")
    fd = take(path)
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
        "out": str(Path(out).absolute()) if out else None,
    }
    _write_json(path / "run.json", record)
    return Run(path, fd)


def reopen(path: Path) -> Run:
    """Take a run up again. Raises RunBusy if another trainer holds it, ValueError if there is no run."""
    if not (path / "run.json").exists():
        raise ValueError(f"{path} holds no run (it has no run.json)")
    return Run(path, take(path))


def manifest(path: Path) -> dict[str, Any]:
    """run.json of a run; empty where it is missing (a trainer that never got that far) or damaged."""
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def list_runs(root: Path) -> list[Path]:
    """The run directories under `root`, newest first."""
    try:
        # Not Path.iterdir: the dashboard asks twice a second, and of hundreds of runs that is felt.
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and _is_run(entry.path)]
    except OSError:
        return []
    return [Path(root) / name for name in sorted(names, reverse=True)]


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
        names = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise ValueError(f"{text!r} fits {len(found)} runs: {names}; give more of the id")
    near = difflib.get_close_matches(text, list(runs), n=3, cutoff=0.3) or list(runs)[:3]
    raise ValueError(f"no run {text!r} in {root}; nearest: {', '.join(near)}")


def stop(path: Path) -> int:
    """SIGTERM: the trainer finishes its step, writes a checkpoint and ends. Returns its pid; ValueError if not live."""
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
    path: Path | None = None,
    cwd: str | None = None,
) -> Path:
    """Start `tq ARGV... --run-dir PATH` detached from this process, its output in PATH/out.log, and return PATH.

    `path`: a directory that `reserve` made, for a caller that notes it before the trainer starts; `cwd`: what relative
    paths among the arguments start from.

    Returns once the trainer has written its manifest, or after `wait_s`. Raises ValueError with the trainer's last
    words if it ends before that (a bad argument, say); the directory is then gone, unless there is a traceback. The
    trainer outlives this process.
    """
    path = path or reserve(Path(root), name)
    return _spawn([*command, *argv, "--run-dir", str(path)], path, wait_s, cwd=cwd)


def reserve(root: Path, name: str) -> Path:
    """Make an empty directory for a run that is about to start."""
    path = _new_directory(root, name)
    path.mkdir(parents=True)
    return path


def resume(
    path: Path, *, command: Sequence[str] = (sys.executable, "-m", "tq"), wait_s: float = STARTING_FOR_S
) -> Path:
    """Start `tq train --resume PATH` detached, as `launch` does. Raises RunBusy if a trainer holds the run."""
    held, pid = holder(path)
    if held:
        raise RunBusy(busy(path, pid))
    # Relative paths among its settings mean what they meant when it began.
    cwd = manifest(path).get("cwd")
    path = path.absolute()
    return _spawn(
        [*command, "train", "--resume", str(path)], path, wait_s, cwd=cwd if cwd and os.path.isdir(cwd) else None
    )


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


def _signal(path: Path, number: signal.Signals) -> int:
    found = status(path)
    if not found.live:
        raise ValueError(f"run {path.name} is not running ({found.word})")
    if found.pid is None:
        raise ValueError(
            f"run {path.name} has no process on this host to signal{f'; it runs on {found.host}' if found.host else ''}"
        )
    try:
        os.kill(found.pid, number)
    except ProcessLookupError:
        raise ValueError(f"run {path.name} has just ended") from None
    return found.pid


# --- files and children ---


def _is_run(path: Path | str) -> bool:
    return any(os.path.exists(f"{path}/{name}") for name in ("run.json", "events.jsonl", "out.log"))


def _new_directory(root: Path, name: str) -> Path:
    """A path that no run has: local time, name, four random hex digits."""
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "run"
    return root / fresh_id(lambda name: (root / name).exists(), slug[:60])


def _spawn(command: list[str], path: Path, wait_s: float, *, cwd: str | None = None) -> Path:
    """Start a detached trainer for `path` and wait until it holds the run. Raises ValueError if it dies before."""
    # Only what this child writes counts as its last words: a resumed run's out.log has older ones.
    before = (path / "out.log").stat().st_size if (path / "out.log").exists() else 0
    with open(path / "out.log", "ab") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=cwd
        )
    exited = threading.Event()

    # Somebody has to wait for the child, or it stays a zombie for as long as this process lives.
    def reap() -> None:
        child.wait()
        exited.set()

    threading.Thread(target=reap, name=f"reap-{child.pid}", daemon=True).start()
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and not ((path / "run.json").exists() and holder(path)[0]):
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


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    with atomic(path) as file:
        file.write(json.dumps(record, indent=1, default=str).encode() + b"\n")


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
