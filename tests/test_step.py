"""tq.step: one compiled training step without graph breaks, its optimizers, learning rate and flip meter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tq.attach import attach
from tq.config import TrainConfig
from tq.meters import StepMeter
from tq.optim import QSGD, HysteresisSGD, QtAdamW, Resolution
from tq.ptq.calibrate import calibrate
from tq.quantizers import PACT, ScaledSign
from tq.step import TrainStep, learning_rate, make_optimizer, resolution_of

OPTIMIZERS = ("sgd", "adam", "adamw", "hysteresis-sgd", "qsgd", "qtadam", "qtadamw")


class Tiny(nn.Module):
    """A w1a2 network in three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.conv, self.bn2 = nn.Conv2d(5, 7, 3, bias=False), nn.BatchNorm2d(7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.bn2(self.conv(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def tiny(config: TrainConfig, **options: Any) -> nn.Module:
    torch.manual_seed(4)
    model = attach(Tiny(), config.scheme, first_last="same", act_quantizer=config.act_quantizer, **options)
    calibrate(model, [batch(0)[0]], batch_statistics=True)
    return model.train()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 3, 9, 7, generator=generator), torch.randint(3, (5,), generator=generator)


@pytest.fixture
def graph_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without code generation: the same graphs and guards, in a tenth of the time."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        *[(optimizer, {}) for optimizer in OPTIMIZERS],
        ("sgd", {"act_quantizer": "pact", "amp": True}),
        ("hysteresis-sgd", {"hysteresis_mode": "one-step", "hysteresis_relative": True}),
        ("qsgd", {"resolution": "scheduled", "amp": True}),
        ("qtadamw", {"shared_resolution": False, "qp": 8}),
    ],
)
def test_train_step_is_one_graph_and_never_recompiles(
    graph_only: None, optimizer: str, settings: dict[str, Any]
) -> None:
    config = TrainConfig(optimizer=optimizer, **settings)
    plain = tiny(config)
    compiled = copy.deepcopy(plain)
    steps = [
        TrainStep(m, make_optimizer(m, config, steps_per_epoch=3), compile=c, amp=config.amp)
        for m, c in ((plain, False), (compiled, True))
    ]

    def train(seeds: range) -> None:
        for seed in seeds:
            lr = learning_rate(config, seed / 20, peak=0.05, epochs=2)
            (loss, correct), (wanted, wanted_correct) = (step(*batch(seed), lr) for step in reversed(steps))
            assert loss.ndim == 0 and not loss.requires_grad
            assert (
                torch.allclose(loss, wanted, atol=2e-2 if config.amp else 1e-4)
                and abs(int(correct - wanted_correct)) <= config.amp
            )

    train(range(2))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(range(2, 7))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert not torch._dynamo.utils.counters["graph_break"]
    if not config.amp:
        for p, q in zip(compiled.parameters(), plain.parameters(), strict=True):
            assert p.grad is None and torch.allclose(p, q, atol=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_train_step_learns(optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, **({"hysteresis": 0.01} if optimizer == "hysteresis-sgd" else {}))  # type: ignore[arg-type]
    model = tiny(config)
    step = TrainStep(model, make_optimizer(model, config), compile=False, amp=False)
    losses = [float(step(*batch(0), 0.02)[0]) for _ in range(60)]
    assert losses[-1] < losses[0] - 0.2


def test_train_step_uses_the_rate_that_it_is_given() -> None:
    config = TrainConfig(lr=9.0, momentum=0.0, weight_decay=0.0)
    model = tiny(config)
    other = copy.deepcopy(model)
    for m, lr in ((model, 0.1), (other, 0.0)):
        TrainStep(m, make_optimizer(m, config), compile=False, amp=False)(*batch(1), lr)
    assert not torch.equal(model.head.weight, other.head.weight)
    assert torch.equal(other.conv.weight, tiny(config).conv.weight)


@pytest.mark.parametrize("act_quantizer", ["lsq", "pact"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_make_optimizer_decays_weights_and_alpha_only(optimizer: str, act_quantizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, act_quantizer=act_quantizer, weight_decay=0.01)
    model = tiny(config, override=("head=w4a2",))
    made = make_optimizer(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(names)
    decayed = {names[id(p)] for group in made.param_groups if group["weight_decay"] for p in group["params"]}
    alphas = {f"{name}.alpha" for name, m in model.named_modules() if isinstance(m, PACT)}
    assert decayed == {"stem.weight", "conv.weight", "head.weight"} | alphas and len(alphas) in (0, 3)
    binary = {names[id(p)] for group in made.param_groups if group.get("binary") for p in group["params"]}
    assert binary == ({"stem.weight", "conv.weight"} if optimizer == "hysteresis-sgd" else set())


def test_make_optimizer_passes_the_settings_on() -> None:
    values = {
        "hysteresis": 0.3,
        "hysteresis_mode": "one-step",
        "hysteresis_relative": True,
        "momentum": 0.7,
        "granularity": "tensor",
    }
    config = TrainConfig(optimizer="hysteresis-sgd", **values)
    made = make_optimizer(tiny(config), config)
    assert isinstance(made, HysteresisSGD)
    wanted = {"threshold": 0.3, "mode": "one-step", "relative": True, "momentum": 0.7, "per_channel": False}
    assert {key: made.param_groups[2][key] for key in wanted} == wanted


def test_make_optimizer_gives_the_resolution_its_time() -> None:
    config = TrainConfig(optimizer="qsgd", resolution="scheduled", compensation_kappa=3.0, compensation_tau0=0.2)
    made = make_optimizer(tiny(config), config, epochs=20, steps_per_epoch=7)
    assert isinstance(made, QSGD) and made.param_groups[0]["momentum"] == 0.9
    assert made.rule == Resolution("scheduled", kappa=3.0, tau0=4.0, steps_per_epoch=7)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        make_optimizer(tiny(config), config)
    config = TrainConfig(optimizer="qtadamw", qp=5, shared_resolution=False)
    made = make_optimizer(tiny(config), config)
    assert isinstance(made, QtAdamW) and made.rule == Resolution(start=5, shared=False, tau0=5.0)
    p = resolution_of(made)
    assert p is not None and p.tolist() == [5, 5, 5]
    assert resolution_of(make_optimizer(tiny(config), TrainConfig())) is None


def test_make_optimizer_tells_the_quantizers_who_holds_the_weights() -> None:
    model = tiny(TrainConfig())
    for optimizer, held in (("hysteresis-sgd", True), ("sgd", False)):
        make_optimizer(model, TrainConfig(optimizer=optimizer))
        quantizers = [m for m in model.modules() if isinstance(m, ScaledSign)]
        assert len(quantizers) == 3 and all(q.held_by_optimizer == held for q in quantizers)


def test_learning_rate_schedules() -> None:
    cosine, constant = TrainConfig(lr=0.2), TrainConfig(lr=0.2, schedule="constant")
    rate = partial(learning_rate, peak=0.2, epochs=10)
    assert [rate(cosine, d) for d in (0, 0.5, 1)] == pytest.approx([0.2, 0.1, 0.0])
    assert [rate(constant, d) for d in (0, 0.5, 1)] == [0.2, 0.2, 0.2]
    step = TrainConfig(lr=0.2, schedule="step", milestones=(0.25, 0.5))
    assert [rate(step, d) for d in (0.2, 0.25, 0.49, 0.5, 1)] == pytest.approx([0.2, 0.02, 0.02, 0.002, 0.002])


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("warmup", [0.001, 1.0, 2.5, 10.0, 99.0])
def test_learning_rate_warms_up_in_a_line(warmup: float, schedule: str) -> None:
    config = TrainConfig(lr=0.2, warmup=warmup, schedule=schedule, milestones=(1.0,))
    share = min(warmup / 10, 1)
    rates = [learning_rate(config, share * k / 8, peak=0.2, epochs=10) for k in range(8)]
    assert rates[1:] == pytest.approx([0.2 * k / 8 for k in range(1, 8)]) and 0 < rates[0] < 0.001
    assert all(0 <= learning_rate(config, d / 97, peak=0.2, epochs=10) <= 0.2 for d in range(98))
    if share < 1:
        assert learning_rate(config, share, peak=0.2, epochs=10) == pytest.approx(0.2)


def test_step_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("tq.meters.time.monotonic", lambda: clock[0])
    meter = StepMeter(torch.device("cpu"))
    flips: Callable[[], Tensor | None] = lambda: torch.tensor(0.06)  # noqa: E731
    clock[0] = 0.1
    p: Callable[[], Tensor | None] = lambda: torch.tensor([3.0, 4.5, 7.0])  # noqa: E731
    assert meter.add(torch.tensor(2.0), torch.tensor(3), 10, flips, p) is None
    clock[0] = 0.5
    fields = meter.add(torch.tensor(4.0), torch.tensor(1), 6, flips, lambda: None)
    assert fields == pytest.approx({"loss": 3.0, "acc": 25.0, "flip_rate": 0.03, "img_s": 32.0})
    clock[0] = 1.0
    fields = meter.add(torch.tensor(1.0), torch.tensor(1), 1, lambda: None, p)
    resolution = {"p_min": 3.0, "p_mean": 4.5, "p_max": 7.0}
    assert fields == pytest.approx({"loss": 1.0, "acc": 100.0, "img_s": 2.0} | resolution)
