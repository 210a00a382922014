"""Words, numbers, ticks and the form's parsing: the parts of the dashboard that need no screen."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tq.config import TrainConfig
from tui import form, poll, state
from tui.chart import ticks
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


@pytest.mark.parametrize(
    ("low", "high", "at_most", "want"),
    [
        (0, 100, 6, [0, 20, 40, 60, 80, 100]),
        (8, 97, 3, [20, 40, 60, 80]),
        (0.2, 2.3, 4, [0.5, 1, 1.5, 2]),
        (5, 5, 4, [5]),
    ],
)
def test_ticks_are_round_and_never_alone(low: float, high: float, at_most: int, want: list[float]) -> None:
    assert ticks(low, high, at_most) == want


def test_ticks_of_epochs_are_whole() -> None:
    assert ticks(0, 2, 8, whole=True) == [0, 1, 2]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 300])
def test_ticks_of_any_range(n: int) -> None:
    for low in (-3.7, 0, 1e-6, 1e5):
        found = ticks(low, low + n * 1.37 + 1e-3, 5)
        assert 1 <= len(found) <= 8
        assert found == sorted(found)


def test_form_has_every_field_with_its_help_and_default() -> None:
    rows = {row.name: row for row in form.fields(TrainConfig)}
    assert list(rows) == list(TrainConfig.__dataclass_fields__)
    assert all(row.help for row in rows.values())
    assert rows["lr"].help == "peak learning rate"
    assert rows["optimizer"].choices == ("sgd", "adam", "adamw", "hysteresis-sgd", "qsgd", "qtadam", "qtadamw")
    assert form.build(TrainConfig, {name: row.default for name, row in rows.items()}) == TrainConfig()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({}, []),
        ({"epochs": " 3 ", "lr": "1e-3"}, ["--lr", "0.001", "--epochs", "3"]),
        ({"compile": "False", "amp": "True"}, ["--no-compile", "--amp"]),
        ({"milestones": "0.5, 0.75"}, ["--milestones", "0.5", "0.75"]),
        ({"override": "'layer3.*=w2a4' fc=float"}, ["--override", "layer3.*=w2a4", "fc=float"]),
        ({"data": "/a b/c", "image_size": "64"}, ["--data", "/a b/c", "--image-size", "64"]),
    ],
)
def test_form_gives_the_command_line_of_what_was_typed(typed: dict[str, str], words: list[str]) -> None:
    assert form.argv(form.build(TrainConfig, typed)) == words


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ({"epochs": "1.5"}, "epochs must be a whole number, got '1.5'"),
        ({"lr": ""}, "lr needs a value; the default is 0.05"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"batch_size": "0"}, "batch_size must be at least 1, got 0"),
        ({"model": "resnet21"}, "did you mean 'resnet"),
        ({"override": "'x"}, "override: a quote is not closed"),
        ({"stage_act_bits": "4 x"}, "stage act bits must be a whole number, got 'x'"),
    ],
)
def test_form_says_in_one_sentence_what_is_wrong(typed: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        form.build(TrainConfig, typed)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


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
