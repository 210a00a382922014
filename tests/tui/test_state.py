"""Words and numbers: the parts of the dashboard that need no screen."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tui import poll, state
from tui.poll import Poller

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (1, "1.00"), (0.0431, "0.0431"), (512.34, "512"), (12345, "12,345"), (1e-5, "1.0e-05"), (NAN, "-")],
)
def test_number(value: float, text: str) -> None:
    assert state.number(value) == text
    assert state.number(-math.inf) == "-inf"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (78_432, "78.4 kB"), (999_600, "1 MB"), (5e12, "5e+03 GB")]
)
def test_size(value: float, text: str) -> None:
    assert state.size(value) == text


def test_clean_leaves_text_and_takes_what_could_draw() -> None:
    assert state.clean("a\tb é 漢 [x]") == "a   b é 漢 [x]"
    assert (
        state.clean("\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link \x9b2J\x07\x00\x7f\x1bc")
        == "red  link 2J"
    )


def test_spark_is_as_wide_as_asked_and_scaled() -> None:
    assert state.spark([float(i) for i in range(100)], 8) == "▁▂▃▄▅▆▇█"
    assert state.spark([1.0], 8) == state.spark([NAN, NAN], 8) == ""
    assert state.spark([1.0, NAN, 1.0], 8) == "▁ ▁"


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


def test_poller_ends_when_closed(root: Path) -> None:
    seen = threading.Event()
    poller = Poller(root.absolute(), post=lambda _: seen.set(), fail=lambda _: None, every_s=3600)
    poller.start()
    assert seen.wait(20)
    poller.close()
    poller.join(20)
    assert not poller.is_alive()
