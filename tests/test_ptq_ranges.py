"""tq.ptq: histograms, scales against brute force, calibration of a network."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tq.attach import attach, quant_layers
from tq.conversion import convert
from tq.ptq.calibrate import calibrate
from tq.ptq.ranges import (
    ACT_METHODS,
    BINS,
    WEIGHT_METHODS,
    Histogram,
    act_affine,
    act_scale,
    entropy_threshold,
    weight_scale,
)
from tq.quantizers import PACT, LearnedStep, act_range
from triton_kernels.layout import code_range


def histogram(*batches: Tensor) -> Histogram:
    seen = Histogram()
    for x in batches:
        seen.update(x)
    return seen


def power_error(x: Tensor, scale: float, low: int, high: int, power: int) -> float:
    x = x.double().flatten()
    return float(((x / scale).round().clamp(low, high) * scale - x).abs().pow(power).sum())


def squared_error(x: Tensor, scale: float, low: int, high: int) -> float:
    return power_error(x, scale, low, high, 2)


def test_histogram_growth_keeps_counts() -> None:
    # Drawn alike every time: with other values one may lie on an edge, where histc rounds either way (71 of 400 draws).
    torch.manual_seed(0)
    batches = [torch.randn(63, 5) * size for size in (0.01, 1.0, 0.3, 77.0)]
    seen = histogram(*batches)
    x = torch.cat(batches)
    assert seen.counts.sum() == x.numel()
    assert (seen.low, seen.high) == (x.min(), x.max()) and seen.limit >= x.abs().max()
    once = torch.histc(x, BINS, -seen.limit, seen.limit).double()
    # doubling merges whole bins, so the stream gives the very histogram of all values at once
    assert torch.equal(seen.counts, once)


def test_histogram_counts_zeros_that_come_first() -> None:
    seen = histogram(torch.zeros(31), torch.full((31,), 2.0))
    assert seen.counts.sum() == 62 and seen.counts[BINS // 2] == 31


def test_histogram_counts_past_the_precision_of_float32() -> None:
    x = torch.zeros(1).expand(2**24 + 99).contiguous()
    x[-1] = 1.0
    assert histogram(x).counts[BINS // 2] == 2**24 + 98


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_histogram_refuses_what_has_no_range(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        histogram(torch.tensor([1.0, value]))


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_act_scale(bits: int, signed: bool, method: str) -> None:
    torch.manual_seed(bits)
    x = torch.randn(9999) if signed else torch.randn(9999).relu()
    low, high = act_range(bits, signed=signed)
    seen = histogram(x[:77], x[77:])
    scale = act_scale(seen, low, high, method=method, percentile=99.0)
    largest = float(max(x.max() / high, x.min() / low if low else 0))
    if method == "minmax":
        assert scale == pytest.approx(largest)
    elif method == "percentile":
        assert scale == pytest.approx(min(largest, float(x.abs().quantile(0.99)) / high), rel=0.01)
    else:
        errors = [squared_error(x, largest * f / 100, low, high) for f in range(2, 101)]
        assert squared_error(x, scale, low, high) <= 1.01 * min(errors)


def test_act_scale_of_one_bit_signed_inputs_is_the_mean_magnitude() -> None:
    x = torch.randn(5001)
    for method in ACT_METHODS:
        assert act_scale(histogram(x), -1, 1, method=method) == pytest.approx(float(x.abs().mean()), rel=0.01)


@pytest.mark.parametrize("method", ACT_METHODS)
def test_act_scale_of_constant_inputs(method: str) -> None:
    assert act_scale(histogram(torch.zeros(5)), 0, 3, method=method) == 1.0
    assert act_scale(histogram(-torch.ones(5)), 0, 3, method=method) == 1.0
    scale = act_scale(histogram(torch.full((5,), 6.0)), 0, 3, method=method)
    assert squared_error(torch.full((5,), 6.0), scale, 0, 3) < 0.1


def test_act_scale_errors() -> None:
    with pytest.raises(ValueError, match="no images"):
        act_scale(Histogram(), 0, 3, method="mse")
    with pytest.raises(ValueError, match="unknown range method 'kl'"):
        act_scale(histogram(torch.ones(1)), 0, 3, method="kl")


def affine_error(x: Tensor, scale: float, zero: int, low: int, high: int) -> float:
    return squared_error(x, scale, low - zero, high - zero)


def slow_entropy(counts: list[float], levels: int) -> float:
    """Migacz 2017, slide "Pseudocode", literally."""
    counts = [counts[1], *counts[1:]]
    used = max(i for i, c in enumerate(counts) if c) + 1
    best, best_end = float("inf"), used
    for i in range(levels, used + 1):
        p, q = counts[:i], [0.0] * i
        p[-1] += sum(counts[i:])
        groups = [[j for j in range(i) if j * levels // i == g] for g in range(levels)]
        for group in groups:
            filled = [j for j in group if counts[j]]
            for j in filled:
                q[j] = sum(counts[k] for k in group) / len(filled)
        mass, total = sum(q), sum(p)
        if not mass:
            continue
        divergence = sum(a / total * math.log(a / total / ((b or 1e-4) / mass)) for a, b in zip(p, q, strict=True) if a)
        if divergence < best - 1e-12:
            best, best_end = divergence, i
    return best_end / len(counts)


@pytest.mark.parametrize("levels", [2, 4, 16, 63])
@pytest.mark.parametrize("scale", [3.0, 9.0, 30.0])
def test_entropy_threshold(levels: int, scale: float) -> None:
    torch.manual_seed(levels)
    x = torch.cat([torch.randn(3000).abs() * scale, torch.tensor([127.0])])
    counts = torch.histc(x.clamp_max(127), 128, 0, 128).double()
    assert entropy_threshold(counts, levels) == slow_entropy(counts.tolist(), levels)


def test_entropy_threshold_of_few_bins() -> None:
    assert entropy_threshold(torch.zeros(9).double(), 4) == 1.0
    assert entropy_threshold(torch.tensor([5.0, 3, 1, 0, 0, 0]).double(), 4) == 1.0


def test_act_scale_by_entropy_clips_outliers_only() -> None:
    torch.manual_seed(0)
    body = torch.rand(100_000)
    seen = histogram(torch.cat([body, torch.tensor([10.0])]))
    assert act_scale(seen, 0, 255, method="entropy") == pytest.approx(1 / 255, rel=0.3)  # not fewer bins than levels
    assert act_scale(histogram(body), 0, 255, method="entropy") == pytest.approx(1 / 255, rel=0.02)


@pytest.mark.parametrize("method", ACT_METHODS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_act_affine(bits: int, method: str) -> None:
    torch.manual_seed(bits)
    x = torch.nn.functional.gelu(torch.randn(9999) * 2)
    low, high = act_range(bits, signed=True)
    seen = histogram(x)
    scale, zero = act_affine(seen, low, high, method=method, percentile=99.0)
    assert scale > 0 and isinstance(zero, int) and low <= zero <= high
    if method == "minmax":
        assert scale == pytest.approx(float(x.max() - x.min()) / (high - low))
        assert zero == round(low - float(x.min()) / scale)
    error = affine_error(x, scale, zero, low, high)
    symmetric = squared_error(x, act_scale(seen, low, high, method="mse"), low, high)
    if method == "mse":
        assert error < 0.6 * symmetric
        ends = [(a / 20, b / 20) for a in range(1, 21) for b in range(1, 21)]
        for a, b in ends:
            step = float(b * x.max() - a * x.min()) / (high - low)
            assert error <= 1.02 * affine_error(x, step, round(low - a * float(x.min()) / step), low, high)


@pytest.mark.parametrize("method", ACT_METHODS)
def test_act_affine_keeps_zero_in_the_range(method: str) -> None:
    for x in (torch.linspace(5.0, 9.0, 999), -torch.linspace(5.0, 9.0, 999)):
        scale, zero = act_affine(histogram(x), -128, 127, method=method)
        assert zero == (-128 if x[0] > 0 else 127)
        if method != "entropy":  # made for values that are dense near zero
            assert affine_error(x, scale, zero, -128, 127) / 999 < 0.01
    assert act_affine(histogram(torch.zeros(5)), -8, 7, method=method) == (1.0, 0)


def test_act_affine_errors() -> None:
    with pytest.raises(ValueError, match="no images"):
        act_affine(Histogram(), -8, 7, method="mse")
    with pytest.raises(ValueError, match="unknown range method 'kl': expected minmax, percentile, mse, entropy"):
        act_affine(histogram(torch.ones(1)), -8, 7, method="kl")


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_weight_scale(bits: int, method: str, per_channel: bool) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(5, 3, 7, 3) * torch.tensor([1.0, 0.1, 3.0, 0.7, 20.0]).view(-1, 1, 1, 1)
    low, high = code_range(bits)
    scales = weight_scale(weight, bits, method=method, percentile=98.0, per_channel=per_channel)
    rows = list(weight.flatten(1)) if per_channel else [weight.flatten()]
    assert scales.shape == (len(rows),)
    for row, scale in zip(rows, scales.tolist(), strict=True):
        largest = float(max(row.max() / high, row.min() / low))
        if bits == 1:
            assert scale == pytest.approx(float(row.abs().mean()))
        elif method == "minmax":
            assert scale == pytest.approx(largest)
        elif method == "percentile":
            assert scale == pytest.approx(min(largest, float(row.abs().quantile(0.98)) / high))
        else:
            power = 2 if method == "mse" else 3
            errors = [power_error(row, largest * f / 100, low, high, power) for f in range(2, 101)]
            assert power_error(row, scale, low, high, power) <= 1.02 * min(errors)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_weight_scale_of_constant_channels(method: str) -> None:
    weight = torch.stack([torch.zeros(9), torch.full((9,), 0.5), torch.full((9,), -0.5)])
    scales = weight_scale(weight, 4, method=method)
    assert scales.isfinite().all() and (scales >= 0).all()
    for row, scale in zip(weight[1:], scales[1:].tolist(), strict=True):
        assert squared_error(row, scale, -8, 7) < 0.05


def test_weight_scale_error() -> None:
    with pytest.raises(ValueError, match="unknown range method 'kl'"):
        weight_scale(torch.ones(3, 3), 4, method="kl")


@pytest.mark.parametrize("kind", [LearnedStep, PACT])
def test_calibrate(network: Callable[..., nn.Module], images: Callable[..., Tensor], kind: type) -> None:
    model = attach(network("cnn"), "w4a8", act_quantizer="lsq" if kind is LearnedStep else "pact").train()
    norm = quant_layers(model)["conv2"].bn
    before = norm.running_mean.clone()
    largest = []
    hook = model.conv2.register_forward_pre_hook(lambda _, args: largest.append(float(args[0].max())))
    calibrate(model, (images("cnn", 3, seed=s) for s in range(2)), act_range="minmax", weight_range="minmax")
    hook.remove()
    layer = model.conv2
    assert isinstance(layer.input_quantizer, kind)
    assert float(layer.input_quantizer.scale()) == pytest.approx(max(largest) / 255, rel=1e-6)
    rows = layer.weight.detach().flatten(1)
    assert torch.allclose(layer.weight_quantizer.step, torch.maximum(rows.amax(1) / 7, rows.amin(1) / -8))
    assert model.training and layer.observer is None and torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_calibrate_with_zero_points(
    network: Callable[..., nn.Module], images: Callable[..., Tensor], bits: int
) -> None:
    model = attach(network("odd"), f"w4a{bits}", first_last="same")
    x = images("odd", 7).abs() - 0.3  # mostly positive
    calibrate(model, [x], act_symmetric=False)
    zeros = {n: layer.input_quantizer.zero_point for n, layer in quant_layers(model).items()}
    signed = {n for n, layer in quant_layers(model).items() if layer.input_quantizer.signed}
    assert zeros["stem"] < 0 and {n for n, zero in zeros.items() if zero} <= signed
    packed, twin = convert(model), attach(network("odd"), f"w4a{bits}", first_last="same").eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(packed(x), model.eval()(x)) and torch.equal(twin(x), packed(x))


@pytest.mark.parametrize(("quantizer", "scheme"), [("pact", "w4a4"), ("clip", "w4a4"), ("lsq", "w4a1")])
def test_calibrate_gives_no_zero_point_where_there_is_none(
    network: Callable[..., nn.Module], images: Callable[..., Tensor], quantizer: str, scheme: str
) -> None:
    model = attach(network("odd"), scheme, first_last="same", act_quantizer=quantizer)
    calibrate(model, [images("odd", 7).abs()], act_symmetric=False)
    assert all(layer.input_quantizer.zero_point == 0 for layer in quant_layers(model).values())


def test_calibrate_errors(network: Callable[..., nn.Module], images: Callable[..., Tensor]) -> None:
    model = attach(network("cnn"), "w4a8")
    with pytest.raises(ValueError, match="no images"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="NaN or infinity"):
        calibrate(model, [images("cnn") * torch.nan])
    assert all(layer.observer is None for layer in quant_layers(model).values())
