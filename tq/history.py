"""What a run's log says so far: one reduction of its events for `tq runs`, `tq plot` and the dashboard alike.

`follow = Follower(run); state = follow.poll()` reads only what was appended since the last call and returns an
immutable `RunState`. Standard library only.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tq import events
from tq.events import Event, number
from tq.run_state import STATES, STEP_FIELDS, Alert, Eval, LayerFigures, Point
from tq.run_state import RunState as RunState

# More points than any terminal has columns; beyond it neighbours are averaged, so a week's log stays small.
MAX_POINTS = 4096


class History:
    """Reduces events, in order, to a RunState."""

    def __init__(self) -> None:
        # RunState's fields under construction; a dict, because a frozen dataclass per event would be slow.
        self._now: dict[str, Any] = vars(RunState()).copy()
        self._points: list[Point] = []
        self._stride = 1.0
        self._evals: list[Eval] = []
        self._alerts: deque[Alert] = deque(maxlen=200)
        # (t, step) of the last two minutes or so: what the time still to go is judged from.
        self._pace: deque[tuple[float, float]] = deque(maxlen=600)
        # Time of the event before this one, and what lay between a trainer's last word and the next one's first.
        self._before = 0.0
        self._paused_s = 0.0

    def feed(self, new: Iterable[Event]) -> None:
        """Take in events. Unknown kinds are ignored; a field that is missing or of a wrong type reads as NaN or 0."""
        for event in new:
            t = event["t"]
            self._before = self._now["updated"]
            self._now["started"] = self._now["started"] or t
            self._now["updated"] = max(t, self._now["updated"])
            take = getattr(self, "_on_" + event["k"], None)
            if take is not None:
                take(event)

    def snapshot(self) -> RunState:
        """The state so far, immutable."""
        best, last = math.nan, math.nan
        for one in self._evals:
            if one.stage == self._now["stage"] and one.split != "train" and math.isfinite(one.acc):
                best, last = max(one.acc, best) if best == best else one.acc, one.acc
        own = {"best_acc": best, "last_acc": last, "eta_s": self._eta(), "points": tuple(self._points)}
        copies = {"evals": tuple(self._evals), "alerts": tuple(self._alerts), "phases": dict(self._now["phases"])}
        return RunState(**{**self._now, **own, **copies})

    def _set(self, **fields: Any) -> None:
        self._now.update(fields)

    def _end_phase(self, t: float) -> None:
        """Count the phase under way, up to `t`."""
        phase, since = self._now["phase"], self._now["phase_t"]
        if phase and not self._now["end"]:
            self._now["phases"][phase] = self._now["phases"].get(phase, 0.0) + max(0.0, t - since)

    def _on_trainer(self, t: float) -> None:
        """A trainer says its first word: nothing happened since the one before said its last."""
        self._end_phase(self._before)
        self._paused_s += max(0.0, t - self._before) if self._before else 0.0

    def _worked_s(self, t: float) -> float:
        return max(0.0, t - self._now["started"] - self._paused_s)

    def _on_start(self, event: Event) -> None:
        # The trainer reads its data before it knows how many steps there will be.
        if self._now["phase"] == "data" and not self._now["end"]:
            self._end_phase(event["t"])
        else:
            self._on_trainer(event["t"])
        since = int(number(events.resumed_from(event), 0))
        # Points from before the checkpoint stay; what the run did after it is being done again.
        self._points = [p for p in self._points if p.step <= since]
        self._evals = [e for e in self._evals if e.step <= since]
        self._pace.clear()
        last = self._points[-1] if self._points else None
        self._set(
            epochs=_int(event, "epochs") or self._now["epochs"],
            steps_per_epoch=_int(event, "steps_per_epoch") or self._now["steps_per_epoch"],
            resumed_from=since,
            nan_step=self._now["nan_step"] if self._now["nan_step"] <= since else 0,
            step=since,
            epoch=int(last.epoch) if last and math.isfinite(last.epoch) else 0,
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
        if name == "data":
            self._on_trainer(event["t"])
            self._set(end="")
        else:
            self._end_phase(event["t"])
        stage = str(event.get("stage", name)) if name in ("float", "train") else self._now["stage"]
        self._set(phase=name, phase_t=event["t"], stage=stage)

    def _on_step(self, event: Event) -> None:
        get = event.get
        point = Point._make([*[number(get(key)) for key in STEP_FIELDS], self._worked_s(event["t"]), 1])
        if not math.isfinite(point.step):
            return
        self._add(point)
        if "loss" in event and not math.isfinite(point.loss) and not self._now["nan_step"]:
            self._set(nan_step=int(point.step))
        self._pace.append((event["t"], point.step))
        self._set(
            step=int(point.step),
            epoch=_int(event, "epoch") or self._now["epoch"],
            loss=point.loss,
            acc=point.acc,
            lr=point.lr,
            img_s=point.img_s,
            flip_rate=point.flip_rate,
            p_min=point.p_min,
            p_mean=point.p_mean,
            p_max=point.p_max,
            portion=point.portion,
        )

    def _on_eval(self, event: Event) -> None:
        step = number(event.get("step"), self._now["step"])
        one = Eval(
            step=step,
            epoch=number(event.get("epoch"), self._now["epoch"]),
            split=str(event.get("split", "test")),
            loss=number(event.get("loss")),
            acc=number(event.get("acc")),
            **self._trained(step),
            t=self._worked_s(event["t"]),
            stage=self._now["stage"],
        )
        self._evals.append(one)

    def _trained(self, step: float) -> dict[str, float]:
        """Eval's account of the training from the evaluation before `step` on."""
        begin = next((e.step for e in reversed(self._evals) if e.step < step), 0.0)
        since = list(itertools.takewhile(lambda p: p.step > begin, reversed(self._points)))[::-1]
        # a point speaks for the steps since the one before it: reports come by the clock, the steps do not
        steps = [b - a for a, b in itertools.pairwise([begin, *(p.step for p in since)])]
        total = sum(steps)
        if total <= 0:
            return dict.fromkeys(("train_loss", "train_acc", *STATES), math.nan)
        loss, acc = (sum(getattr(p, key) * n for p, n in zip(since, steps, strict=True)) for key in ("loss", "acc"))
        states = {key: getattr(since[-1], key) for key in STATES}
        return {"train_loss": loss / total, "train_acc": acc / total, **states}

    def _on_size(self, event: Event) -> None:
        layers = event.get("layers")
        self._set(
            float_bytes=number(event.get("float_bytes"), 0),
            packed_bytes=number(event.get("packed_bytes"), 0),
            layers=dict(layers) if isinstance(layers, dict) else {},
        )

    def _on_layers(self, event: Event) -> None:
        layers = event.get("layers")
        if not isinstance(layers, dict):
            return
        figures = {
            name: LayerFigures(*(number(values.get(key)) for key in LayerFigures._fields))
            for name, values in layers.items()
            if isinstance(values, dict)
        }
        self._set(layer_figures=figures, figures_step=_int(event, "step") or self._now["step"])

    def _on_sys(self, event: Event) -> None:
        self._set(sys={k: v for k, v in event.items() if k not in ("t", "k")})

    def _on_checkpoint(self, event: Event) -> None:
        self._set(checkpoint_step=_int(event, "step"))

    def _on_alert(self, event: Event) -> None:
        level, title, text = (str(event.get(key, "")) for key in ("level", "title", "text"))
        self._alerts.append(Alert(event["t"], level, title, text))

    def _on_end(self, event: Event) -> None:
        summary = event.get("summary")
        self._end_phase(event["t"])
        self._set(
            end=str(event.get("status") or "error"),
            error=str(event.get("error") or ""),
            traceback=str(event.get("traceback") or ""),
            summary=dict(summary) if isinstance(summary, dict) else {},
        )

    def _add(self, point: Point) -> None:
        last = self._points[-1] if self._points else None
        if last and last.step // self._stride == point.step // self._stride and self._stride > 1:
            self._points[-1] = _joined(last, point)
            return
        self._points.append(point)
        if len(self._points) > MAX_POINTS:
            # Equal stretches of steps, not equal counts of points, so that old and new keep the same resolution.
            self._stride = max(2 * self._stride, 2 * (point.step - self._points[0].step) / MAX_POINTS)
            merged: list[Point] = []
            for p in self._points:
                if merged and merged[-1].step // self._stride == p.step // self._stride:
                    merged[-1] = _joined(merged[-1], p)
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


def _joined(a: Point, b: Point) -> Point:
    n = a.n + b.n
    u, v = a.n / n, b.n / n
    # A NaN loss stays visible; an absent field (NaN in both) stays absent.
    return Point(
        b.step,
        b.epoch,
        u * a.loss + v * b.loss,
        u * a.acc + v * b.acc,
        b.lr,
        u * a.img_s + v * b.img_s,
        u * a.flip_rate + v * b.flip_rate,
        b.p_min,
        b.p_mean,
        b.p_max,
        b.portion,
        b.t,
        n,
    )


def _int(event: Event, key: str) -> int:
    value = number(event.get(key), 0)
    return int(value) if math.isfinite(value) else 0
