"""Weight scales per group: quantizers against plain loops, and the same numbers from training form to file and ONNX."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tq import checkpoint
from tq.attach import attach, coverage, quant_layers
from tq.config import QuantizeConfig, TrainConfig
from tq.conversion import convert
from tq.dequantize import dequantized
from tq.export import weight_notes
from tq.file_info import Info
from tq.file_size import layer_bytes
from tq.fusion import fuse, left_alone
from tq.packed import Format, packed_layers
from tq.post_training import run
from tq.ptq.ranges import WEIGHT_METHODS, weight_scale
from tq.quantizers import LearnedWeight, ScaledSign, per_weight
from triton_kernels.layout import code_range, to_rows

Make = Callable[..., nn.Module]
Images = Callable[..., Tensor]
SCHEMES = ("w1a16", "w1a2", "w2a16", "w4a8", "w8a8", "w4a16")
LENET = {"name": "lenet", "args": {"num_classes": 7, "in_channels": 1, "image_size": 13}}
INFO = Info(model=LENET, data={"name": "digits", "channels": 1, "size": 13}, classes=tuple("0123456"))

pytestmark = pytest.mark.filterwarnings("ignore:torch.fx cannot read")


def parts(weight: Tensor, group: int) -> list[list[Tensor]]:
    """The groups of each channel, by a plain loop over the packed order."""
    return [[row[i : i + group] for i in range(0, len(row), group)] for row in to_rows(weight)]


@torch.inference_mode()
def assert_equal(model: nn.Module, packed: nn.Module, x: Tensor) -> None:
    assert model(x).isfinite().all() and model(x).std() > 0
    for batch in (x, x[:1]):
        assert torch.equal(packed(batch), model(batch))


@pytest.mark.parametrize("shape", [(5, 7, 3, 2), (5, 64), (3, 33)])
@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_weight_scale_of_every_group_is_its_own(shape: tuple[int, ...], method: str, bits: int) -> None:
    torch.manual_seed(0)
    weight, group = torch.randn(shape), 16
    scales = weight_scale(weight, bits, method=method, percentile=90.0, group=group)
    assert scales.shape == (shape[0], math.ceil(math.prod(shape[1:]) / group))
    for channel, row in enumerate(parts(weight, group)):
        for number, values in enumerate(row):
            wanted = weight_scale(values[None], bits, method=method, percentile=90.0)
            assert torch.equal(scales[channel, number], wanted[0])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_learned_weight_gradients(bits: int, memory: torch.memory_format) -> None:
    """LSQ's formula for each group's step, and the straight-through gradient of the weights."""
    torch.manual_seed(bits)
    weight = torch.randn(3, 5, 3, 1).contiguous(memory_format=memory).requires_grad_()
    quantizer = LearnedWeight(bits, weight, group=4)
    low, high = code_range(bits)
    assert quantizer.step.shape == (3, 4)
    means = torch.tensor([[float(p.detach().abs().mean()) for p in row] for row in parts(weight, 4)])
    assert torch.allclose(quantizer.step, 2 * means / high**0.5)
    quantizer.set_step(torch.linspace(0.3, 0.6, 12).view(3, 4) * 2 / high)
    upstream = torch.randn(3, 5, 3, 1)
    codes, scale = quantizer(weight)
    assert scale.shape == weight.shape and torch.equal(codes, codes.round())
    steps = torch.stack([to_rows(scale)[:, 4 * g] for g in range(4)], 1)
    assert torch.allclose(steps, quantizer.step) and torch.equal(to_rows(scale)[:, 0], to_rows(scale)[:, 3])
    (codes * scale * upstream).sum().backward()
    v = (weight / scale).detach()
    inside = (v >= low) & (v <= high)
    assert torch.allclose(weight.grad, upstream * inside, rtol=1e-5, atol=1e-6)
    exact = torch.where(v >= 0, 1.0, -1.0) if bits == 1 else v.round().clamp(low, high)
    slopes = parts(upstream * torch.where(inside, exact - v, exact), 4)
    # 45 weights over 12 steps: the last groups are shorter, the mean count is LSQ's
    wanted = torch.tensor([[float(p.sum()) for p in row] for row in slopes]) / (45 / 12 * high) ** 0.5
    assert torch.allclose(quantizer.step.grad, wanted, rtol=1e-3, atol=1e-4)


def test_scaled_sign() -> None:
    weight = torch.randn(3, 5, 3, 1, requires_grad=True)
    codes, scale = ScaledSign(group=4)(weight)
    for row, scales in zip(parts(weight.detach(), 4), parts(scale, 4), strict=True):
        for values, own in zip(row, scales, strict=True):
            assert torch.allclose(own, values.abs().mean().expand(len(own)))
    assert torch.equal(codes, torch.where(weight >= 0, 1.0, -1.0))


@pytest.mark.parametrize("group", [5, 32])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["lenet", "odd", "branch"])
def test_packed_and_loaded_equal_the_training_form(
    quantized: Make, network: Make, images: Images, tmp_path: Path, name: str, scheme: str, group: int
) -> None:
    model = quantized(name, scheme, first_last="8", granularity="group", group_size=group)
    paths = [tmp_path / n for n in "ab"]
    predicted = checkpoint.predict_bytes(model)
    assert checkpoint.save(model, paths[0]) == paths[0].stat().st_size == predicted
    for impl in ("auto", "reference"):
        packed = convert(model, impl=impl)
        assert any(layer.format.group == group for layer in packed_layers(packed).values())
        assert_equal(model, packed, images(name, 3))
        loaded = checkpoint.load(paths[0], model=network(name, seed=9), impl=impl)
        assert_equal(model, loaded, images(name, 3))
    checkpoint.save(loaded, paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    account = checkpoint.inspect(paths[0])
    assert account.file_bytes == account.predicted_bytes == predicted
    tensors = safetensors.torch.load_file(paths[0])
    assert tensors["tq.layers"].shape[1] == 10 and group in tensors["tq.layers"][:, 8]


def test_training_form_and_evaluation_form_agree(quantized: Make, images: Images) -> None:
    """The same layer computed by both formulas; float32 sums may differ in their order only."""
    torch.manual_seed(0)
    for kind in ("conv", "linear"):
        plain = nn.Sequential(nn.Conv2d(7, 5, 3, padding=1) if kind == "conv" else nn.Linear(63, 5))
        attach(plain, "w4a8", first_last="same", granularity="group", group_size=8)
        x = torch.randn(3, 7, 6, 5) if kind == "conv" else torch.randn(3, 63)
        with torch.no_grad():
            assert torch.allclose(plain.train()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    model = quantized("lenet", "w2a4", first_last="same", granularity="group", group_size=8).train()
    model(images("lenet", 5)).logsumexp(1).sum().backward()
    layers = quant_layers(model).values()
    assert all(layer.weight_quantizer.step.grad.abs().sum() > 0 for layer in layers if layer.grouped)
    assert {layer.accumulator_bound() for layer in layers if layer.grouped} == {0}


def test_groups_of_the_whole_channel_are_channels(quantized: Make, images: Images) -> None:
    """A layer whose channels are no longer than a group keeps its integer arithmetic."""
    wide = quantized("cnn", "w4a8", first_last="same", granularity="group", group_size=10**6)
    plain = quantized("cnn", "w4a8", first_last="same")
    assert checkpoint.to_bytes(convert(wide), Info()) == checkpoint.to_bytes(convert(plain), Info())
    mixed = convert(quantized("odd", "w4a8", first_last="same", granularity="group", group_size=27))
    found = {name: layer.integer for name, layer in packed_layers(mixed).items()}
    assert found == {
        "stem": False, "grouped": True, "depthwise": True, "flat": False, "plain": True, "head": True,
    }  # fmt: skip
    with torch.no_grad():
        fused = fuse(mixed, images("odd", 2))
        assert torch.equal(fused(images("odd", 5)), mixed(images("odd", 5)))
    assert left_alone(fused) == ["stem", "flat"]


def test_scales_are_in_the_account_and_the_metadata(quantized: Make, tmp_path: Path) -> None:
    model = quantized("lenet", "w4a16", granularity="group", group_size=32)
    checkpoint.save(model, tmp_path / "m", INFO)
    rows = {row.name: row for row in checkpoint.inspect(tmp_path / "m").rows}
    # 120 weights a channel are 4 groups, the last of 24
    assert rows["fc2.weight_packed"].bits == f"w4a16g32, {4 + 32 * 4 / 120:.2f} bits with scales"
    forms = {name: layer.format for name, layer in packed_layers(convert(model)).items()}
    assert rows["tq.weight_scale"].size_bytes == 4 * sum(math.prod(f.scale_shape) for f in forms.values())
    assert layer_bytes(model)["fc2"] == {b: 84 * (15 * b + 4 * 4) for b in (1, 2, 4, 8)}
    blob = (tmp_path / "m").read_bytes()
    config = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]["quantization_config"]
    weights = json.loads(config)["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"], weights["num_bits"]) == ("group", 32, 4)
    lines = {line.name: line for line in coverage(model)}
    assert lines["fc2"].scheme == "w4a16g32" and lines["fc2"].group == 32 and lines["conv1"].scheme == "float"
    notes = weight_notes(convert(model), "auto")
    assert any("weights of 4 bits with a scale for each 32: float32" in note for note in notes)


def test_a_target_size_counts_the_scales(network: Make, images: Images, tmp_path: Path) -> None:
    model = network("cnn")
    settings = {"granularity": "group", "group_size": 16, "effort": "none", "target_bytes": 40_000}
    found = run(model, [images("cnn", 16)], "w8a8", **settings)
    assert found.choice is not None
    written = checkpoint.save(model, tmp_path / "m")
    assert written == found.choice.allocation.chosen.bytes <= 40_000
    assert len({line.weight_bits for line in coverage(model)}) > 1


@pytest.mark.parametrize("scheme", ["w2a16", "w4a4", "w1a8"])
@pytest.mark.parametrize("effort", ["fast", "default"])
def test_recovery(network: Make, images: Images, scheme: str, effort: str) -> None:
    batches, model = [images("cnn", 24)], network("cnn")
    settings = {"granularity": "group", "group_size": 16, "first_last": "same"}
    plain = run(copy.deepcopy(model), batches, scheme, effort="none", **settings).model
    better = run(copy.deepcopy(model), batches, scheme, effort=effort, **settings).model
    with torch.no_grad():
        errors = [float((net(batches[0]) - model(batches[0])).square().mean()) for net in (plain, better)]
    assert errors[1] < errors[0]
    assert_equal(better, convert(better), images("cnn", 3, seed=7))


@pytest.mark.parametrize("bits", [2, 4])
def test_groups_lose_less_than_channels(bits: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 3, 3) * torch.randn(16, 8, 3, 3).exp()
    errors = []
    for kind in ({"per_channel": False}, {}, {"group": 36}, {"group": 9}):
        quantizer = LearnedWeight(bits, weight, **kind)
        quantizer.set_step(weight_scale(weight, bits, method="mse", **kind))
        codes, scale = quantizer(weight)
        errors.append(float((codes * per_weight(scale, weight) - weight).square().sum().detach()))
    assert all(after < 0.9 * before for before, after in pairwise(errors))


def test_dequantized_computes_what_weight_only_layers_do(quantized: Make, images: Images, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    checkpoint.save(quantized("lenet", "w4a16", granularity="group"), path, INFO)
    packed, plain = checkpoint.load(path), dequantized(path, INFO).eval()
    with torch.no_grad():
        assert torch.allclose(plain(images("lenet", 5)), packed(images("lenet", 5)), rtol=1e-4, atol=1e-4)


def test_bad_settings_are_one_sentence(network: Make) -> None:
    with pytest.raises(ValueError, match=r"group_size must be at least 1, got 0"):
        attach(network("cnn"), "w4a16", granularity="group", group_size=0)
    with pytest.raises(ValueError, match=r"unknown granularity 'groups'.*did you mean 'group'"):
        attach(network("cnn"), "w4a16", granularity="groups")
    for kind in (QuantizeConfig, TrainConfig):
        with pytest.raises(ValueError, match=r"group_size must be at least 1, got -3"):
            kind(granularity="group", group_size=-3)
        with pytest.raises(ValueError, match=r"group_size is of granularity group, but it is channel"):
            kind(group_size=64)
    with pytest.raises(ValueError, match=r"hysteresis-sgd has one scale a channel or a tensor"):
        TrainConfig(scheme="w1a2", optimizer="hysteresis-sgd", granularity="group")


def test_format_names() -> None:
    form = Format(4, 16, False, 0, (3, 5, 3, 3), group=32)
    assert form.name == "w4a16g32" and form.scale_shape == (3, 2)
    assert Format(4, 16, False, 0, (3, 5, 3, 3)).scale_shape == (3,)
