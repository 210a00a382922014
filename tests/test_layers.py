"""tq.layers: the training form against plain torch, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq.attach import attach, quant_layers
from tq.layers import EXACT_FLOAT32, QuantConv2d, QuantLayer, QuantLinear, channels_last
from tq.quantizers import ACT_QUANTIZERS, LearnedStep, LearnedWeight, ScaledSign

SCHEMES = ("w1a1", "w1a2", "w2a2", "w4a8", "w8a8", "w2a16", "w16a4")


def make_layer(kind: str, w: int, a: int, *, signed: bool = True, zero_point: int = 0) -> tuple[QuantLayer, Tensor]:
    """A layer with bias, norm and odd sizes, and an input for it."""
    torch.manual_seed(w * 17 + a)
    conv = kind == "conv"
    layer = nn.Conv2d(6, 9, (3, 2), (2, 1), (1, 2), (1, 2), groups=3) if conv else nn.Linear(13, 9)
    bn = nn.BatchNorm2d(9) if conv else nn.BatchNorm1d(9)
    with torch.no_grad():
        bn.weight.normal_()
        bn.bias.normal_()
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
    weights = None if w == 16 else LearnedWeight(w, layer.weight) if w > 1 else ScaledSign()
    inputs = None if a == 16 else LearnedStep(a, signed=signed)
    if inputs is not None:
        inputs.set_range(2.0 / inputs.qmax, zero_point)
    quant = QuantConv2d if conv else QuantLinear
    return quant.from_float(layer, weight_quantizer=weights, input_quantizer=inputs, bn=bn), torch.randn(
        5, *((6, 7, 9) if conv else (13,))
    )


def fake_quantized(layer: QuantLayer, x: Tensor) -> Tensor:
    """The same layer as plain float64 torch operations on values instead of codes, before the norm."""
    if layer.input_quantizer is not None:
        codes, scale = layer.input_quantizer(x)
        x = codes * scale
    codes, scale = layer.weight_codes()
    weight = (codes * scale.view(-1, *[1] * (codes.ndim - 1))).double()
    bias = layer.bias.double()
    if isinstance(layer, QuantConv2d):
        return F.conv2d(x.double(), weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x.double(), weight, bias)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_forward(kind: str, scheme: str) -> None:
    w, a = (int(part) for part in scheme[1:].split("a"))
    layer, x = make_layer(kind, w, a)
    for training in (True, False):
        layer.train(training)
        wanted = fake_quantized(layer, x)
        bn = layer.bn
        wanted = F.batch_norm(
            wanted,
            bn.running_mean.double(),
            bn.running_var.double(),
            bn.weight.double(),
            bn.bias.double(),
            training,
            0.0,
        )
        assert torch.allclose(layer(x).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_backward(kind: str, scheme: str) -> None:
    w, a = (int(part) for part in scheme[1:].split("a"))
    layer, x = make_layer(kind, w, a)
    layer.bn = None
    grads = []
    for forward in (layer, lambda x: fake_quantized(layer, x)):
        layer.zero_grad()
        own = x.clone().requires_grad_()
        y = forward(own)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        grads.append([own.grad, *(p.grad for p in layer.parameters())])
    for got, wanted in zip(*grads, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_accumulators_are_integers(kind: str) -> None:
    layer, x = make_layer(kind, 4, 4, signed=False, zero_point=5)
    layer.eval()
    q = layer.input_quantizer
    codes = ((x / q.scale()).round() + 5).clamp(0, 15) - 5
    weight = layer.weight_codes()[0].detach()
    acc = layer.accumulate(x)
    assert torch.equal(acc, acc.round()) and acc.abs().max() <= layer.accumulator_bound() < EXACT_FLOAT32
    assert torch.equal(acc.double(), layer.contract(codes.double(), weight.double()))


def test_accumulators_past_float32() -> None:
    linear = nn.Linear(1031, 3)
    nn.init.constant_(linear.weight, 1.0)
    weights, inputs = LearnedWeight(8, linear.weight), LearnedStep(8, signed=False)
    weights.set_step(torch.full((3,), 1 / 127))
    layer = QuantLinear.from_float(linear, weight_quantizer=weights, input_quantizer=inputs, bn=None).eval()
    assert layer.accumulator_bound() == 1031 * 127 * 255 > EXACT_FLOAT32
    x = torch.full((1, 1031), 255.0)
    x[0, 0] = 254.0
    assert layer.accumulate(x)[0, 0] == torch.tensor(1031 * 127 * 255 - 127, dtype=torch.float64).float()


def test_bf16_inputs_and_autocast() -> None:
    layer, x = make_layer("conv", 2, 4)
    layer.train()
    assert layer.eval()(x.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        y = layer.train()(x)
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in layer.parameters())


def test_observer_sees_float_inputs_and_the_float_layer_runs(
    network: Callable[..., nn.Module], images: Callable[..., Tensor]
) -> None:
    plain, x = network("lenet"), images("lenet")
    model = attach(network("lenet"), "w1a1", first_last="same").eval()
    seen: list[Tensor] = []

    class Keep:
        def update(self, x: Tensor) -> None:
            seen.append(x)

    for layer in quant_layers(model).values():
        layer.observer = Keep()
    assert torch.allclose(model(x), plain(x), atol=1e-5)
    assert len(seen) == 5 and torch.equal(seen[0], x)


@pytest.mark.parametrize("kind", ACT_QUANTIZERS)
def test_training_form_has_gradients_everywhere(
    quantized: Callable[..., nn.Module], images: Callable[..., Tensor], kind: str
) -> None:
    model = quantized("odd", "w2a4", first_last="same", act_quantizer=kind).train()
    model(images("odd")).square().sum().backward()
    # LSQ+ learns the zero point of signed inputs only
    learned = [p for p in model.parameters() if p.requires_grad]
    assert len(learned) >= 10 and all(p.grad is not None and p.grad.isfinite().all() for p in learned)


def test_from_float_refuses_other_padding() -> None:
    with pytest.raises(ValueError, match="zero padding given in numbers"):
        QuantConv2d.from_float(nn.Conv2d(3, 3, 3, padding="same"), weight_quantizer=None, input_quantizer=None, bn=None)


def test_channels_last() -> None:
    x = torch.randn(2, 3, 5, 7)
    assert channels_last(x).is_contiguous(memory_format=torch.channels_last) and torch.equal(channels_last(x), x)
    assert channels_last(x[0]).shape == (3, 5, 7)
