"""Commands that end with a result: quantize, bench, inspect. Each is a process of its own that outlives the dashboard.

    runs/jobs/<id>/job.json    what was started, when, and why it is shown
                   result      standard output: one JSON object, written when the work is done
                   log         standard error, line by line; the process holds a lock on it for its life

How a job stands is derived: locked is working; else a result is done, a last word failed. The lock is `flock`: it goes
over to the process with the descriptor of its standard error, and dies with it however that ends. No Textual here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tq.atomic import atomic
from tq.fresh_id import fresh_id
from tui.words import clean

TQ = (sys.executable, "-m", "tq")
LOG_BYTES = 32_768
State = Literal["working", "done", "failed", "stopped"]
# Exit codes say nothing once another dashboard has to judge; this is what `tq` says after Ctrl-C.
INTERRUPTED = "tq: interrupted"


@dataclass(frozen=True)
class Job:
    """One command at one moment."""

    path: Path
    command: str
    """quantize, bench or inspect"""
    argv: tuple[str, ...]
    """without the leading tq"""
    title: str
    """what it is done with, e.g. "resnet20-w1a2 3f2c" """
    run: str = ""
    """id of the run that it was started from; "" for none"""
    cwd: str = ""
    started: float = 0.0
    ended: float = 0.0
    """unix seconds; 0 while it works"""
    state: State = "working"
    pid: int | None = None
    log: tuple[str, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def line(self) -> str:
        """The last thing that it said."""
        return self.log[-1] if self.log else "starting"

    @property
    def seconds(self) -> float:
        """How long it took; NaN while it works."""
        return self.ended - self.started if self.ended else float("nan")

    @property
    def file(self) -> str:
        """The file that it wrote or looked at, absolute; "" where the result does not say."""
        name = self.result.get("file")
        return str(Path(self.cwd, name)) if isinstance(name, str) and name else ""


def start(
    root: Path,
    argv: Sequence[str],
    *,
    title: str,
    run: str = "",
    command: Sequence[str] = TQ,
    clock: Callable[[], float] = time.time,
    ended: Callable[[Job], None] = lambda job: None,
) -> Job:
    """Start `tq ARGV... --json` detached. `ended` is called, in a thread of its own, once it is over.

    Raises OSError where the directory cannot be written.
    """
    folder = Path(root) / "jobs"
    path = folder / fresh_id(lambda name: (folder / name).exists(), at=clock())
    path.mkdir(parents=True)
    record = {
        "version": 1,
        "argv": list(argv),
        "title": title,
        "run": run,
        "cwd": os.getcwd(),
        "started": clock(),
    }
    with open(path / "log", "ab") as log, open(path / "result", "wb") as result:
        fcntl.flock(log, fcntl.LOCK_EX)
        child = subprocess.Popen(
            [*command, *argv, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=result,
            stderr=log,
            start_new_session=True,
        )
        with atomic(path / "job.json") as file:
            file.write(json.dumps({**record, "pid": child.pid}, indent=1).encode() + b"\n")

    def wait() -> None:
        child.wait()
        ended(read(path))

    # Reaped, or it would stay a zombie for as long as this process lives.
    threading.Thread(target=wait, name=f"job-{child.pid}", daemon=True).start()
    return read(path)


def read(path: Path) -> Job:
    """A job as it stands. Raises ValueError where there is none."""
    try:
        record = json.loads((path / "job.json").read_text(encoding="utf-8"))
        argv = tuple(str(word) for word in record["argv"])
        started, pid = float(record["started"]), int(record["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(f"{path} holds no job (job.json is missing or damaged); delete it") from None
    # The lock first: what is written until it is let go is then seen.
    working = _locked(path / "log")
    log, result = _log(path / "log"), _result(path / "result")
    state: State = "working" if working else "done" if result else "failed"
    if state == "failed" and log and log[-1] == INTERRUPTED:
        state = "stopped"
    return Job(
        path=path,
        command=argv[0] if argv else "?",
        argv=argv,
        title=str(record.get("title", "")),
        run=str(record.get("run", "")),
        cwd=str(record.get("cwd", "")),
        started=started,
        ended=0.0 if working else max(started, _mtime(path / "log"), _mtime(path / "result")),
        state=state,
        pid=pid if working else None,
        log=log,
        result=result,
    )


def all_jobs(root: Path) -> list[Job]:
    """Every job under `root`, newest first; damaged ones are left out."""
    try:
        paths = sorted((Path(root) / "jobs").iterdir(), reverse=True)
    except OSError:
        return []
    found = []
    for path in paths:
        with contextlib.suppress(ValueError):
            found.append(read(path))
    return found


def stop(job: Job) -> None:
    """Ctrl-C: a quantize keeps what it has learned so far. Raises ValueError if it does not work any more."""
    now = read(job.path)
    if now.pid is None:
        raise ValueError(f"{now.command} {now.title} has ended already ({now.state})")
    with contextlib.suppress(ProcessLookupError):
        os.kill(now.pid, signal.SIGINT)


def remove(job: Job) -> None:
    """Forget an ended job and its result; the files that it wrote stay. Raises ValueError while it works."""
    if read(job.path).state == "working":
        raise ValueError(f"{job.command} {job.title} is still at work; stop it first")
    shutil.rmtree(job.path, ignore_errors=True)


def _locked(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            # shared, so that two dashboards that ask at the same moment do not take each other for the process
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _log(path: Path) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    # A line that was drawn over counts as its last state.
    lines = (clean(line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in text.split("\n"))
    return tuple(line for line in lines if line)


def _result(path: Path) -> dict[str, Any]:
    """The object that was printed last; {} where there is none (yet)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8").strip().rpartition("\n")[2])
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
