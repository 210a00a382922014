"""tq.events: what the writer guarantees and what the reader forgives."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tq import events, history


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def kinds(path: Path) -> list[str]:
    return [event["k"] for event in events.tail(path)[0]]


def test_emit_writes_one_json_object_a_line(path: Path) -> None:
    log = events.EventLog(path, clock=Clock())
    log.emit("start", v=1, metrics={"acc": {"goal": "max"}}, resumed_from=None)
    log.emit("phase", name="compilé")
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"t": 1000.0, "k": "start", "v": 1, "metrics": {"acc": {"goal": "max"}}, "resumed_from": None},
        {"t": 1000.0, "k": "phase", "name": "compilé"},
    ]


def test_not_a_number_survives_the_round_trip_and_text_stays_text(path: Path) -> None:
    events.EventLog(path).emit("eval", loss=math.nan, acc=-math.inf, split="nan", summary={"a": math.inf})
    assert '"loss":"nan"' in path.read_text()
    assert '"acc":"-inf"' in path.read_text()
    (event,), _ = events.tail(path)
    assert math.isnan(event["loss"])
    assert event["acc"] == -math.inf
    assert event["split"] == "nan"
    assert event["summary"] == {"a": math.inf}


def test_scalars_of_other_libraries_become_floats(path: Path) -> None:
    class Scalar:
        def __float__(self) -> float:
            return 0.5

    events.EventLog(path).emit("step", loss=Scalar(), other=Path("x"), items=(1, 2))
    (event,), _ = events.tail(path)
    assert (event["loss"], event["other"], event["items"]) == (0.5, "x", [1, 2])


def test_step_is_throttled_and_the_last_one_is_never_lost(path: Path) -> None:
    clock = Clock()
    log = events.EventLog(path, clock=clock)
    for step in range(1, 11):
        log.step(step=step)
        clock.now += 0.0625
    assert [e["step"] for e in events.tail(path)[0]] == [1, 5, 9]
    log.emit("eval", acc=50)
    assert kinds(path) == ["step"] * 4 + ["eval"]
    assert events.tail(path)[0][3]["step"] == 10
    log.step(step=11)
    log.step(step=12)
    log.close()
    assert [e["step"] for e in events.tail(path)[0] if e["k"] == "step"][-2:] == [10, 12]


def test_step_goes_on_when_the_clock_is_set_back(path: Path) -> None:
    clock = Clock()
    log = events.EventLog(path, clock=clock)
    log.step(step=1)
    clock.now -= 3600
    log.step(step=2)
    assert len(kinds(path)) == 2


def test_tail_reads_only_what_is_new_and_leaves_a_torn_line(path: Path) -> None:
    path.write_bytes(b'{"t":1,"k":"a"}\n{"t":2,"k":"b"}\n{"t":3,"k"')
    first, offset = events.tail(path, 0)
    assert [e["k"] for e in first] == ["a", "b"]
    assert events.tail(path, offset) == ([], offset)
    with path.open("ab") as file:
        file.write(b':"c"}\n')
    assert [e["k"] for e in events.tail(path, offset)[0]] == ["c"]


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[1]", b'{"k":"x"}', b'{"t":1,"k":3}', b"\xff\xfe", b"\x00" * 9, b'"text"']
)
def test_tail_skips_what_is_no_event(path: Path, line: bytes) -> None:
    path.write_bytes(b'{"t":1,"k":"a"}\n' + line + b'\n{"t":2,"k":"b","new_field":[1]}\n')
    assert kinds(path) == ["a", "b"]


def test_tail_of_a_missing_or_replaced_file(path: Path) -> None:
    assert events.tail(path, 7) == ([], 7)
    path.write_bytes(b'{"t":1,"k":"a"}\n')
    assert events.tail(path, 999) == ([{"t": 1, "k": "a"}], 16)


def test_a_reopened_log_seals_the_torn_line(path: Path) -> None:
    path.write_bytes(b'{"t":1,"k":"a"}\n{"t":2,"k":"tor')
    events.EventLog(path).emit("start", resumed_from=0)
    assert kinds(path) == ["a", "start"]
    events.EventLog(path).emit("b")
    assert b"\n\n" not in path.read_bytes()


def test_a_full_disk_warns_once_and_does_not_raise(path: Path) -> None:
    script = """
import resource, sys
from tq.events import EventLog
log = EventLog(sys.argv[1])
log.emit("start", v=1)
size = log.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
log.emit("lost", text="x" * 100)
log.emit("lost", text="x" * 100)
log.sync()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.emit("after")
log.close()
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stderr.count("tq: cannot write") == 1
    # The space is back: the half line that fitted is sealed, later events are whole.
    assert kinds(path) == ["start", "after"]


def test_a_log_that_cannot_be_opened_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = events.EventLog(tmp_path / "missing" / "events.jsonl")
    log.emit("start")
    log.step(step=1)
    log.close()
    assert capsys.readouterr().err.count("cannot write") == 1


def test_lines_of_threads_and_processes_do_not_mix(path: Path) -> None:
    def write(log: events.EventLog) -> None:
        for _ in range(200):
            log.emit("alert", text="x" * 300)

    threads = [threading.Thread(target=write, args=(events.EventLog(path),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kinds(path)) == 800


def test_replay_takes_back_what_is_done_again() -> None:
    log = [
        {"t": 0, "k": "start"},
        *({"t": s, "k": "step", "step": s} for s in range(1, 6)),
        {"t": 6, "k": "eval", "step": 5},
        {"t": 7, "k": "start", "resumed_from": 3},
        {"t": 8, "k": "step", "step": 4},
    ]
    assert [(e["k"], e.get("step")) for e in events.replay(log) if e["k"] != "start"] == [
        ("step", s) for s in (1, 2, 3, 4)
    ]


def test_history_reduces_a_resumed_run(path: Path) -> None:
    clock = Clock()
    log = events.EventLog(path, clock=clock)
    log.emit("start", epochs=2, steps_per_epoch=10)
    follow = history.Follower(path.parent)
    assert (follow.poll().total_steps, follow.poll() is follow.poll()) == (20, True)
    log.emit("phase", name="float")
    log.emit("eval", step=0, epoch=0, split="test", loss=1.0, acc=99.0)
    log.emit("phase", name="train")
    for step in range(1, 16):
        clock.now += 1
        log.step(step=step, epoch=1 + step // 11, loss=2.0 / step, acc=50, lr=0.1, img_s=100)
    log.emit("eval", step=15, epoch=2, split="test", loss=0.5, acc=88.0)
    log.emit("end", status="error", error="boom", traceback="Traceback ...")
    state = follow.poll()
    assert (state.step, state.best_acc, state.end, state.error) == (15, 88.0, "error", "boom")
    log.emit("start", epochs=2, steps_per_epoch=10, resumed_from=10)
    state = follow.poll()
    assert (state.step, state.end, state.points[-1].step, state.resumed_from) == (10, "", 10, 10)
    assert math.isnan(state.best_acc), (
        "an evaluation after the checkpoint is taken back, the float one is of another stage"
    )
    clock.now += 1
    log.step(step=11, loss=math.nan)
    clock.now += 2
    log.step(step=12, loss=1.0)
    state = follow.poll()
    assert (state.eta_s, state.progress) == (16.0, 0.6)
    assert math.isnan(state.points[-2].loss)


def test_history_of_a_long_log_keeps_the_shape_of_the_curve() -> None:
    one = history.History()
    n = 50_000
    one.feed({"t": float(i), "k": "step", "step": i + 1, "loss": float(i + 1), "lr": 1.0} for i in range(n))
    points = one.snapshot().points
    assert len(points) <= history.MAX_POINTS
    assert sum(p.n for p in points) == n
    widths = [p.n for p in points[1:-1]]
    assert max(widths) <= 2 * min(widths), "old and new points have the same resolution"
    assert all(abs(p.loss - p.step) <= max(widths) for p in points)
    assert points[-1].step == n


@pytest.mark.parametrize(
    "event",
    [{"k": "step"}, {"k": "step", "step": "x"}, {"k": "eval", "acc": None}, {"k": "size", "layers": 3}, {"k": "new"}],
)
def test_history_trusts_no_field(event: dict) -> None:
    one = history.History()
    one.feed([{"t": 1.0, **event}, {"t": 2.0, "k": "start", "epochs": math.nan}, {"t": 3.0, "k": "end"}])
    assert one.snapshot().end == "error"


def test_binned_means_and_gaps() -> None:
    xs, ys = history.binned(range(10), [0.0, 0, 1, 1, math.nan, 2, 3, 3, 4, 4], 5)
    assert xs == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert math.isnan(ys[2])
    assert [y for y in ys if y == y] == [0, 1, 3, 4]
    assert history.binned([1, 2], [3, 4], 5) == ([1, 2], [3, 4])
