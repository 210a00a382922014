"""tq.convert and tq.packed: predictions of the packed form equal the training form's bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tq import checkpoint
from tq.attach import quant_layers
from tq.conversion import convert
from tq.evaluate import evaluate, largest_difference
from tq.layers import QuantConv2d, QuantLayer, QuantLinear, channels_last
from tq.packed import PackedLayer, packed_layers
from tq.quantizers import LearnedStep, LearnedWeight

SCHEMES = ("w1a1", "w1a2", "w2a2", "w4a8", "w8a8", "w2a16", "w16a4")
FIRST_LAST = ("16", "8", "same")
Make = Callable[..., nn.Module]

pytestmark = pytest.mark.filterwarnings("ignore:torch.fx cannot read")


@torch.inference_mode()
def assert_equal(model: nn.Module, packed: nn.Module, x: Tensor) -> None:
    assert model(x).isfinite().all() and model(x).std() > 0
    for batch in (x, x[:1], channels_last(x)):
        assert torch.equal(packed(batch), model(batch))


CASES = [
    (name, scheme, ends) for name in ("lenet", "cnn", "odd", "branch") for scheme in SCHEMES for ends in FIRST_LAST
]
CASES += [("resnet20", scheme, FIRST_LAST[number % 3]) for number, scheme in enumerate(SCHEMES)]


@pytest.mark.parametrize(("name", "scheme", "first_last"), CASES)
def test_convert(quantized: Make, images: Callable[..., Tensor], name: str, scheme: str, first_last: str) -> None:
    model = quantized(name, scheme, first_last=first_last)
    for impl in ("auto", "reference"):
        packed = convert(model, impl=impl)
        assert packed_layers(packed).keys() == quant_layers(model).keys() and not quant_layers(packed)
        assert_equal(model, packed, images(name, 3))


@pytest.mark.parametrize(
    "options",
    [{"act_quantizer": "clip"}, {"act_quantizer": "pact"}, {"weight_quantizer": "lsq"}, {"granularity": "tensor"}],
)
@pytest.mark.parametrize("scheme", ["w1a1", "w4a4"])
def test_convert_with_every_quantizer(
    quantized: Make, images: Callable[..., Tensor], scheme: str, options: dict[str, str]
) -> None:
    model = quantized("odd", scheme, first_last="same", **options)
    assert_equal(model, convert(model), images("odd"))


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_convert_past_the_precision_of_float32(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(131, 5, 3, padding=1) if kind == "conv" else nn.Linear(1031, 5)
    nn.init.uniform_(layer.weight, 0.9, 1.2)
    weights, inputs = LearnedWeight(8, layer.weight), LearnedStep(8, signed=False)
    weights.set_step(torch.full((5,), 1.2 / 127))
    quant = QuantConv2d if kind == "conv" else QuantLinear
    model = nn.Sequential(quant.from_float(layer, weight_quantizer=weights, input_quantizer=inputs, bn=None)).eval()
    x = torch.rand(3, *((131, 5, 7) if kind == "conv" else (1031,))) * 55 + 200
    assert model[0].accumulate(x).abs().max() > 2**24
    for impl in ("auto", "reference"):
        assert_equal(model, convert(model, impl=impl), x)


@pytest.mark.parametrize("zero_point", [1, 77, 255])
def test_convert_with_zero_point(quantized: Make, images: Callable[..., Tensor], zero_point: int) -> None:
    model = quantized("odd", "w4a8", first_last="same")
    for layer in quant_layers(model).values():
        if not layer.input_quantizer.signed:
            layer.input_quantizer.set_range(0.05, zero_point)
    packed = convert(model)
    assert {layer.format.zero_point for layer in packed_layers(packed).values()} == {0, zero_point}
    assert_equal(model, packed, images("odd"))


def test_convert_after_training(quantized: Make, images: Callable[..., Tensor]) -> None:
    """Norm statistics, steps and weights have moved since attach; convert uses the newest."""
    model = quantized("lenet", "w2a4", first_last="same").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = convert(model)
    for seed in range(3):
        optimizer.zero_grad()
        model(images("lenet", 5, seed=seed)).logsumexp(1).sum().backward()
        optimizer.step()
    packed = convert(model)
    assert model.training and not packed.training
    assert_equal(model.eval(), packed, images("lenet"))
    assert not torch.equal(before(images("lenet")), packed(images("lenet")))


def test_convert_leaves_its_input_alone(quantized: Make) -> None:
    model = quantized("cnn", "w1a2")
    before = copy.deepcopy(model.state_dict())
    convert(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and isinstance(model.conv2, QuantLayer)


def test_convert_errors(network: Make, quantized: Make) -> None:
    with pytest.raises(ValueError, match=r"no quantized layer to pack; call tq.attach"):
        convert(network("cnn"))
    model = quantized("cnn", "w1a2")
    with pytest.raises(ValueError, match=r"impl"):
        convert(model, impl="cuda")
    model.conv3.weight.data[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer conv3 cannot be packed: .*NaN"):
        convert(model)


@pytest.mark.parametrize("scheme", ["w1a1", "w4a8", "w2a16", "w16a4"])
@pytest.mark.parametrize("name", ["lenet", "resnet20", "odd", "branch"])
def test_load_equals_the_training_form(
    quantized: Make, network: Make, images: Callable[..., Tensor], tmp_path: Path, name: str, scheme: str
) -> None:
    model = quantized(name, scheme, first_last="8")
    checkpoint.save(model, tmp_path / "m.safetensors")
    for impl in ("auto", "reference"):
        loaded = checkpoint.load(tmp_path / "m.safetensors", model=network(name, seed=9), impl=impl)
        assert_equal(model, loaded, images(name, 3))


def test_packed_codes_and_buffers(quantized: Make) -> None:
    packed = convert(quantized("odd", "w2a4"))
    layer = packed.grouped
    assert (
        isinstance(layer, PackedLayer)
        and layer.weight_packed.shape == (15, 7)
        and layer.weight_packed.dtype == torch.uint8
    )
    assert "15x3x3x3, w2a4" in repr(layer)
    assert set(layer.state_dict()) == {"weight_packed", "weight_scale", "bias", "input_scale"}
    assert not any(True for _ in layer.parameters())


def test_packed_conv_of_one_unbatched_image(quantized: Make) -> None:
    model = nn.Sequential(quantized("odd", "w2a16", first_last="same").plain).eval()
    x = torch.randn(11, 11, 3)
    for form in (model, convert(model)):
        assert torch.allclose(form(x), form(x[None])[0], atol=1e-6)


def test_compiled_packed_model(quantized: Make, images: Callable[..., Tensor]) -> None:
    packed = convert(quantized("lenet", "w1a2", first_last="same"))
    x = images("lenet", 3)
    torch._dynamo.reset()
    with torch.inference_mode():
        assert torch.equal(torch.compile(packed, fullgraph=True)(x), packed(x))


def test_evaluate(quantized: Make, images: Callable[..., Tensor]) -> None:
    model = quantized("lenet", "w1a2", first_last="same").train()
    x, y = images("lenet", 5), torch.tensor([0, 1, 2, 3, 6])
    whole, parts = evaluate(model, [(x, y)]), evaluate(convert(model), [(x[:2], y[:2]), (x[2:], y[2:])])
    assert model.training and largest_difference(whole.logits, parts.logits) == 0
    assert (whole.correct, whole.total, whole.loss) == (parts.correct, 5, pytest.approx(parts.loss))
    assert whole.accuracy == 20.0 * int((whole.logits.argmax(1) == y).sum())
    with pytest.raises(ValueError, match=r"no image"):
        evaluate(model, [])


def test_largest_difference() -> None:
    nan, inf = torch.nan, torch.inf
    a = torch.tensor([1.0, nan, inf])
    assert largest_difference(a, a.clone()) == 0
    assert largest_difference(a, torch.tensor([1.5, nan, inf])) == 0.5
    assert largest_difference(a, torch.tensor([1.0, 2.0, inf])) == inf
    assert largest_difference(a, torch.tensor([1.0, nan, 2.0])) == inf
    assert largest_difference(torch.empty(0), torch.empty(0)) == 0
