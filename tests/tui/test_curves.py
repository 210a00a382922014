"""Curves, axes and bars as numbers: smoothing, binning, zoom windows, ticks, what a chart is given to draw."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tq.events import Event
from tq.history import History, RunState
from tui import bars, curves, metrics
from tui.curves import SMOOTHING, Curve, Window, log_ticks, ticks
from tui.metrics import BY_NAME, View

NAN = math.nan


def run_state(epochs: int = 4, done: float = 2, *, gap_s: float = 0.0, **fields: Callable[[int], float]) -> RunState:
    """Ten steps an epoch, a step a second, an evaluation an epoch; `gap_s` passes between a stop and a resume."""
    events: list[Event] = [{"t": 100.0, "k": "start", "epochs": epochs, "steps_per_epoch": 10}]
    events.append({"t": 100.0, "k": "phase", "name": "train"})
    t = 100.0
    for step in range(1, int(10 * done) + 1):
        t += 1
        values = {name: of(step) for name, of in fields.items()}
        events.append({"t": t, "k": "step", "step": step, "epoch": 1, "loss": 2 / step, "acc": float(step), **values})
        if step % 10 == 0:
            events.append({"t": t, "k": "eval", "step": step, "epoch": step // 10, "loss": 1 / step, "acc": step / 2})
        if gap_s and step == 10:
            events.append({"t": t, "k": "end", "status": "stopped"})
            t += gap_s
            events.append({"t": t, "k": "phase", "name": "data"})
            events.append({"t": t, "k": "start", "epochs": epochs, "steps_per_epoch": 10, "resumed_from": 10})
            events.append({"t": t, "k": "phase", "name": "train"})
    history = History()
    history.feed(events)
    return history.snapshot()


# --- smoothing and binning ---


def test_smoothing_is_off_for_short_stretches_and_leaves_a_constant_alone() -> None:
    assert curves.smooth([1.0, 5.0, 2.0], 0.0) == [1.0, 5.0, 2.0]
    assert curves.smooth([1.0, 5.0, 2.0], 0.5) == [1.0, 5.0, 2.0], "less than two points is no stretch"
    assert curves.smooth([3.0] * 50, 0.2) == pytest.approx([3.0] * 50)


def test_smoothing_has_no_bias_at_its_beginning_and_follows_the_formula() -> None:
    # 4 points of 20: decay 1 - 2 / 5
    ys = [float(i) for i in range(20)]
    got = curves.smooth(ys, 0.2)
    assert got[0] == 0.0
    want = sum(0.6**k * (5 - k) for k in range(6)) / sum(0.6**k for k in range(6))
    assert got[5] == pytest.approx(want)


def test_smoothing_keeps_gaps_and_goes_on_behind_them() -> None:
    got = curves.smooth([1.0, NAN, 1.0, math.inf, 1.0] * 4, 0.5)
    assert [math.isnan(y) for y in got] == [False, True, False, True, False] * 4
    assert [y for y in got if not math.isnan(y)] == pytest.approx([1.0] * 12)


def test_smoothing_comes_before_binning() -> None:
    """A spike is spread over its neighbours first; smoothing the bins would have spread it over bins."""
    xs, ys = [float(i) for i in range(1000)], [0.0] * 1000
    ys[500] = 100.0
    curve = Curve("", "primary", xs, curves.smooth(ys, 0.01))
    _, means = curves.shown(curve, 0, 999, 10, log=False)
    assert means[:5] == [0.0] * 5, "nothing of it comes before it"
    assert means[5] == pytest.approx(1.0, rel=1e-6), "its bin has all of it"
    assert max(means[6:]) < 1e-6


@pytest.mark.parametrize(
    ("low", "high", "want"), [(2, 4, [2, 3, 4]), (2.5, 2.9, []), (-9, 1, [1]), (0, 99, [1, 2, 3, 4, 5])]
)
def test_cut_is_the_window(low: float, high: float, want: list[float]) -> None:
    xs = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert curves.cut(xs, xs, low, high) == (want, want)


def test_a_narrow_window_shows_more_of_the_data() -> None:
    curve = Curve("", "primary", [float(i) for i in range(10_000)], [float(i % 7) for i in range(10_000)])
    whole, _ = curves.shown(curve, 0, 9999, 100, log=False)
    near, _ = curves.shown(curve, 5000, 5049, 100, log=False)
    assert len(whole) == 100
    assert near == [float(i) for i in range(5000, 5050)]


def test_log_leaves_out_what_has_no_logarithm() -> None:
    curve = Curve("", "primary", [1, 2, 3, 4], [100.0, 0.0, -1.0, 0.01])
    xs, ys = curves.shown(curve, 0, 9, 50, log=True)
    assert xs == [1, 2, 3, 4]
    assert ys[0] == 2
    assert math.isnan(ys[1])
    assert math.isnan(ys[2])
    assert ys[3] == pytest.approx(-2)


def test_pieces_are_what_lies_between_gaps() -> None:
    found = list(curves.pieces([1, 2, 3, 4, 5], [NAN, 1.0, 2.0, math.inf, 3.0]))
    assert found == [([2, 3], [1.0, 2.0]), ([5], [3.0])]


# --- the window ---


@pytest.mark.parametrize(
    ("covered", "want"),
    [
        (1.0, [Window(0.5, 1), Window(0.75, 1), Window(0.875, 1)]),
        (0.5, [Window(0, 1), Window(0.5, 1), Window(0.75, 1)]),
    ],
)
def test_zoom_goes_to_the_newest_and_back(covered: float, want: list[Window]) -> None:
    window, seen = None, []
    for _ in want:
        window = curves.zoom_in(window, covered)
        seen.append(window)
    assert seen == want
    for expected in [*reversed(want[:-1]), None]:
        window = curves.zoom_out(window, covered)
        assert window == expected


def test_zoom_of_a_panned_window_keeps_its_middle() -> None:
    window = curves.pan(Window(0.5, 1.0), -0.5)
    assert window == Window(0.25, 0.75)
    assert curves.zoom_in(window) == Window(0.375, 0.625)
    assert curves.zoom_out(Window(0.0, 0.25)) == Window(0.0, 0.5), "it stays on the data"


def test_zoom_ends_somewhere() -> None:
    window: Window | None = None
    for _ in range(30):
        window = curves.zoom_in(window)
    assert window is not None
    assert window.width >= curves.NARROWEST


@pytest.mark.parametrize(
    ("by", "want"), [(-9, Window(0, 0.25)), (1, Window(0.75, 1)), (9, Window(0.75, 1)), (-1, Window(0.25, 0.5))]
)
def test_pan_stays_on_the_data(by: float, want: Window) -> None:
    assert curves.pan(Window(0.5, 0.75), by) == want


def test_a_window_at_the_end_follows_the_data() -> None:
    assert Window(0.5, 1).within(0, 10) == (5, 10)
    assert Window(0.5, 1).within(0, 20) == (10, 20)


# --- axes ---


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


def test_a_range_is_a_little_more_than_the_data() -> None:
    assert curves.span([]) == curves.span([NAN]) == (0.0, 1.0)
    assert curves.span([1.0, 3.0]) == pytest.approx((0.9, 3.1))
    assert curves.span([5.0]) == pytest.approx((4.75, 5.25))
    low, high = curves.span([*[1.0 + i / 1000 for i in range(1000)], 1e9])
    assert high < 3, "the highest spikes of a long curve may leave it"
    assert low < 1
    low, high = curves.log_span([-2.0, 1.0])
    assert (low, high) == pytest.approx((-2.15, 1.15))
    low, high = curves.log_span([0.3, 0.3])
    assert high - low >= 0.1


@pytest.mark.parametrize(
    ("low", "high", "at_most", "want"),
    [
        (-3, 2, 8, [0.001, 0.01, 0.1, 1, 10, 100]),
        (-3, 2, 3, [0.001, 0.1, 10]),
        (0, 1, 5, [1, 3, 10]),
        (0.1, 0.2, 3, [1.3, 1.4, 1.5]),
    ],
)
def test_log_ticks_are_round(low: float, high: float, at_most: int, want: list[float]) -> None:
    assert [10**y for y in log_ticks(low, high, at_most)] == pytest.approx(want)


@pytest.mark.parametrize(
    ("seconds", "unit"), [(0, "seconds"), (119, "seconds"), (120, "minutes"), (7200, "hours"), (4e5, "days")]
)
def test_time_has_a_unit_of_which_there_are_at_least_two(seconds: float, unit: str) -> None:
    assert curves.time_unit(seconds)[1] == unit


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25"), (40, "40"), (12_000, "12k"), (2.5e6, "2.5M"), (1e-5, "1e-05"), (100.0, "100")]
)
def test_tick_text(value: float, text: str) -> None:
    assert curves.tick_text(value) == text


# --- what a chart is given ---


def test_the_axis_knows_how_much_is_to_come() -> None:
    state = run_state(4, 2)
    axis = metrics.axis(state, "epoch")
    assert (axis.label, axis.last, axis.planned, axis.covered) == ("epochs", 2, 4, 0.5)
    axis = metrics.axis(state, "step")
    assert (axis.label, axis.last, axis.planned) == ("steps", 20, 40)
    axis = metrics.axis(state, "time")
    assert (axis.label, axis.first, axis.last) == ("seconds", 1, 20)
    assert axis.planned == pytest.approx(40), "by the time that is left"


def test_without_steps_an_epoch_the_axis_counts_steps() -> None:
    history = History()
    history.feed([{"t": 1.0, "k": "step", "step": 5, "loss": 1.0}])
    assert metrics.axis(history.snapshot(), "epoch").label == "steps"


def test_time_leaves_out_what_lay_between_stop_and_resume() -> None:
    state = run_state(4, 2, gap_s=1e6)
    assert metrics.axis(state, "time").last == pytest.approx(20)
    assert [p.t for p in state.points] == pytest.approx([float(i) for i in range(1, 21)])


def test_a_picture_has_the_best_evaluation_of_its_own_stage() -> None:
    state = run_state(4, 2)
    loss, accuracy = (metrics.picture(state, BY_NAME[name], View()) for name in ("loss", "accuracy"))
    assert accuracy.curves[1].best == (2, 10.0)
    assert loss.curves[1].best == (2, pytest.approx(1 / 20))
    history = History()
    for t, (stage, acc) in enumerate([("float", 99.0), ("train", 60.0), ("train", 70.0), ("train", 65.0)]):
        history.feed([{"t": t + 1.0, "k": "phase", "name": stage}])
        history.feed([{"t": t + 1.5, "k": "eval", "step": t + 1, "epoch": t + 1, "loss": 1.0, "acc": acc}])
    curve = metrics.picture(history.snapshot(), BY_NAME["accuracy"], View(x="step")).curves[1]
    assert curve.best == (3, 70.0), "99 % was the float network"
    assert curve.ys == [99.0, 60.0, 70.0, 65.0]


def test_a_picture_follows_the_view() -> None:
    state = run_state(4, 2)
    whole = metrics.picture(state, BY_NAME["loss"], View())
    assert (whole.x_low, whole.x_high, whole.x_label, whole.log) == (0, 4, "epochs", False)
    near = metrics.picture(
        state, BY_NAME["loss"], View("step", Window(0.5, 1), len(SMOOTHING) - 1, frozenset({"loss"})), place="1 of 2"
    )
    assert (near.x_low, near.x_high, near.x_label, near.log) == (10, 20, "steps", True)
    assert near.note == "1 of 2 · smooth 20%"
    assert list(near.curves[0].ys) == curves.smooth([p.loss for p in state.points], 0.2)


def test_charts_are_those_that_the_log_has_numbers_for() -> None:
    def names(state: RunState) -> list[str]:
        return [m.name for m in metrics.available(state)]

    assert names(RunState()) == names(run_state()) == ["loss", "accuracy"]
    assert names(run_state(lr=lambda s: 0.1, flip_rate=lambda s: 0.01)) == ["loss", "accuracy", "lr", "flips"]
    state = run_state(p_min=lambda s: 4.0, p_mean=lambda s: 4.5, p_max=lambda s: 6.0)
    assert names(state) == ["loss", "accuracy", "resolution"]
    picture = metrics.picture(state, BY_NAME["resolution"], View())
    assert [(c.label, c.ys[-1]) for c in picture.curves] == [("min", 4.0), ("mean", 4.5), ("max", 6.0)]
    state = run_state(portion=lambda s: s / 20)
    assert names(state) == ["loss", "accuracy", "portion"]
    assert metrics.picture(state, BY_NAME["portion"], View()).curves[0].ys[-1] == 100


# --- bars ---


@pytest.mark.parametrize(
    ("share", "width", "text"),
    [
        (0, 8, ""),
        (NAN, 8, ""),
        (-1, 8, ""),
        (1, 4, "████"),
        (2, 4, "████"),
        (0.5, 3, "█▌"),
        (1e-9, 5, "▏"),
        (0.5, 0, ""),
    ],
)
def test_bar(share: float, width: int, text: str) -> None:
    assert bars.bar(share, width) == text
    assert len(bars.padded(share, width)) == width


def test_bars_share_the_room_or_are_left_out() -> None:
    assert bars.columns(30, 3) == 10
    assert bars.columns(9, 3) == 0
    assert bars.columns(300, 3) == 24
    assert bars.columns(10, 0) == 0
