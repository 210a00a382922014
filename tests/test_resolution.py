"""tq.optim.resolution: the three rules against loops over exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tq.optim.resolution import CAP, Resolution, floors, log_t_bound, nearest, needed, power_of_two


def exact(x: float, p: int) -> Fraction:
    """floor(2^p x + 1/2) / 2^p."""
    return Fraction(math.floor(Fraction(x) * Fraction(2) ** p + Fraction(1, 2))) / Fraction(2) ** p


def edges() -> list[float]:
    """Values around the two ends of the interval that rounds to zero, at many scales, of both signs."""
    at = [np.float32(f * 2.0**e) for e in (-40, -33, -32, -9, -1, 0, 3, 30) for f in (0.5, 0.75, 1.0)]
    near = [np.nextafter(x, np.float32(to)) for x in at for to in (0, math.inf)]
    return [float(sign * x) for x in (*at, *near) for sign in (1, -1)]


def test_needed_is_where_the_loop_ends() -> None:
    pairs = [(x, y) for x in edges() for y in (0.0, x / 3, -x, -x / 2, 1e-3)]
    found = needed([torch.tensor(pair) for pair in pairs])
    for pair, p in zip(pairs, found.tolist(), strict=True):
        values = torch.tensor(pair).tolist()  # as float32
        assert any(exact(x, int(p)) for x in values), (values, p)
        assert not any(exact(x, int(p) - 1) for x in values), (values, p)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
def test_needed_of_what_no_resolution_helps(bad: float) -> None:
    assert needed([torch.tensor([bad, 0.0]), torch.tensor([0.25, 0.0])]).tolist() == [-math.inf, 1]


@pytest.mark.parametrize("p", [0, 7, 31, 32])
def test_nearest_is_exact(p: int) -> None:
    values = [*edges(), 0.0, 0.49999997, -0.49999997, -0.5, 0.5, 1.5, -1.5, 8388609.0, -8388609.0]
    x = torch.tensor(values)
    found = nearest([x, x.view(-1, 1)], torch.tensor([float(p), p]))
    wanted = [float(np.float32(float(exact(value, p)))) for value in x.tolist()]
    assert found[0].tolist() == wanted and found[1].flatten().tolist() == wanted


def test_floors() -> None:
    x = torch.tensor([0.3, -0.3, 0.25, -1e-30, 0.0])
    assert floors([x], torch.tensor([2.0]))[0].tolist() == [0.25, -0.5, 0.25, -0.25, 0.0]


def test_power_of_two() -> None:
    p = torch.arange(-126, 127)
    assert power_of_two(p.float()).tolist() == [2.0**k for k in p.tolist()]
    assert power_of_two(p.double()).dtype == torch.float64


def test_log_t_bound() -> None:
    found = log_t_bound(torch.tensor([0, 1, 10, 100, 1000]))
    assert [round(x, 2) for x in found.tolist()] == [0.41, 4.07, 9.66, 11.58, 12.05]
    for t, value in zip((0, 1, 10, 100, 1000), found.tolist(), strict=True):
        temperature = 2 ** (40 / (t + 2)) * 1e-6 / math.log(t + 2)
        assert value == pytest.approx(0.5 * math.log2(64 / (24 * temperature)), abs=1e-12)


def following(rule: Resolution, p: list[float], t: list[int], h: list[Tensor] | None = None) -> list[float]:
    p_N = torch.tensor(p)
    h = h or [torch.ones(2) for _ in p]
    return rule.following(p_N, torch.tensor(t, dtype=torch.float32), h, p_N.amax()).tolist()


def test_log_t_rises_like_the_loop() -> None:
    rule, p, wanted = Resolution("log-t"), [0.0], 0
    for t in range(3000):
        p = following(rule, p, [t])
        while 0.5 * math.log2(64 / (24 * 2 ** (40 / (t + 2)) * 1e-6 / math.log(t + 2))) > wanted:
            wanted += 1
        assert p == [wanted]
    assert wanted == 13
    assert following(rule, [20.0], [3000]) == [20]


def test_scheduled_follows_the_epochs() -> None:
    rule = Resolution("scheduled", steps_per_epoch=10)
    t = [0, 7, 8, 53, 54, 525, 526]
    wanted = [19 + math.floor(math.log2(math.log(step / 10 + 2))) for step in t]
    assert following(rule, [0.0] * 7, t) == wanted == [18, 18, 19, 19, 20, 20, 21]


def test_on_demand() -> None:
    h = [torch.tensor([0.2, 0.1]), torch.tensor([-0.001, 0.0]), torch.tensor([0.3]), torch.zeros(3)]
    each, shared = Resolution(shared=False), Resolution()
    assert following(each, [0.0] * 4, [1] * 4, h) == [2, 9, 1, 0]
    assert following(shared, [0.0] * 4, [1] * 4, h) == [2, 9, 9, 9]
    assert following(shared, [0.0, 0.0, 11.0, 0.0], [1] * 4, h) == [11] * 4
    assert following(shared, [3.0] * 4, [0] * 4, h) == [3] * 4
    assert following(each, [0.0], [1], [torch.tensor([1e-20])]) == [CAP]
    assert following(each, [5.0], [1], [torch.tensor([math.nan, 1e-9])]) == [5]


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "sometimes"},
        {"start": -1},
        {"start": 33},
        {"start": 1.5},
        {"kappa": -1.0},
        {"tau0": math.nan},
        {"rule": "scheduled"},
        {"rule": "scheduled", "steps_per_epoch": 0},
    ],
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^expected .*, got .*; .+$"):
        Resolution(**settings)
