"""Words and numbers: the parts of the dashboard that need no screen."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tq import events, query
from tq.byte_size import size_text
from tq.history import Follower, RunState
from tq.runs import Status
from tui import columns, comparison, poll, state, words
from tui.ascii import plain
from tui.poll import Poller
from tui.state import RunView, Snapshot
from tui.system import Probe

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (1, "1.00"), (0.0431, "0.0431"), (512.34, "512"), (12345, "12,345"), (1e-5, "1.0e-05"), (NAN, "-")],
)
def test_number(value: float, text: str) -> None:
    assert words.number(value) == text
    assert words.number(-math.inf) == "-inf"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (78_432, "78.4 kB"), (999_600, "1 MB"), (5e12, "5e+03 GB")]
)
def test_size(value: float, text: str) -> None:
    assert size_text(value) == text


def test_clean_leaves_text_and_takes_what_could_draw() -> None:
    assert words.clean("a\tb é 漢 [x]") == "a   b é 漢 [x]"
    assert (
        words.clean("\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link \x9b2J\x07\x00\x7f\x1bc")
        == "red  link 2J"
    )


def test_spark_is_as_wide_as_asked_and_scaled() -> None:
    assert words.spark([float(i) for i in range(100)], 8) == "▁▂▃▄▅▆▇█"
    assert words.spark([1.0], 8) == words.spark([NAN, NAN], 8) == ""
    assert words.spark([1.0, NAN, 1.0], 8) == "▁ ▁"


def test_poller_shows_the_newest_first_when_the_logs_are_many(
    demo: list[Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poller = Poller(root, post=lambda _: None, fail=lambda _: None)
    poller.watch(root / demo[1].name)
    monkeypatch.setattr(poll, "READ_S", -1.0)
    first = poller.poll()
    assert [run.path.name for run in first.runs] == [path.name for path in reversed(demo)]
    assert (first.whole, [bool(run.state.points) for run in first.runs].count(True)) == (False, 1)
    assert {run.status.state for run in first.runs} == {"done", "failed", "crashed", "stopped", "live"}
    monkeypatch.setattr(poll, "READ_S", 60.0)
    assert [bool(run.state.points) for run in poller.poll().runs].count(True) == 5


def test_poller_reads_a_run_that_is_over_only_once(
    make_run: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run()
    poller = Poller(root, post=lambda _: None, fail=lambda _: None)
    before = poller.poll().runs[0]
    monkeypatch.setattr("tq.events.tail", lambda *_: pytest.fail("read again"))
    assert poller.poll().runs[0].state is before.state


def test_poller_gives_way_to_a_key_once_and_then_reads_on(
    make_run: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run()
    now, slept = 100.0, []
    monkeypatch.setattr(poll.time, "monotonic", lambda: now)
    monkeypatch.setattr(poll.time, "sleep", slept.append)
    monkeypatch.setattr(poll, "PIECE_BYTES", 4000)
    poller = Poller(root, post=lambda _: None, fail=lambda _: None)
    poller.give_way()
    now += 0.02
    assert poller.poll().whole
    assert len(slept) > 3
    assert slept == [pytest.approx(poll.GIVE_WAY_S - 0.02)] * len(slept)


def test_poller_begins_with_what_it_is_given_and_tells_when_that_fails(root: Path) -> None:
    told: list[str] = []

    def begin() -> None:
        told.append("begin")
        if len(told) == 1:
            raise ImportError("no charts")

    def post(_: Snapshot) -> None:
        told.append("post")
        poller.close()

    poller = Poller(root, post=post, fail=told.append, begin=begin, every_s=0.01)
    poller.start()
    poller.join(20)
    assert told == ["begin", f"cannot read {root}: ImportError: no charts", "begin", "post"]


def test_poller_ends_when_closed(root: Path) -> None:
    seen = threading.Event()
    poller = Poller(root.absolute(), post=lambda _: seen.set(), fail=lambda _: None, every_s=3600)
    poller.start()
    assert seen.wait(20)
    poller.close()
    poller.join(20)
    assert not poller.is_alive()


def view(name: str, size: float = 0, acc: float = NAN, dataset: str = "digits", **more: Any) -> RunView:
    """A run with a size and an accuracy."""
    config = {"dataset": dataset, **more.pop("config", {})}
    reached = RunState(packed_bytes=size, last_acc=acc, best_acc=acc, **more)
    return RunView(Path(f"runs/{name}"), Status("done"), reached, {"name": name, "config": config})


def test_dots_are_the_runs_with_a_size_and_the_front_is_that_of_each_data_set() -> None:
    runs = (
        view("large", 300, 90),
        view("small", 100, 80),
        view("worse", 200, 79),
        view("other", 150, 99, "mnist"),
        view("new", 0, 50),
        view("silent", 100),
    )
    found = state.dots(runs)
    assert [dot.label for dot in found] == ["small", "other", "worse", "large"]
    assert [dot.label for dot in found if dot.front] == ["small", "other", "large"]


def test_select_filters_orders_and_leaves_deleted_runs_out() -> None:
    runs = (view("a", 3, 70), view("b", 2, 90), view("c", 1, 80), replace(view("d", 0, 99), gone=True))

    def names(text: str, sort: str) -> str:
        return "".join(run.name for run in state.select(runs, query.parse(text), sort, 0.0))

    assert names("", "") == "abc"
    assert names("acc>75", "acc") == "bc"
    assert names("", "size") == "cba"


@pytest.mark.parametrize(
    ("status", "gone", "stop", "resume"),
    [
        ("live", False, "", "net is still running"),
        ("done", False, "net is not running (done)", "net cannot be resumed (done)"),
        ("crashed", False, "net is not running (crashed)", ""),
        ("crashed", True, "net is not running (deleted)", "net cannot be resumed (deleted)"),
        ("live", True, "net is not running (deleted)", "net cannot be resumed (deleted)"),
    ],
)
def test_why_a_run_cannot_be_stopped_or_resumed(status: Any, gone: bool, stop: str, resume: str) -> None:
    run = replace(view("net"), status=Status(status, "train"), gone=gone)
    assert state.why_not_stop(run) == stop
    assert state.why_not_resume(run) == resume
    assert state.why_not_stop(None) == "there is no run to stop"
    assert state.why_not_resume(None) == "there is no run to resume"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "<1m"), (59.9, "<1m"), (60, "1m"), (3599, "59m"), (86_399, "23h"), (864_000, "10d")]
)
def test_age_has_one_unit(seconds: float, text: str) -> None:
    assert words.age(seconds) == text
    if seconds >= 0:
        lasts = words.age_lasts(seconds)
        assert words.age(seconds + lasts - 0.01) == text
        assert words.age(seconds + lasts) != text


@pytest.mark.parametrize("width", range(40, 260, 7))
def test_columns_fit_and_none_comes_before_one_of_more_weight(width: int) -> None:
    chosen = columns.fitting(width)
    assert sum(wide + columns.GAP for _, wide in chosen) <= max(width, 33 + 2 * columns.GAP)
    ranks = {column.rank for column, _ in chosen}
    left_out = {column.rank for column in columns.COLUMNS} - ranks
    assert not left_out or max(ranks) <= min(left_out)


def test_figures_star_the_best_and_leave_out_what_nobody_has() -> None:
    runs = [view("a", 100, 90.0), view("b", 200, 90.0), view("c", 100, 80.0)]
    rows = {row.label: row for row in comparison.figures(runs)}
    assert rows["best accuracy"].best == {0, 1}
    assert rows["size"].best == {0, 2}
    assert rows["size"].cells == ("100 B", "200 B", "100 B")
    assert "training loss" not in rows
    assert {row.label: row for row in comparison.figures(runs[:2])}["best accuracy"].best == set()


def test_differences_are_of_settings_versions_and_devices() -> None:
    one, two = view("a", config={"lr": 0.1, "seed": 0}), view("b", config={"lr": 0.2, "seed": 0, "extra": [1, 2]})
    two = replace(two, manifest={**two.manifest, "device": "cuda", "versions": {"torch": "2.12"}})
    rows = {row.label: row.cells for row in comparison.differences([one, two])}
    assert rows == {"lr": ("0.1", "0.2"), "extra": ("-", "1 2"), "device": ("-", "cuda"), "torch": ("-", "2.12")}
    assert comparison.differences([one, one]) == []


def test_ascii_keeps_the_width_and_the_letters() -> None:
    drawn = "●◌✓✗▲■◆★ ━╸─│╭╮╰╯┤ ▁▂▃▄▅▆▇█ ⠁⡀⣿⠀ … →←▾▴ °"
    assert plain(drawn).isascii()
    assert len(plain(drawn)) == len(drawn)
    assert plain("⠁⡀⣿⠀") == "'.: "
    assert len(set(plain("▁▂▃▄▅▆▇█"))) == 8
    assert plain("naïve 漢 λ") == "naïve 漢 λ"


def test_a_log_is_read_in_pieces_and_says_how_far_it_is(tmp_path: Path) -> None:
    lines = [events.encode({"t": float(i), "k": "step", "step": i, "loss": 1.0}) for i in range(1, 101)]
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines) + b'{"t":1,"k":"st')
    follower = Follower(tmp_path)
    shares = [follower.share]
    steps = []
    while follower.share < 1:
        steps.append(follower.poll(500).step)
        shares.append(follower.share)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(shares) > 8
    assert steps[-1] == 100
    assert follower.poll() == Follower(tmp_path).poll()
    assert Follower(tmp_path / "none").share == 0.0
    with_long_line = tmp_path / "long"
    with_long_line.mkdir()
    (with_long_line / "events.jsonl").write_bytes(events.encode({"t": 1, "k": "alert", "text": "x" * 9999}))
    assert len(Follower(with_long_line).poll(10).alerts) == 1


def test_a_long_log_is_shown_only_when_it_is_read(
    make_run: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run()
    monkeypatch.setattr(poll, "PIECE_BYTES", 4000)
    monkeypatch.setattr(poll, "READ_S", 0.0)
    poller = Poller(root, post=lambda _: None, fail=lambda _: None)
    poller.watch(root / next(root.iterdir()).name)
    seen = [poller.poll()]
    while not seen[-1].whole:
        seen.append(poller.poll())
    shares = [one.runs[0].share for one in seen]
    assert len(shares) > 3
    assert shares == sorted(set(shares))
    assert [bool(one.runs[0].state.points) for one in seen] == [False] * (len(seen) - 1) + [True]
    assert "reading its log" in state.verdict(seen[0].runs[0])
    assert {one.runs[0].status.state for one in seen} == {"done"}, "the end of the log says so from the first look on"


def test_the_probe_reads_this_machine_and_a_gpu_by_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Probe()()
    assert 0 < found.used_bytes < found.total_bytes
    assert 0 <= found.cpu <= 100

    class NVMLError(Exception):
        pass

    def fail(handle: str) -> float:
        raise NVMLError

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: f"gpu{i}",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=2, total=8),
        nvmlDeviceGetName=lambda handle: b"NVIDIA T4",
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50),
        nvmlDeviceGetPowerUsage=fail,
        nvmlDeviceGetTemperature=lambda handle, kind: 40,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (gpu,) = Probe()().gpus
    assert (gpu.name, gpu.busy, gpu.used_bytes, gpu.power_w, gpu.celsius) == ("NVIDIA T4", 50.0, 2.0, None, 40.0)
    monkeypatch.setattr(nvml, "nvmlInit", lambda: fail(""))
    assert Probe()().no_gpu == "no GPU"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr("os.path.exists", lambda path: True)
    assert Probe()().no_gpu == "GPU not read: pip install 'tq[gpu]'"
