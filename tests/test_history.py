"""tq.history on what charts and tables beyond the curves need: layers, phases, time at work, NaN, the time to go."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tq.events import EventLog, number
from tq.history import Follower, History, LayerFigures, RunState

NAN = math.nan


def state_of(*log: dict) -> RunState:
    one = History()
    one.feed(log)
    return one.snapshot()


def test_layers_keep_what_is_known_and_take_nothing_on_trust(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", clock=lambda: 1.0)
    log.emit("size", float_bytes=10, packed_bytes=5, layers={"conv1": 16, "conv2": 1})
    values = {"bits": 1, "act_bits": 2, "bytes": 288, "scale": 0.031, "flips": 0.002, "oscillating": NAN, "new": 3}
    log.emit("layers", step=40, layers={"conv2": values, "conv3": {"sqnr_db": 12.5, "scale": "x"}, "bad": 7})
    state = Follower(tmp_path).poll()
    assert state.layers == {"conv1": 16, "conv2": 1}, "bits of the size event"
    assert state.figures_step == 40
    assert list(state.layer_figures) == ["conv2", "conv3"]
    first, second = state.layer_figures["conv2"], state.layer_figures["conv3"]
    assert first[:5] == (1, 2, 288, 0.031, 0.002)
    assert math.isnan(first.oscillating)
    assert math.isnan(first.sqnr_db)
    assert second.sqnr_db == 12.5
    assert math.isnan(second.scale)


@pytest.mark.parametrize("layers", [None, 3, [], "x"])
def test_damaged_layers_leave_the_last_ones(layers: object) -> None:
    good = {"t": 1.0, "k": "layers", "step": 1, "layers": {"a": {"bits": 2}}}
    state = state_of(good, {"t": 2.0, "k": "layers", "step": 2, "layers": layers})
    assert state.layer_figures == {"a": pytest.approx(LayerFigures(bits=2), nan_ok=True)}
    assert state.figures_step == 1


def test_phases_add_up_and_a_pause_belongs_to_none() -> None:
    log = [
        {"t": 10.0, "k": "phase", "name": "data"},
        {"t": 12.0, "k": "start", "epochs": 2, "steps_per_epoch": 5},
        {"t": 12.0, "k": "phase", "name": "compile"},
        {"t": 60.0, "k": "phase", "name": "train"},
        {"t": 61.0, "k": "step", "step": 1},
        {"t": 70.0, "k": "phase", "name": "eval"},
        {"t": 73.0, "k": "eval", "step": 1},
        {"t": 73.0, "k": "phase", "name": "train"},
        {"t": 80.0, "k": "step", "step": 2},
    ]
    state = state_of(*log)
    assert state.phases == {"data": 2, "compile": 48, "train": 10, "eval": 3}
    assert (state.phase, state.phase_t) == ("train", 73)
    # killed at 80; resumed a day later
    resumed = [
        {"t": 90_000.0, "k": "phase", "name": "data"},
        {"t": 90_001.0, "k": "start", "epochs": 2, "steps_per_epoch": 5, "resumed_from": 1},
        {"t": 90_001.0, "k": "phase", "name": "train"},
        {"t": 90_004.0, "k": "step", "step": 2},
        {"t": 90_004.0, "k": "end", "status": "ok"},
    ]
    state = state_of(*log, *resumed)
    assert state.phases == {"data": 3, "compile": 48, "train": 20, "eval": 3}
    assert [p.t for p in state.points] == [51, 74], "seconds at work"
    assert state.evals[0].t == 63


def test_a_resume_without_a_word_on_its_data_is_a_pause_too() -> None:
    state = state_of(
        {"t": 10.0, "k": "start"},
        {"t": 10.0, "k": "phase", "name": "train"},
        {"t": 20.0, "k": "step", "step": 1},
        {"t": 500.0, "k": "start", "resumed_from": 1},
        {"t": 505.0, "k": "step", "step": 2},
    )
    assert [p.t for p in state.points] == [10, 15]
    assert state.phases == {"train": 10}


def test_the_first_step_that_is_no_number_is_known_until_it_is_taken_back() -> None:
    log = [
        {"t": 1.0, "k": "step", "step": 1, "acc": 3.0},
        {"t": 2.0, "k": "step", "step": 2, "loss": 1.0},
        {"t": 3.0, "k": "step", "step": 3, "loss": NAN},
        {"t": 4.0, "k": "step", "step": 4, "loss": NAN},
    ]
    assert state_of(*log[:2]).nan_step == 0, "no loss at all is not NaN"
    assert state_of(*log).nan_step == 3
    assert state_of(*log, {"t": 5.0, "k": "start", "resumed_from": 2}).nan_step == 0
    assert state_of(*log, {"t": 5.0, "k": "start", "resumed_from": 3}).nan_step == 3


def test_resolution_and_portion_are_those_of_the_last_step() -> None:
    step = {"t": 1.0, "k": "step", "step": 1, "p_min": 4.0, "p_mean": 4.5, "p_max": 6.0, "portion": 0.5}
    state = state_of(step)
    assert (state.p_min, state.p_mean, state.p_max, state.portion) == (4, 4.5, 6, 0.5)
    assert state.points[0].portion == 0.5
    assert math.isnan(number(state_of({"t": 1.0, "k": "step", "step": 1}).portion))


@pytest.mark.parametrize(
    ("steps", "want"),
    [
        ([(0, 1)], NAN),  # one step gives no pace
        ([(0, 1), (10, 2)], 80.0),
        ([(0, 1), (10, 6)], 8.0),
        ([(0, 1), (10, 10)], 0.0),
        ([(0, 5), (10, 5)], NAN),
        ([(10, 1), (10, 2)], NAN),
    ],
)
def test_time_to_go(steps: list[tuple[float, int]], want: float) -> None:
    start = {"t": 0.0, "k": "start", "epochs": 2, "steps_per_epoch": 5}
    log = [start, *({"t": t, "k": "step", "step": step} for t, step in steps)]
    assert state_of(*log).eta_s == pytest.approx(want, nan_ok=True)
    assert math.isnan(state_of(*log, {"t": 99.0, "k": "end", "status": "ok"}).eta_s)
