"""`tq.optim.INQScheduler`, `INQSGD`, `reset_lr_scheduler` and the codebook of `tq.quantizers.PowerOfTwo`."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
)  # fmt: skip

from tq.optim import INQSGD, QSGD, INQScheduler, QtAdam, QtAdamW, reset_lr_scheduler
from tq.quantizers import PowerOfTwo, magnitudes, nearest_power, top_exponent

PORTIONS = [0.5, 0.75, 0.875, 1.0]


def codebook(weight: Tensor, bits: int) -> list[float]:
    """0 and +-2^n2 .. +-2^n1, written out as in the paper's equations 2 and 3."""
    n1 = math.floor(math.log2(4 * float(weight.abs().max()) / 3))
    n2 = n1 + 1 - 2 ** (bits - 1) // 2
    powers = [2.0**i for i in range(n2, n1 + 1)]
    return [-p for p in reversed(powers)] + [0.0] + powers


def plain_nearest(value: float, weight: Tensor, bits: int) -> float:
    """Equation 4, with a loop over the codebook: between alpha and beta, |w| in [(alpha+beta)/2, 3 beta/2) is beta."""
    powers = [p for p in codebook(weight, bits) if p > 0]
    size = abs(value)
    found = 0.0
    for alpha, beta in zip([0.0, *powers], powers, strict=False):
        if (alpha + beta) / 2 <= size < 3 * beta / 2:
            found = beta
    if size >= 1.5 * powers[-1]:
        found = powers[-1]
    return math.copysign(found, value) if found else 0.0


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_codebook_and_its_rounding_are_the_papers(bits: int) -> None:
    weight = torch.randn(4000, generator=torch.Generator().manual_seed(bits)) * 0.3
    edges = torch.tensor([f * s for f in codebook(weight, bits) for s in (0.5, 0.75, 1.0, 1.5)])
    values = torch.cat([weight, edges, torch.nextafter(edges, torch.tensor(0.0))])
    values = values[values.abs() <= weight.abs().max()]
    top = torch.tensor(float(top_exponent(weight)))
    assert nearest_power(values, top, bits).tolist() == [plain_nearest(float(v), weight, bits) for v in values]
    quantizer = PowerOfTwo(bits, weight).eval()
    codes, scale = quantizer(weight[:, None])
    assert torch.equal(codes * scale[:, None], nearest_power(weight[:, None], top, bits))
    assert set(codes.abs().unique().tolist()) <= {0.0, *(2.0**i for i in range(magnitudes(bits)))}


@pytest.mark.parametrize("largest", [0.74, 0.75, 0.7500001, 1.0, 1.49, 1.5, 3.0, 1e-20])
def test_the_largest_power(largest: float) -> None:
    weight = torch.tensor([largest, -largest / 3])
    assert top_exponent(weight) == math.floor(math.log2(4 * float(weight[0]) / 3))


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.tensor([1.0, math.nan]), torch.tensor([math.inf])])
def test_weights_without_a_codebook_are_refused(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="trained network"):
        top_exponent(weight)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))
    return model.to(memory_format=torch.channels_last)


def trained_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 3, 5, 5, generator=generator), torch.randint(5, (8,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda groups: SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda groups: AdamW(groups, lr=0.05, weight_decay=0.1),
}


@pytest.mark.parametrize("strategy", ["pruning", "random"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_frozen_weights_never_change_again(name: str, strategy: str) -> None:
    model = network()
    weights = [p for p in model.parameters() if p.ndim > 1]
    optimizer = OPTIMIZERS[name](
        [{"params": weights, "weight_bits": 4}, {"params": [p for p in model.parameters() if p.ndim == 1]}]
    )
    inq = INQScheduler(optimizer, PORTIONS, strategy)
    books = [codebook(w.detach(), 4) for w in weights]
    held = [torch.zeros_like(w, dtype=torch.bool) for w in weights]
    values = [w.detach().clone() for w in weights]
    for portion in PORTIONS:
        before = [w.detach().clone() for w in weights]
        inq.step()
        assert inq.portion == portion
        for w, old, was, value, now, book in zip(weights, before, held, values, inq.frozen, books, strict=True):
            assert int(now.sum()) == round(portion * w.numel())
            assert bool((now | ~was).all()), "a frozen weight was set free"
            assert torch.equal(w[was], value[was])
            assert set(w[now].tolist()) <= set(book)
            assert torch.equal(w[~now], old[~now])
            if strategy == "pruning" and portion < 1:
                assert old[now & ~was].abs().min() >= old[~now].abs().max()
        held, values = [f.clone() for f in inq.frozen], [w.detach().clone() for w in weights]
        norm = model[1].weight.detach().clone()
        for seed in range(3):
            trained_step(model, optimizer, seed)
        for w, now, value in zip(weights, held, values, strict=True):
            assert torch.equal(w[now], value[now])
            assert portion == 1 or not torch.equal(w, value), "nothing is trained any more"
            assert all(not bool(t[now].any()) for t in optimizer.state[w].values() if t.shape == w.shape), (
                "momentum was kept"
            )
        assert not torch.equal(norm, model[1].weight), "norms train on after every weight is frozen"
    with pytest.raises(ValueError, match="all 4 portions"):
        inq.step()


def test_groups_are_taken_as_they_are() -> None:
    model = network()
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "weight_bits": 3}, {"params": rest, "weight_bits": None}]
    inq = INQScheduler(INQSGD(groups, weight_bits=4), PORTIONS)
    assert inq.bits == [4, 3] and inq.params[0] is weights[0] and inq.params[1] is weights[1]


def test_inq_leaves_alone_what_is_not_trained() -> None:
    model = network()
    fixed = next(p for p in model.parameters() if p.ndim > 1).requires_grad_(False)
    before = fixed.clone()
    inq = INQScheduler(INQSGD(model.parameters(), weight_bits=4), [1.0])
    inq.step()
    assert torch.equal(fixed, before) and all(p is not fixed for p in inq.params)


def test_inq_sgd_takes_what_sgd_takes() -> None:
    ours = INQSGD(network().parameters(), 0.1, 0.9, 0.0, 0.01, True, weight_bits=4)
    group = ours.param_groups[0]
    assert [group[name] for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov")] == [
        *(0.1, 0.9, 0.0, 0.01),
        True,
    ]
    plain = torch.optim.SGD(network().parameters(), 0.1, 0.9, 0.0, 0.01, True)
    assert {name: value for name, value in group.items() if name not in ("params", "weight_bits")} == {
        name: value for name, value in plain.param_groups[0].items() if name != "params"
    }


@pytest.mark.parametrize("kind", [QSGD, QtAdam, QtAdamW])
def test_inq_refuses_updates_that_depend_on_each_other(kind: type[Optimizer]) -> None:
    groups = [{"params": list(network().parameters())[:1], "weight_bits": 4}]
    with pytest.raises(ValueError, match=f"such as SGD or AdamW, got {kind.__name__}"):
        INQScheduler(kind(groups), PORTIONS)  # type: ignore[call-arg]


def test_the_random_choice_follows_its_seed() -> None:
    def frozen(seed: int) -> list[bool]:
        optimizer = INQSGD(network().parameters(), weight_bits=5)
        inq = INQScheduler(optimizer, PORTIONS, "random", seed=seed)
        inq.step()
        return inq.frozen[0].flatten().tolist()

    assert frozen(1) == frozen(1) != frozen(2)


def test_inq_resumes_in_the_middle() -> None:
    model = network()
    optimizer = INQSGD(model.parameters(), lr=0.1, momentum=0.9, weight_bits=3)
    inq = INQScheduler(optimizer, PORTIONS)
    for _ in range(2):
        inq.step()
        trained_step(model, optimizer, 0)
    other = network()
    again = INQSGD(other.parameters(), lr=0.1, momentum=0.9, weight_bits=3)
    resumed = INQScheduler(again, PORTIONS)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(inq.state_dict()))
    for m, o, i in ((model, optimizer, inq), (other, again, resumed)):
        for seed in range(3):
            trained_step(m, o, seed)
        i.step()
        trained_step(m, o, 9)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("portions", "match"),
    [([], "increasing"), ([0.5, 0.4, 1.0], "increasing"), ([0.5, 0.5, 1.0], "increasing"), ([0.0, 1.0], "above 0"),
     ([0.5, 0.9], "end at 1"), ([0.5, 1.5], "end at 1"), ([0.5, math.nan, 1.0], "increasing")],
)  # fmt: skip
def test_bad_portions(portions: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        INQScheduler(INQSGD(network().parameters()), portions)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="strategy of pruning, random, got 'largest'"):
        INQScheduler(INQSGD(network().parameters()), PORTIONS, "largest")
    with pytest.raises(ValueError, match="no"):
        INQScheduler(SGD(network().parameters(), lr=0.1), PORTIONS)
    for bits in (1, 9, 16):
        with pytest.raises(ValueError, match="weight_bits from 2 to 8"):
            INQScheduler(INQSGD(network().parameters(), weight_bits=bits), PORTIONS)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: MultiStepLR(o, [2, 3]),
        lambda o: CosineAnnealingLR(o, 6),
        lambda o: ExponentialLR(o, 0.5),
        lambda o: LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    ],
    ids=["multistep", "cosine", "exponential", "lambda"],
)
def test_the_learning_rate_starts_anew(make: Any) -> None:
    optimizer = SGD(network().parameters(), lr=0.1)
    scheduler = make(optimizer)

    def rates() -> list[float]:
        found = []
        for _ in range(5):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    first = rates()
    assert len(set(first)) > 1
    reset_lr_scheduler(scheduler)
    assert rates() == first


def test_schedulers_that_cannot_start_anew_are_refused() -> None:
    optimizer = SGD(network().parameters(), lr=0.1)
    parts = [ExponentialLR(optimizer, 0.9), ExponentialLR(optimizer, 0.5)]
    for odd in (ReduceLROnPlateau(optimizer), SequentialLR(optimizer, parts, [2]), "cosine"):
        with pytest.raises(ValueError, match="function of its epoch"):
            reset_lr_scheduler(odd)  # type: ignore[arg-type]
