"""tq.ptq: sensitivities, allocation of bits against brute force, sizes, the plot of the front."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq import checkpoint
from tq.attach import attach, quant_layers
from tq.byte_size import parse_size
from tq.file_size import file_bytes, layer_bytes
from tq.layers import channels_last
from tq.pareto_plot import plot_front
from tq.ptq.allocate import Point, allocate, pins, smallest_within, thinned
from tq.ptq.calibrate import calibrate
from tq.ptq.knapsack import Front, Option
from tq.ptq.ranges import weight_scale
from tq.ptq.sensitivity import Probe, Sensitivity
from tq.quantizers import LearnedWeight

WIDTHS = (1, 2, 4, 8)
Factory = Callable[..., nn.Module]


def table(layers: int, seed: int) -> tuple[list[Sensitivity], dict[str, dict[int, int]]]:
    """Random losses and costs; not every loss falls with the bits, and one is negative."""
    draw = random.Random(seed)
    rows, costs = [], {}
    for name in (f"l{i}" for i in range(layers)):
        unit = draw.randint(3, 99)
        costs[name] = {bits: unit * bits for bits in WIDTHS}
        rows += [Sensitivity(name, bits, draw.uniform(0, 2) / bits - 0.01, 0.0) for bits in WIDTHS]
    return rows, costs


def brute_force(rows: list[Sensitivity], costs: dict[str, dict[int, int]]) -> list[tuple[int, float]]:
    loss = {(r.layer, r.bits): max(r.loss, 0) for r in rows}
    return [
        (sum(costs[n][b] for n, b in zip(costs, choice, strict=True)),
         sum(loss[n, b] for n, b in zip(costs, choice, strict=True)))
        for choice in itertools.product(WIDTHS, repeat=len(costs))
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_allocate_is_exact(seed: int) -> None:
    rows, costs = table(5, seed)
    everything = brute_force(rows, costs)

    def size(bits: dict[str, int]) -> int:
        return 100 + sum(costs[n][b] for n, b in bits.items())

    for budget in (min(s for s, _ in everything), 400, 777, 10_000):
        if budget < min(s for s, _ in everything):
            continue
        found = allocate(rows, costs, file_bytes=size, target_bytes=budget + 100).chosen
        assert found.bytes == size(found.bits) <= budget + 100
        assert found.loss == pytest.approx(min(loss for s, loss in everything if s <= budget))
    for limit in (0.3, 1.0, 3.0):
        within = [s for s, loss in everything if loss <= limit]
        if within:
            assert allocate(rows, costs, file_bytes=size, max_loss=limit).chosen.bytes == min(within) + 100


def test_allocate_pays_for_the_header() -> None:
    rows, costs = table(4, 9)

    def size(bits: dict[str, int]) -> int:
        counts = [list(bits.values()).count(b) for b in set(bits.values())]
        return 100 + sum(costs[n][b] for n, b in bits.items()) + 5 * (sum(counts) - max(counts))

    target = size(dict.fromkeys(costs, 2))
    chosen = allocate(rows, costs, file_bytes=size, target_bytes=target).chosen
    assert chosen.bytes == size(chosen.bits) <= target


def test_allocate_keeps_pins_and_says_why() -> None:
    rows, costs = table(4, 3)
    allocation = allocate(
        rows, costs, file_bytes=lambda bits: sum(costs[n][b] for n, b in bits.items()), target_bytes=700,
        pinned={"l0": (8, "--first-last 8")},
    )  # fmt: skip
    assert allocation.chosen.bits["l0"] == 8
    assert allocation.reasons["l0"] == "8 bits: pinned by --first-last 8"
    assert list(allocation.reasons) == list(costs)
    assert sum(line.endswith("the most nats per byte") for line in allocation.reasons.values()) <= 1
    assert all(line.startswith(f"{allocation.chosen.bits[n]} bits: ") for n, line in allocation.reasons.items())
    sizes, losses = [p.bytes for p in allocation.front], [p.loss for p in allocation.front]
    assert sizes == sorted(set(sizes)) and losses == sorted(set(losses), reverse=True)


def test_allocate_errors() -> None:
    rows, costs = table(3, 0)

    def size(bits: dict[str, int]) -> int:
        return sum(costs[n][b] for n, b in bits.items())

    smallest = size(dict.fromkeys(costs, 1))
    with pytest.raises(ValueError, match=f"smallest possible has {smallest} bytes"):
        allocate(rows, costs, file_bytes=size, target_bytes=smallest - 1)
    with pytest.raises(ValueError, match="cannot be met: with the most bits it is"):
        allocate([Sensitivity("l0", 8, 0.5, 0)], costs, file_bytes=size, max_loss=0.1)
    with pytest.raises(ValueError, match="give one of them"):
        allocate(rows, costs, file_bytes=size)
    with pytest.raises(ValueError, match="pinned to 16 bits by --override, not measured"):
        allocate(rows, costs, file_bytes=size, max_loss=1, pinned={"l1": (16, "--override")})
    with pytest.raises(ValueError, match="no measured layer"):
        allocate([], costs, file_bytes=size, max_loss=1)


def test_front_is_thinned_within_its_bound() -> None:
    draw = random.Random(1)
    units = [draw.randint(100, 5000) for _ in range(16)]
    options = {f"l{i}": [Option(b, b * u, draw.uniform(0.1, 9) / 4**b) for b in WIDTHS] for i, u in enumerate(units)}
    exact, rough = Front(options), Front(options, max_states=64)
    assert len(rough) <= 65 and len(exact) > 200
    assert (rough.bytes[0], rough.loss[-1]) == (exact.bytes[0], pytest.approx(exact.loss[-1]))
    slack = len(options) * (int(exact.bytes[-1]) // 64 + 1)
    for budget in range(int(exact.bytes[0]) + slack, int(exact.bytes[-1]), 997):
        best = exact.loss[exact.bytes <= budget - slack].min()
        assert rough.loss[rough.bytes <= budget].min() <= best + 1e-12
    assert len(thinned(exact, lambda bits: sum(bits.values()), count=9)) <= 9


@pytest.mark.parametrize("limit", [0.0, 0.5, 7.0, 99.0])
def test_smallest_within_finds_the_smallest_in_eight(limit: float) -> None:
    front = [Point(1000 + i, 1 - i / 128, {"l": i}) for i in range(128)]
    seen: list[int] = []

    def drop(bits: dict[str, int]) -> float:
        seen.append(bits["l"])
        return (127 - bits["l"]) / 10

    best, measured = smallest_within(front, drop, limit)
    assert best == next(p for p in front if (127 - p.bits["l"]) / 10 <= limit)
    assert len(seen) == len(measured) <= 8 and len(set(seen)) == len(seen)


def test_smallest_within_error() -> None:
    with pytest.raises(ValueError, match=r"the largest choice, 7 bytes, already drops 3\.00"):
        smallest_within([Point(5, 1, {}), Point(7, 0.5, {})], lambda bits: 3.0, 1.0)


def test_pins() -> None:
    names = ["conv1", "body.0", "body.1", "linear"]
    assert pins(names) == {"conv1": (8, "--first-last 8"), "linear": (8, "--first-last 8")}
    assert pins(names, first_last="same", override=("body.*=w4a8", "body.1=w2a8")) == {
        "body.0": (4, "--override body.*=w4a8"),
        "body.1": (2, "--override body.1=w2a8"),
    }


@pytest.mark.parametrize("name", ["resnet20", "odd", "cnn"])
def test_file_bytes_are_those_of_the_file(name: str, quantized: Factory, network: Factory) -> None:
    model = quantized(name, "w8a8", first_last="same")
    size, costs = file_bytes(model), layer_bytes(model)
    assert size({}) == checkpoint.predict_bytes(model)
    draw = random.Random(0)
    bits = {layer: draw.choice(WIDTHS) for layer in costs}
    other = attach(network(name), "w8a8", first_last="same", override=[f"{n}=w{b}a8" for n, b in bits.items()])
    assert size(bits) == checkpoint.predict_bytes(other) == len(checkpoint.to_bytes(_packed(other), checkpoint.Info()))
    stored = {n: layer.weight_packed.numel() for n, layer in _layers(_packed(other)).items()}
    assert stored == {n: costs[n][bits[n]] for n in stored}


def _packed(model: nn.Module) -> nn.Module:
    return checkpoint.convert(model)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return dict(checkpoint.packed_layers(model))


@pytest.mark.parametrize("name", ["resnet20", "odd", "branch"])
@pytest.mark.filterwarnings("ignore:torch.fx cannot read")
def test_sensitivity_is_that_of_the_evaluation_form(
    name: str, quantized: Factory, network: Factory, images: Callable[..., Tensor]
) -> None:
    model = quantized(name, "w4a8", first_last="same")
    batches = [channels_last(images(name, 5, seed=s)) for s in (3, 4)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    chosen = dict.fromkeys([*list(quant_layers(model))[:2], list(quant_layers(model))[-1]], (1, 4))
    steps: list[tuple[int, int]] = []
    rows = Probe(model, batches).rows(chosen, lambda done, of: steps.append((done, of)))
    assert steps == [(i + 1, 12) for i in range(12)]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [(r.layer, r.bits) for r in rows] == [(n, b) for n in chosen for b in (1, 4)]
    p = torch.cat([network(name)(x) for x in batches]).double().log_softmax(1)

    def loss(layer: str | None, bits: int) -> tuple[float, float]:
        kept = {n: m.weight_quantizer for n, m in quant_layers(model).items()}
        for n, m in quant_layers(model).items():
            m.weight_quantizer = None
            if n == layer:
                m.weight_quantizer = LearnedWeight(bits, m.weight)
                m.weight_quantizer.set_step(weight_scale(m.weight, bits, method="mse"))
        q = torch.cat([model(x) for x in batches]).double().log_softmax(1)
        for n, m in quant_layers(model).items():
            m.weight_quantizer = kept[n]
        return float(F.kl_div(q, p, reduction="batchmean", log_target=True)), float(
            (p.argmax(1) != q.argmax(1)).double().mean() * 100
        )

    with torch.no_grad():
        for row in rows:
            kl, changed = loss(row.layer, row.bits)
            assert row.loss == pytest.approx(kl - loss(None, 0)[0], rel=0.02, abs=2e-4)
            assert row.disagreement == pytest.approx(changed, abs=10.1)


def test_probe_measures_combinations(quantized: Factory, network: Factory, images: Callable[..., Tensor]) -> None:
    model = quantized("cnn", "w4a8", first_last="same")
    x = channels_last(images("cnn", 33))
    probe = Probe(model, [x[:16], x[16:]])
    bits = dict.fromkeys(quant_layers(model), 2)
    other = attach(network("cnn"), "w2a8", first_last="same")
    calibrate(other, [images("cnn", 5)])
    with torch.no_grad():
        p, q = network("cnn")(x).double().log_softmax(1), other.eval()(x).double().log_softmax(1)
    assert probe.loss(bits) == pytest.approx(float(F.kl_div(q, p, reduction="batchmean", log_target=True)), rel=1e-3)
    assert probe.disagreement(bits) == pytest.approx(float((p.argmax(1) != q.argmax(1)).double().mean()) * 100)


def test_sensitivity_errors(network: Factory, quantized: Factory, images: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="at least one calibration image"):
        Probe(quantized("cnn", "w4a8"), [])
    with pytest.raises(ValueError, match="no layer with quantized weights"):
        Probe(network("cnn"), [images("cnn")])


@pytest.mark.parametrize(
    ("text", "size"),
    [("60KB", 60_000), ("0.06MB", 60_000), ("60KiB", 61_440), ("61440", 61_440), ("1_000 b", 1000), ("1,234", 1234),
     ("2.5k", 2500), (" 1 GiB ", 2**30), ("0.07MB", 70_000)],
)  # fmt: skip
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is not a number"), ("-3KB", "is not a number"), ("KB", "is not a number"), ("60XB", "unknown unit 'XB'"),
     ("0", "less than one byte"), ("nan", "is not a number")],
)  # fmt: skip
def test_parse_size_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_size(text)


def test_plot_front(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    front, chosen = [(50_000.0, 1.0), (90_000.0, 0.1), (150_000.0, 0.01)], (90_000, 1.5)
    files = [
        plot_front(tmp_path / name, predicted=front, chosen=chosen, target_bytes=100_000).read_bytes()
        for name in ("a.svg", "b.svg")
    ]
    assert files[0] == files[1] and b"predicted loss" in files[0] and b"top-1 error of the file" in files[0]
    assert plot_front(tmp_path / "c.png", predicted=front, chosen=chosen).stat().st_size > 1000
    with pytest.raises(ValueError, match=r"must end in \.png"):
        plot_front(tmp_path / "a.gif", predicted=front, chosen=chosen)
    with pytest.raises(ValueError, match="no point to plot"):
        plot_front(tmp_path / "a.svg", predicted=[], chosen=chosen)
