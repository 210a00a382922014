"""What a run's log says so far: one reduction of its events for `tq runs`, `tq plot` and the dashboard alike.

`follow = Follower(run); state = follow.poll()` reads only what was appended since the last call and returns an
immutable `RunState`. Standard library only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tq import events
from tq.events import Event, number

# More points than any terminal has columns; beyond it neighbours are averaged, so a week's log stays small.
MAX_POINTS = 4096


class Point(NamedTuple):
    """Mean of `n` neighbouring step events; `step` is the last of them."""

    step: float
    epoch: float
    loss: float
    acc: float
    lr: float
    img_s: float
    flip_rate: float
    n: int = 1


_STEP_FIELDS = Point._fields[:-1]


class Eval(NamedTuple):
    """One evaluation; acc in percent."""

    step: float
    epoch: float
    split: str
    loss: float
    acc: float


class Alert(NamedTuple):
    """A message of the trainer. level: info, warning or error."""

    t: float
    level: str
    title: str
    text: str


@dataclass(frozen=True)
class RunState:
    """A snapshot of one run's log. Numbers that are not known (yet) are NaN or 0."""

    epochs: int = 0
    steps_per_epoch: int = 0
    step: int = 0
    epoch: int = 0
    loss: float = math.nan
    acc: float = math.nan
    lr: float = math.nan
    img_s: float = math.nan
    flip_rate: float = math.nan
    phase: str = ""
    phase_t: float = 0.0
    """when the phase began, unix seconds"""
    stage: str = ""
    """float or train: what the steps train at present"""
    best_acc: float = math.nan
    """best evaluation of this stage, percent; float epochs do not count once the quantized ones have begun"""
    last_acc: float = math.nan
    float_bytes: float = 0
    packed_bytes: float = 0
    layers: dict[str, float] = field(default_factory=dict)
    """bits by layer name"""
    sys: dict[str, Any] = field(default_factory=dict)
    """the last `sys` event's fields"""
    checkpoint_step: int = 0
    resumed_from: int = 0
    started: float = 0.0
    updated: float = 0.0
    """unix seconds of the first and the last event"""
    eta_s: float = math.nan
    end: str = ""
    """"" while none was seen, else ok, error or stopped"""
    error: str = ""
    traceback: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    evals: tuple[Eval, ...] = ()
    alerts: tuple[Alert, ...] = ()

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """0 to 1; NaN where the log does not say how long the run is."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else math.nan

    @property
    def ratio(self) -> float:
        """Float size over packed size; NaN before there is one."""
        return self.float_bytes / self.packed_bytes if self.packed_bytes else math.nan


class History:
    """Reduces events, in order, to a RunState."""

    def __init__(self) -> None:
        # RunState's fields under construction; a dict, because a frozen dataclass per event would be slow.
        self._now: dict[str, Any] = vars(RunState()).copy()
        self._points: list[Point] = []
        self._stride = 1.0
        self._evals: list[tuple[str, Eval]] = []
        self._alerts: deque[Alert] = deque(maxlen=200)
        # (t, step) of the last two minutes or so: what the time still to go is judged from.
        self._pace: deque[tuple[float, float]] = deque(maxlen=600)

    def feed(self, new: Iterable[Event]) -> None:
        """Take in events. Unknown kinds are ignored; a field that is missing or of a wrong type reads as NaN or 0."""
        for event in new:
            t = event["t"]
            self._now["started"] = self._now["started"] or t
            self._now["updated"] = max(t, self._now["updated"])
            take = getattr(self, "_on_" + event["k"], None)
            if take is not None:
                take(event)

    def snapshot(self) -> RunState:
        """The state so far, immutable."""
        best, last = math.nan, math.nan
        for stage, one in self._evals:
            if stage == self._now["stage"] and one.split != "train" and math.isfinite(one.acc):
                best, last = max(one.acc, best) if best == best else one.acc, one.acc
        own = {"best_acc": best, "last_acc": last, "eta_s": self._eta(), "points": tuple(self._points)}
        evals = tuple(one for _, one in self._evals)
        return RunState(**{**self._now, **own, "evals": evals, "alerts": tuple(self._alerts)})

    def _set(self, **fields: Any) -> None:
        self._now.update(fields)

    def _on_start(self, event: Event) -> None:
        since = int(number(events.resumed_from(event), 0))
        # Points from before the checkpoint stay; what the run did after it is being done again.
        self._points = [p for p in self._points if p.step <= since]
        self._evals = [(s, e) for s, e in self._evals if e.step <= since]
        self._pace.clear()
        last = self._points[-1] if self._points else None
        self._set(
            epochs=_int(event, "epochs") or self._now["epochs"],
            steps_per_epoch=_int(event, "steps_per_epoch") or self._now["steps_per_epoch"],
            resumed_from=since,
            step=since,
            epoch=int(last.epoch) if last else 0,
            phase="",
            phase_t=event["t"],
            end="",
            error="",
            traceback="",
            summary={},
        )

    def _on_phase(self, event: Event) -> None:
        name = str(event.get("name", ""))
        if name == "compile":
            self._pace.clear()
        self._set(phase=name, phase_t=event["t"], stage=name if name in ("float", "train") else self._now["stage"])

    def _on_step(self, event: Event) -> None:
        get = event.get
        point = Point._make([*[number(get(key)) for key in _STEP_FIELDS], 1])
        if not math.isfinite(point.step):
            return
        self._add(point)
        self._pace.append((event["t"], point.step))
        self._set(
            step=int(point.step),
            epoch=_int(event, "epoch") or self._now["epoch"],
            loss=point.loss,
            acc=point.acc,
            lr=point.lr,
            img_s=point.img_s,
            flip_rate=point.flip_rate,
        )

    def _on_eval(self, event: Event) -> None:
        one = Eval(
            step=number(event.get("step"), self._now["step"]),
            epoch=number(event.get("epoch"), self._now["epoch"]),
            split=str(event.get("split", "test")),
            loss=number(event.get("loss")),
            acc=number(event.get("acc")),
        )
        self._evals.append((self._now["stage"], one))

    def _on_size(self, event: Event) -> None:
        layers = event.get("layers")
        self._set(
            float_bytes=number(event.get("float_bytes"), 0),
            packed_bytes=number(event.get("packed_bytes"), 0),
            layers=dict(layers) if isinstance(layers, dict) else {},
        )

    def _on_sys(self, event: Event) -> None:
        self._set(sys={k: v for k, v in event.items() if k not in ("t", "k")})

    def _on_checkpoint(self, event: Event) -> None:
        self._set(checkpoint_step=_int(event, "step"))

    def _on_alert(self, event: Event) -> None:
        level, title, text = (str(event.get(key, "")) for key in ("level", "title", "text"))
        self._alerts.append(Alert(event["t"], level, title, text))

    def _on_end(self, event: Event) -> None:
        summary = event.get("summary")
        self._set(
            end=str(event.get("status") or "error"),
            error=str(event.get("error") or ""),
            traceback=str(event.get("traceback") or ""),
            summary=dict(summary) if isinstance(summary, dict) else {},
        )

    def _add(self, point: Point) -> None:
        last = self._points[-1] if self._points else None
        if last and last.step // self._stride == point.step // self._stride and self._stride > 1:
            self._points[-1] = _mean(last, point)
            return
        self._points.append(point)
        if len(self._points) > MAX_POINTS:
            # Equal stretches of steps, not equal counts of points, so that old and new keep the same resolution.
            self._stride = max(2 * self._stride, 2 * (point.step - self._points[0].step) / MAX_POINTS)
            merged: list[Point] = []
            for p in self._points:
                if merged and merged[-1].step // self._stride == p.step // self._stride:
                    merged[-1] = _mean(merged[-1], p)
                else:
                    merged.append(p)
            self._points = merged

    def _eta(self) -> float:
        total = self._now["epochs"] * self._now["steps_per_epoch"]
        if self._now["end"] or len(self._pace) < 2 or not total:
            return math.nan
        (t0, s0), (t1, s1) = self._pace[0], self._pace[-1]
        return max(0.0, total - s1) * (t1 - t0) / (s1 - s0) if s1 > s0 and t1 > t0 else math.nan


class Follower:
    """Follows one run's log from wherever it was last read."""

    def __init__(self, run: Path) -> None:
        self.path = Path(run) / "events.jsonl"
        self._offset = 0
        self._more = True
        self._history = History()
        self._state = RunState()

    @property
    def share(self) -> float:
        """How much of the log has been read: 1 once its end was reached, before that less."""
        if not self._more:
            return 1.0
        try:
            return min(0.999, self._offset / max(1, self.path.stat().st_size))
        except OSError:
            return 0.0

    def poll(self, max_bytes: int | None = None) -> RunState:
        """Read what is new, or about `max_bytes` of it. Returns the very same object where nothing is."""
        new, offset = events.tail(self.path, self._offset, max_bytes)
        if offset < self._offset:
            # The file was replaced by a shorter one, which tail has read from its start.
            self._history = History()
            self._offset = 0
        # A torn last line is no reason to read on.
        self._more = max_bytes is not None and offset - self._offset >= max_bytes
        self._offset = offset
        if new:
            self._history.feed(new)
            self._state = self._history.snapshot()
        return self._state


def read(run: Path) -> RunState:
    """The state of a run, read once from the start of its log."""
    return Follower(run).poll()


def binned(xs: Sequence[float], ys: Sequence[float], bins: int) -> tuple[list[float], list[float]]:
    """Mean of `ys` in `bins` equal stretches of `xs` (ascending); empty ones are left out, NaN in one makes it NaN."""
    if len(xs) <= bins:
        return list(xs), list(ys)
    low, width = xs[0], (xs[-1] - xs[0]) / bins or 1.0
    sums: dict[int, tuple[float, float, int]] = {}
    for x, y in zip(xs, ys, strict=True):
        index = min(bins - 1, int((x - low) / width))
        sx, sy, n = sums.get(index, (0.0, 0.0, 0))
        sums[index] = (sx + x, sy + y, n + 1)
    return [sx / n for sx, _, n in sums.values()], [sy / n for _, sy, n in sums.values()]


def _mean(a: Point, b: Point) -> Point:
    n = a.n + b.n
    # A NaN loss stays visible; an absent field (NaN in both) stays absent.
    means = [(x * a.n + y * b.n) / n for x, y in zip(a[1:-1], b[1:-1], strict=True)]
    return Point._make([b.step, b.epoch, *means[1:], n])


def _int(event: Event, key: str) -> int:
    value = number(event.get(key), 0)
    return int(value) if math.isfinite(value) else 0
