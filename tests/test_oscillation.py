"""`tq.oscillation.Oscillation`: flips, oscillation frequency, freezing; `tq.objective.Objective`; `tq.stages`."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tq
from tq.attach import quant_layers
from tq.config import TrainConfig
from tq.objective import Objective
from tq.optim import HysteresisSGD
from tq.oscillation import MOMENTUM, Oscillation
from tq.scheme import Scheme
from tq.stages import peak_rate, plan
from tq.step import make_optimizer


def network(scheme: str = "w1a2", **choices: object) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU(), nn.Conv2d(7, 4, 1))
    return tq.attach(model, scheme, first_last="same", **choices)  # type: ignore[arg-type]


def test_flips_count_changed_codes_once() -> None:
    model = network(override=("4=w4a2",))
    moves = Oscillation(model)
    assert moves.total == 5 * 27 + 7 * 45 + 28
    moves.observe()
    assert flips(moves) == 0
    with torch.no_grad():
        model[0].weight[0].neg_()  # 27 signs
        model[2].weight[0, 0].mul_(3.0)  # none
        model[4].weight.neg_()
    changed = int((moves.tracks["4"].codes != moves.tracks["4"]._now()).sum())
    assert 0 < changed <= 28
    moves.observe()
    assert flips(moves) == pytest.approx((27 + changed) / moves.total)
    assert flips(moves) == 0
    assert moves.layers()["0"]["flips"] == pytest.approx(27 / 135 / 2), "the mean of two steps"
    moves.observe()
    assert moves.layers()["0"]["flips"] == 0
    floats = Oscillation(nn.Sequential(nn.Linear(2, 2)))
    floats.observe()
    assert floats.flips() is None and floats.layers() == {}


def test_flips_do_not_depend_on_how_often_they_are_asked_for() -> None:
    model = network("w1a4")
    often, seldom = Oscillation(model), Oscillation(model)
    told = 0.0
    for number in range(7):
        with torch.no_grad():
            model[0].weight[:1].neg_()  # forth and back: nothing has changed from two steps before
        for moves in (often, seldom):
            moves.observe()
        told += flips(often)
        if number == 3:
            assert often.layers() == seldom.layers(), "told per layer without a loss of what is told of all"
    assert flips(seldom) == pytest.approx(told) == pytest.approx(7 * 27 / often.total)
    assert often.layers()["0"]["flips"] == pytest.approx(27 / 135)


def flips(moves: Oscillation) -> float:
    told = moves.flips()
    assert told is not None
    return float(told)


def test_a_weight_that_turns_back_and_forth_is_frozen_where_it_mostly_is() -> None:
    model = network("w4a4")
    layer = quant_layers(model)["0"]
    moves = Oscillation(model, threshold=0.025)
    step = layer.weight_codes()[1][0].detach()
    # one weight at code 1 three times of four, else at 2; another rises and stays
    wave = [1.2, 1.2, 1.2, 1.8] * 12
    often, last, turned_last = 0.0, 1, 0
    frozen_at = None
    with torch.no_grad():
        layer.weight[0, 0, 0, 0], layer.weight[0, 0, 0, 1] = 1.2 * step, -2 * step
        moves = Oscillation(model, threshold=0.025)
        for number, value in enumerate(wave):
            layer.weight[0, 0, 0, 0] = value * step
            layer.weight[0, 0, 0, 1] += 0.05 * step
            moves.observe()
            code = round(value)
            change = (code > last) - (code < last)
            often = (1 - MOMENTUM) * often + MOMENTUM * (change * turned_last < 0)
            turned_last, last = change or turned_last, code
            if frozen_at is None:
                assert float(moves.tracks["0"].often[0, 0, 0, 0]) == pytest.approx(often, abs=1e-6)
                if often > 0.025:
                    frozen_at = number
            if frozen_at is not None:
                assert float(layer.weight[0, 0, 0, 0]) == pytest.approx(float(step), rel=1e-6)
    assert frozen_at is not None and frozen_at < 24
    assert not bool(moves.tracks["0"].frozen[0, 0, 0, 1]), "a weight that moves one way does not oscillate"
    assert moves.layers()["0"]["frozen"] == pytest.approx(1 / 135)


def test_freezing_one_bit_weights_holds_their_sign() -> None:
    model = network("w1a4")
    layer = quant_layers(model)["0"]
    moves = Oscillation(model, threshold=0.015)
    with torch.no_grad():
        for number in range(9):
            layer.weight[0, 0, 0, 0] = 0.01 if number % 2 else -0.01
            moves.observe()
    assert bool(moves.tracks["0"].frozen[0, 0, 0, 0])
    assert float(layer.weight[0, 0, 0, 0].detach().abs()) == pytest.approx(
        float(layer.weight_codes()[1][0].detach()), rel=0.05
    )


def test_freezing_holds_the_latent_weights_of_hysteresis() -> None:
    model = network("w1a4")
    layer = quant_layers(model)["0"]
    config = TrainConfig(scheme="w1a4", optimizer="hysteresis-sgd", hysteresis=0.0, lr=1.0, momentum=0.0)
    optimizer = make_optimizer(model, config, lr=1.0)
    moves = Oscillation(model, optimizer, threshold=0.015)
    latent = optimizer.state[layer.weight]["latent"]

    def step(gradient: float) -> float:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        assert layer.weight.grad is not None
        layer.weight.grad[0, 0, 0, 0] = gradient
        optimizer.step()
        moves.observe()
        return float(layer.weight[0, 0, 0, 0])

    with torch.no_grad():
        latent[0, 0, 0, 0] = 0.5
    signs = [step(1.0 if number % 2 == 0 else -1.0) > 0 for number in range(8)]
    assert not all(a == b for a, b in itertools.pairwise(signs)), "it did not oscillate"
    assert bool(moves.tracks["0"].frozen[0, 0, 0, 0])
    held = layer.weight[0, 0, 0, 0] > 0
    assert all((step(2.0 if held else -2.0) > 0) == held for _ in range(3))
    assert (latent[0, 0, 0, 0] > 0) == held


def test_hysteresis_pulls_latent_weights_to_their_scale() -> None:
    latent = torch.tensor([[0.9, -0.1], [0.2, -0.4]])
    p = nn.Parameter(latent.clone())
    optimizer = HysteresisSGD([{"params": [p], "binary": True}], lr=0.5, momentum=0.0, pull=0.3)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    scale = latent.abs().mean(1, keepdim=True)
    assert torch.allclose(optimizer.state[p]["latent"], latent - 0.5 * 0.3 * (latent - latent.sign() * scale))


def test_oscillation_resumes() -> None:
    model = network("w2a4")
    moves = Oscillation(model, threshold=0.02)
    noise = [torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(i)) * 0.05 for i in range(12)]

    def shake(network: nn.Module, meter: Oscillation, parts: list[torch.Tensor]) -> None:
        for part in parts:
            with torch.no_grad():
                network[0].weight += part
            meter.observe()

    shake(model, moves, noise[:6])
    flips(moves)
    other = copy.deepcopy(model)
    again = Oscillation(other, threshold=0.02)
    again.load_state_dict(copy.deepcopy(moves.state_dict()))
    shake(model, moves, noise[6:])
    shake(other, again, noise[6:])
    assert torch.equal(model[0].weight, other[0].weight)
    assert flips(moves) == flips(again) > 0
    assert moves.layers() == again.layers()
    assert bool(moves.tracks["0"].frozen.any()), "the test shakes too little"


def test_the_objective_is_its_formula() -> None:
    torch.manual_seed(1)
    model, teacher = network("w1a4"), nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    x, y = torch.randn(6, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0, 1])
    logits = torch.randn(6, 4, requires_grad=True)
    objective = Objective(teacher=teacher, share=0.3, temperature=2.5, pulled=model, pull=0.01)
    loss = objective(x, logits, y)
    p, q = (teacher(x) / 2.5).softmax(1), (logits / 2.5).softmax(1)
    distance = 2.5**2 * (p * (p / q).log()).sum(1).mean()
    pull = 0.0
    for layer in quant_layers(model).values():
        scale = layer.weight.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
        pull = pull + 0.005 * float(((layer.weight.abs() - scale) ** 2).sum())
    expected = 0.7 * F.cross_entropy(logits, y) + 0.3 * distance + pull
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    weight = quant_layers(model)["0"].weight
    scale = weight.detach().abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    assert torch.allclose(weight.grad, 0.01 * (weight.abs() - scale) * weight.sign(), atol=1e-7)  # type: ignore[arg-type]
    assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(Objective()(x, logits, y), F.cross_entropy(logits, y))


def test_the_stages_of_a_run() -> None:
    stages = plan(TrainConfig(scheme="w1a2", float_epochs=3, progressive=("w8a8:1", "w4a4:2"), epochs=5))
    assert [(s.name, str(s.scheme), s.epochs) for s in stages] == [
        ("float", "float", 3), ("train", "w8a8", 1), ("train", "w4a4", 2), ("train", "w1a2", 5),
    ]  # fmt: skip
    stages = plan(TrainConfig(scheme="inq5", epochs=6, portions=(0.5, 0.75, 0.875, 1.0)))
    assert [(s.epochs, s.portion) for s in stages] == [(2, 0.5), (2, 0.75), (1, 0.875), (1, 1.0)]
    assert all(s.scheme == Scheme(5, 16, pow2=True) for s in stages)
    assert [s.portion for s in plan(TrainConfig(scheme="inq3", epochs=8))] == [0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1]
    assert [s.scheme for s in plan(TrainConfig(scheme="float", float_epochs=3))] == [Scheme()]


def test_default_learning_rates() -> None:
    def rate(scheme: str, **settings: object) -> float:
        return peak_rate(TrainConfig(scheme=scheme, **settings), Scheme.parse(scheme))  # type: ignore[arg-type]

    assert [rate(s, init="f") for s in ("w1a2", "w2a8", "w4a4", "w8a8", "inq5")] == pytest.approx(
        [0.05, 0.02, 0.01, 0.005, 0.01]
    )
    assert rate("w8a8") == rate("float") == 0.05
    assert [rate(s, init="f", optimizer="adamw") for s in ("w1a2", "w2a2", "w4a8", "w8a8", "inq3")] == pytest.approx(
        [0.001, 0.001, 0.0002, 0.0001, 0.0002]
    )
    assert rate("w2a2", optimizer="qtadam") == 0.001
    assert rate("w2a2", lr=0.3, init="f") == 0.3
