"""tq.runs with real processes: who is alive, who may write, and what a dead trainer leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from tq import events, history, runs

# A trainer in small: it says on stdout when it is ready and then waits for its stdin to close.
TRAINER = """
import os, signal, sys
from pathlib import Path
from tq import runs
path = Path(sys.argv[1])
run = runs.reopen(path) if (path / "run.json").exists() else runs.create(
    path.parent, name="t", argv=sys.argv, config={}, seed=0, versions={}, device="cpu", path=path)
def on_term(*_):
    run.log.emit("end", status="stopped")
    run.close()
    os._exit(0)
signal.signal(signal.SIGTERM, on_term)
run.log.emit("start", epochs=1, steps_per_epoch=10)
run.log.emit("phase", name="train")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "20260101-000000-t-0000"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a trainer and waits for its first line; none outlives the test."""
    children: list[subprocess.Popen[str]] = []

    def run(path: Path, script: str = TRAINER) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        assert readline(child.stdout) == "ready"
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


def readline(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


def make(root: Path, name: str = "resnet20-w1a2") -> runs.Run:
    return runs.create(
        root, name=name, argv=["tq", "train"], config={"lr": 0.1}, seed=3, versions={"torch": "2"}, device="cpu"
    )


def test_create_writes_the_manifest_before_any_event(tmp_path: Path) -> None:
    with make(tmp_path / "runs") as run:
        assert not list(run.path.glob("*.tmp"))
        record = run.manifest
        assert (record["config"], record["seed"], record["id"]) == ({"lr": 0.1}, 3, run.id)
        assert record["versions"].keys() == {"python", "torch"}
        assert record["host"]
        assert "git" in record
        date, clock, *name, tag = run.id.split("-")
        assert (len(date), len(clock), name, len(tag)) == (8, 6, ["resnet20", "w1a2"], 4)
        assert (run.path / "events.jsonl").read_bytes() == b""


def test_create_refuses_a_directory_that_holds_a_run(tmp_path: Path) -> None:
    with make(tmp_path) as run, pytest.raises(ValueError, match="already holds a run"):
        runs.create(tmp_path, name="x", argv=[], config={}, seed=0, versions={}, device="cpu", path=run.path)


def test_a_name_cannot_leave_the_root(tmp_path: Path) -> None:
    with make(tmp_path / "runs", name="../../my.pkg:net/w1") as run:
        assert run.path.parent == tmp_path / "runs"
        assert run.id.split("-", 2)[2].startswith("my.pkg-net-w1-")


def test_the_holder_is_live_and_asking_does_not_drop_its_lock(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        for _ in range(3):
            assert (runs.status(run.path).state, runs.status(run.path).pid) == ("live", os.getpid())
        with pytest.raises(runs.RunBusy, match=str(os.getpid())):
            runs.reopen(run.path)
        ask = f"import pathlib, tq.runs; s = tq.runs.status(pathlib.Path({str(run.path)!r})); print(s.state, s.pid)"
        said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
        assert said.split() == ["live", str(os.getpid())]
    assert runs.status(run.path).state == "crashed"


def test_a_second_writer_is_refused_and_told_who_holds_the_run(
    path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    child = start(path)
    assert runs.status(path).word == "train"
    with pytest.raises(runs.RunBusy, match=rf"held by a trainer \(pid {child.pid}\)"):
        runs.reopen(path)
    with pytest.raises(runs.RunBusy):
        runs.resume(path)
    assert runs.status(path).pid == child.pid, "the attempt left the lock alone"


def test_sigkill_is_a_crash_even_before_anyone_waits_for_the_child(
    path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    child = start(path)
    assert runs.kill(path) == child.pid
    while (found := runs.status(path)).live:
        os.sched_yield()
    os.kill(child.pid, 0)  # Still a zombie: a pid check would say alive.
    assert (found.state, found.phase, found.pid, found.resumable) == ("crashed", "train", None, True)
    with pytest.raises(ValueError, match="not running"):
        runs.stop(path)


def test_stop_ends_gracefully_and_a_resumed_run_is_live_again(
    path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    child = start(path)
    assert runs.stop(path) == child.pid
    assert child.wait(20) == 0
    assert runs.status(path).state == "stopped"
    with runs.reopen(path) as run:
        assert runs.status(path).word == "starting", "live although the log still ends with its old end"
        run.log.emit("start", resumed_from=0)
        run.log.emit("phase", name="eval")
        assert runs.status(path).word == "eval"
        run.log.emit("end", status="ok")
        assert runs.status(path).state == "done"


def test_a_crashed_log_is_sealed_when_reopened(path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    child = start(path)
    runs.kill(path)
    child.wait(20)
    with (path / "events.jsonl").open("ab") as file:
        file.write(b'{"t":1,"k":"step","st')
    with runs.reopen(path) as run:
        run.log.emit("start", resumed_from=0)
    assert [e["k"] for e in events.tail(path / "events.jsonl")[0]] == ["start", "phase", "start"]


def test_a_forked_worker_does_not_keep_the_run_alive(path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    script = TRAINER.replace('print("ready", flush=True)', 'worker = os.fork()\nif worker: print("ready", flush=True)')
    child = start(path, script)
    child.kill()
    child.wait(20)
    # The worker still waits for the pipe that this process holds open.
    assert runs.status(path).state == "crashed"


@pytest.mark.parametrize(
    ("end", "state"), [("ok", "done"), ("error", "failed"), ("stopped", "stopped"), ("odd", "failed")]
)
def test_status_of_ended_runs(tmp_path: Path, end: str, state: str) -> None:
    with make(tmp_path) as run:
        run.log.emit("start", epochs=1)
        run.log.emit("end", status=end)
        run.log.emit("sys", cpu=3)
    assert runs.status(run.path).state == state


def test_status_words(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log.emit("phase", name="train")
        t = events.tail(run.log.path)[0][-1]["t"]
        assert runs.status(run.path, now=t + 59).word == "train"
        assert runs.status(run.path, now=t + 100).word == "stalled 1m40"
        run.log.emit("phase", name="compile")
        assert runs.status(run.path, now=t + 100).word == "compile"
    lock = json.loads((run.path / "lock").read_text())
    (run.path / "lock").write_text(json.dumps({**lock, "host": "elsewhere"}))
    assert runs.status(run.path, now=t + 243).word.startswith("silent 4m0")
    with pytest.raises(ValueError, match="not running"):
        runs.stop(run.path)


def test_status_finds_the_phase_far_back(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log.emit("phase", name="train")
        for step in range(3000):
            run.log.emit("step", step=step, text="x" * 100)
        assert runs.status(run.path).phase == "train"


def test_a_directory_that_was_only_just_made_is_starting(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "out.log").touch()
    assert runs.status(path).state == "starting"
    assert runs.status(path, now=path.stat().st_mtime + 60).state == "crashed"
    assert runs.manifest(path) == {}
    assert history.read(path) == history.RunState()


def test_find_by_id_piece_path_and_last(tmp_path: Path) -> None:
    ids = ["20260101-000000-cnn-w1a2-aaaa", "20260102-000000-cnn-w4a8-bbbb", "20260102-000001-resnet20-w1a2-cccc"]
    for name in ids:
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.jsonl").touch()
    (tmp_path / "notes").mkdir()
    assert [p.name for p in runs.list_runs(tmp_path)] == ids[::-1]
    for text, want in [
        ("last", 2),
        ("bbbb", 1),
        ("20260101", 0),
        ("resnet20", 2),
        (ids[1], 1),
        (str(tmp_path / ids[0]), 0),
    ]:
        assert runs.find(tmp_path, text) == tmp_path / ids[want]
    with pytest.raises(ValueError, match="fits 2 runs"):
        runs.find(tmp_path, "20260102")
    with pytest.raises(ValueError, match=r"nearest: .*cnn-w4a8"):
        runs.find(tmp_path, "cnn-w4a9")
    for text in ("last", ""):
        with pytest.raises(ValueError, match="no runs in"):
            runs.find(tmp_path / "none", text)


def test_launch_detaches_and_returns_when_the_run_is_held(tmp_path: Path) -> None:
    # The dashboard's own trainer is "python -m tq"; here a script of the same contract stands in for it.
    script = TRAINER.replace("sys.argv[1]", "sys.argv[sys.argv.index('--run-dir') + 1]").replace(
        "sys.stdin.read()", "signal.pause()"
    )
    path = runs.launch(["train"], root=tmp_path / "runs", name="cnn-w1a2", command=[sys.executable, "-c", script])
    found = runs.status(path)
    assert found.state == "live"
    assert found.pid is not None
    assert path.parent == tmp_path / "runs"
    assert os.getsid(found.pid) == found.pid != os.getsid(0)
    os.kill(found.pid, signal.SIGKILL)
    # Nobody but the launcher's own thread waits for the child.
    while (state := runs.status(path).state) == "live":
        os.sched_yield()
    assert state == "crashed"


def test_launch_gives_the_last_words_of_a_trainer_that_dies(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('usage: ...'); sys.exit('error: unknown model x')"]
    with pytest.raises(ValueError, match="did not start: error: unknown model x"):
        runs.launch(["train"], root=tmp_path, command=command)
    assert runs.list_runs(tmp_path) == []


def test_resume_appends_to_the_output(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        (run.path / "out.log").write_text("before\n")
    with pytest.raises(ValueError, match="did not start: no checkpoint"):
        runs.resume(run.path, command=[sys.executable, "-c", "import sys; sys.exit('no checkpoint')"])
    assert runs.output_tail(run.path) == ["before", "no checkpoint"]


def test_output_tail_of_progress_lines(tmp_path: Path) -> None:
    (tmp_path / "out.log").write_bytes(b"a\r\n 10%\r 50%\r100%\nb\xff\n\n\x1b[31mred\n")
    assert runs.output_tail(tmp_path, 9) == ["a", "100%", "b\ufffd", "\x1b[31mred"]
    assert runs.output_tail(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (100, "1m40"), (3600, "1h00"), (7530, "2h05"), (273600, "3d04")]
)
def test_duration(seconds: float, text: str) -> None:
    assert runs.duration(seconds) == text


def test_these_modules_load_no_torch() -> None:
    heavy = "[m for m in ('torch', 'textual', 'numpy') if m in sys.modules]"
    ask = f"import sys, tq.events, tq.runs, tq.history, tq.config; print({heavy})"
    assert (
        subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
