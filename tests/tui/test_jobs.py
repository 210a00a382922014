"""Commands in the background: their files and their lock tell how they stand; and their results in words."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tui import jobs, results
from tui.jobs import Job
from tui.queue_screen import headline

RESULTS = json.loads(Path(__file__).with_name("results.json").read_text())
BENCH, INSPECT, QUANTIZE = (RESULTS[command] for command in ("bench", "inspect", "quantize"))
WORKER = [sys.executable, str(Path(__file__).with_name("worker.py"))]


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., tuple[Job, threading.Event]]:
    """Starts the stand-in; gives the job and an event for its end."""

    def run(*argv: str) -> tuple[Job, threading.Event]:
        over = threading.Event()
        job = jobs.start(tmp_path, argv, title="net 3f2c", run="r", command=WORKER, ended=lambda _: over.set())
        return job, over

    return run


def wait_for(path: Path, text: str) -> Job:
    for _ in range(1000):
        job = jobs.read(path)
        if text in "\n".join(job.log):
            return job
        time.sleep(0.01)
    raise AssertionError(job)


def test_a_job_is_working_until_its_process_lets_go_of_the_lock(tmp_path: Path, start: Callable[..., tuple]) -> None:
    job, over = start("bench", str(tmp_path / "m"))
    job = wait_for(job.path, "float accuracy")
    assert (job.state, job.command, job.title, job.run) == ("working", "bench", "net 3f2c", "r")
    assert job.line == "float accuracy on 359 test images ..."
    assert job.pid is not None
    assert job.seconds != job.seconds
    with pytest.raises(ValueError, match="still at work"):
        jobs.remove(job)
    (tmp_path / "m.go").touch()
    assert over.wait(20)
    job = jobs.read(job.path)
    assert (job.state, job.pid, job.result) == ("done", None, BENCH)
    assert job.seconds >= 0
    assert job.file == str(Path.cwd() / "model.safetensors")
    with pytest.raises(ValueError, match="has ended already"):
        jobs.stop(job)
    assert jobs.all_jobs(tmp_path) == [job]
    jobs.remove(job)
    assert jobs.all_jobs(tmp_path) == []


def test_a_job_is_interrupted_as_by_ctrl_c(tmp_path: Path, start: Callable[..., tuple]) -> None:
    job, over = start("bench", str(tmp_path / "m"))
    jobs.stop(wait_for(job.path, "float accuracy"))
    assert over.wait(20)
    assert jobs.read(job.path).state == "stopped"


def test_a_job_that_fails_keeps_its_last_words(start: Callable[..., tuple]) -> None:
    job, over = start("quantize", "wrong")
    assert over.wait(20)
    job = jobs.read(job.path)
    assert (job.state, job.line) == ("failed", "tq: expected a model file, got [bold]wrong[/]")
    assert job.result == {}


def test_damaged_jobs_are_left_out(tmp_path: Path, start: Callable[..., tuple]) -> None:
    job, over = start("inspect", "x")
    assert over.wait(20)
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"argv": 3, "started": 1, "pid": 1}')):
        (tmp_path / "jobs" / name).mkdir()
        (tmp_path / "jobs" / name / "job.json").write_text(text)
    (tmp_path / "jobs" / "d").mkdir()
    assert [j.id for j in jobs.all_jobs(tmp_path)] == [job.id]
    assert jobs.all_jobs(tmp_path / "none") == []
    (job.path / "result").write_text("torn {")
    assert jobs.read(job.path).state == "failed"


def job_of(command: str, result: dict) -> Job:
    return Job(Path("runs/jobs/x"), command, (command, "m"), "net", state="done", result=result)


@pytest.mark.parametrize("width", [40, 76, 196])
@pytest.mark.parametrize(("command", "found"), [("bench", BENCH), ("quantize", QUANTIZE), ("inspect", INSPECT)])
def test_results_fit_and_name_what_counts(command: str, found: dict, width: int) -> None:
    text = results.result(job_of(command, found), width).plain
    figures = {
        "bench": ["packed fused is fastest: 2.00x, 1.00 ms", "not run: [no] such module", "Test CPU"],
        "quantize": ["95.50%", "-0.50", "7.4x smaller", "w8a8", "left float: fc", "out-w4a8.safetensors"],
        "inspect": ["21,696 bytes", "17.5x smaller", "accuracy 95.28% on digits", "86.7%"],
    }[command]
    for figure in figures:
        assert figure in text
    if width == 76:
        # sentences may be longer and are wrapped; tables may not
        assert all(len(line) <= width for line in text.splitlines() if "█" in line)


def test_bars_of_a_bench_are_to_one_scale() -> None:
    lines = results.bench(BENCH, 80).plain.splitlines()
    lengths = [line.count("█") for line in lines if "images" not in line and "█" in line]
    assert lengths[1] == 2 * lengths[0] > 0


@pytest.mark.parametrize("command", ["bench", "quantize", "inspect"])
@pytest.mark.parametrize("found", [{"a": 1}, {"rows": 3, "layers": [1, {}]}, {"rows": [{}], "bytes": "x", "model": []}])
def test_odd_results_are_shown_not_fatal(command: str, found: dict) -> None:
    assert results.result(job_of(command, found), 60).plain
    assert headline(job_of(command, found))


@pytest.mark.parametrize(
    ("command", "found", "text"),
    [
        ("bench", BENCH, "2.00x compiled float at batch 1"),
        ("quantize", QUANTIZE, "95.50%, 51.3 kB, 7.4x smaller"),
        ("inspect", INSPECT, "21.7 kB, 17.5x smaller"),
    ],
)
def test_a_result_in_a_few_words(command: str, found: dict, text: str) -> None:
    assert headline(job_of(command, found)) == text
