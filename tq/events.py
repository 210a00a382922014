"""The run log: one JSON object a line, appended by the trainer, followed by readers.

    {"t": 1795270530.25, "k": "step", "step": 40, "epoch": 1, "loss": 1.93, "acc": 31.2, "lr": 0.05, "img_s": 512.0}

`t` is unix seconds and `k` the kind. Kinds and their fields:

    start       v, pid, host, device, epochs, steps_per_epoch, metrics {name: {goal, unit}}, resumed_from
    phase       name: data, compile, float, train, calibrate, eval, pack or bench; stage of a float or train phase: w4a4
    step        step, epoch, loss, acc, lr, img_s, flip_rate     at most 5 a second; acc in percent, flip_rate 0 to 1
                p_min, p_mean, p_max                             over the tensors: updates are multiples of 2^-p
                portion                                          of the weights quantized for good (INQ), 0 to 1
    eval        step, epoch, split, loss, acc                    acc in percent
    layers      step, epoch, layers {name: {bits, act_bits, bytes, scale, sqnr_db, flips, oscillating, frozen}}
                                                                 of each quantized layer; shares 0 to 1, flips per step
    size        float_bytes, packed_bytes, layers {name: bits}
    sys         cpu, rss, ...                                    cpu in percent, rss in bytes
    checkpoint  step, path, best
    alert       level (info, warning or error), title, text
    end         status (ok, error or stopped), error, traceback, summary {name: value}

`flip_rate` and `flips` are the share of the codes that change in a step, a mean since the last such event.
`epochs` and `steps_per_epoch` cover the whole run; `step` and `epoch` count from 1 and are those just finished or
under way. Readers ignore unknown kinds and fields. JSON has no NaN, so "nan", "inf" and "-inf" stand for them.
Each event is one os.write to a descriptor opened with O_APPEND: lines of two threads never mix, and a killed
writer leaves at most one torn line, its last. Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]

VERSION = 1
STEPS_PER_SECOND = 5
# Words in these fields are text even where they read "nan".
_TEXT = frozenset({"k", "name", "host", "split", "path", "level", "title", "text", "status", "error", "traceback"})
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class EventLog:
    """Appends events to `path`. A failing write warns once on stderr; it never raises and never stops training."""

    def __init__(self, path: Path | str, *, clock: Callable[[], float] = time.time) -> None:
        """Open for append; a torn last line of a killed writer is sealed with a newline."""
        self.path = Path(path)
        self._clock = clock
        # Re-entrant: a SIGTERM handler may emit while the main thread is inside emit.
        self._mutex = threading.RLock()
        self._pending: Event | None = None
        self._last_step = -math.inf
        self._warned = False
        self._fd = -1
        self._torn = False
        try:
            self._torn = _last_byte(self.path) not in (b"", b"\n")
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._warn(error)

    def emit(self, kind: str, /, **fields: Any) -> None:
        """Write one event now, after the pending step if there is one. `checkpoint` and `end` are synced to disk."""
        with self._mutex:
            self._flush()
            self._write({"t": self._clock(), "k": kind, **fields})
            if kind in ("checkpoint", "end"):
                self.sync()

    def step(self, **fields: Any) -> None:
        """`emit("step", ...)`, at most 5 a second: a step between waits for a newer one or for any other event."""
        with self._mutex:
            now = self._clock()
            self._pending = {"t": now, "k": "step", **fields}
            # A clock set back must not silence the log, hence the test of both sides.
            if not 0 <= now - self._last_step < 1 / STEPS_PER_SECOND:
                self._last_step = now
                self._flush()

    def sync(self) -> None:
        """Flush to the disk itself (slow: for checkpoints and the end only)."""
        with self._mutex:
            self._flush()
            if self._fd >= 0:
                try:
                    os.fsync(self._fd)
                except OSError as error:
                    self._warn(error)

    def close(self) -> None:
        """Write the pending step and close. Later events are dropped without a word."""
        with self._mutex:
            self._flush()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _flush(self) -> None:
        if self._pending is not None:
            event, self._pending = self._pending, None
            self._write(event)

    def _write(self, event: Event) -> None:
        if self._fd < 0:
            return
        line = encode(event)
        try:
            data = b"\n" + line if self._torn else line
            # A short write happens on a full disk: what follows must start on a line of its own.
            self._torn = os.write(self._fd, data) != len(data)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            print(f"tq: cannot write {self.path}: {error.strerror}; going on without", file=sys.stderr)


def encode(event: Event) -> bytes:
    """One line of JSON. Scalars of other libraries become floats, anything else unknown its str()."""
    return json.dumps(_to_json(event), allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def decode(line: bytes) -> Event | None:
    """The event on one line, or None where it is torn or is not an event."""
    try:
        event = json.loads(line.decode())
    except ValueError:
        return None
    if (
        not isinstance(event, dict)
        or not isinstance(event.get("k"), str)
        or not isinstance(event.get("t"), int | float)
    ):
        return None
    # Hardly any line has one of the special words, and looking for them in every field takes half of the time.
    if b'nan"' not in line and b'inf"' not in line:
        return event
    return {key: value if key in _TEXT else _from_json(value) for key, value in event.items()}


def tail(path: Path | str, offset: int = 0, max_bytes: int | None = None) -> tuple[list[Event], int]:
    """The events whose lines are complete after byte `offset`, and the offset for the next call.

    `max_bytes`: read about that much at once, for a reader that has other things to do (a longer line is read whole).

    A missing file has no events. A file shorter than `offset` was replaced: it is read from its start, which the
    caller sees by a new offset below the old one plus what it got.
    """
    try:
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                offset = 0
            file.seek(offset)
            data = file.read() if max_bytes is None else file.read(max_bytes) + file.readline()
    except OSError:
        return [], offset
    complete = data.rfind(b"\n") + 1
    events = [event for line in data[:complete].split(b"\n") if line and (event := decode(line)) is not None]
    return events, offset + complete


def replay(events: Iterable[Event]) -> list[Event]:
    """The events that count: a `start` takes back every step, eval and checkpoint after its `resumed_from`."""
    kept: list[Event] = []
    for event in events:
        if event["k"] == "start":
            since = resumed_from(event)
            kept = [
                e for e in kept if e["k"] not in ("step", "eval", "checkpoint") or number(e.get("step"), 0) <= since
            ]
        kept.append(event)
    return kept


def resumed_from(start: Event) -> float:
    """The step a `start` event goes on from; 0 where it begins anew."""
    return number(start.get("resumed_from"), 0)


def number(value: Any, default: float = math.nan) -> float:
    """`value` if it is a number, else `default` (readers trust no field)."""
    kind = type(value)
    return value if kind is float or kind is int else default


def _to_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(k): _to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_to_json(v) for v in value]
    try:
        value = float(value)
    except (TypeError, ValueError):
        return str(value)
    return value if math.isfinite(value) else str(value)


def _from_json(value: Any) -> Any:
    if isinstance(value, str):
        return _SPECIAL.get(value, value)
    if isinstance(value, dict):
        return {k: _from_json(v) for k, v in value.items()}
    return value


def _last_byte(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            return file.read(1)
    except FileNotFoundError:
        return b""
