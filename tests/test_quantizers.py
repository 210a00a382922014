"""tq.quantizers: codes, ranges, and every gradient against its formula written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tq
from tq.attach import quant_layers
from tq.ptq.calibrate import calibrate
from tq.quantizers import (
    ACT_QUANTIZERS,
    PACT,
    ActQuantizer,
    Clip,
    LearnedOffset,
    LearnedStep,
    LearnedWeight,
    ScaledSign,
    act_range,
)
from triton_kernels.layout import code_range

RANGES = {(1, True): (-1, 1), (2, True): (-2, 1), (4, True): (-8, 7), (8, True): (-128, 127)}
RANGES |= {(1, False): (0, 1), (2, False): (0, 3), (4, False): (0, 15), (8, False): (0, 255)}


def value_of(quantizer: ActQuantizer, x: Tensor) -> Tensor:
    codes, scale = quantizer(x)
    return codes * scale


@pytest.mark.parametrize(("bits", "signed"), RANGES)
def test_ranges(bits: int, signed: bool) -> None:
    assert act_range(bits, signed=signed) == RANGES[bits, signed]
    assert code_range(bits) == RANGES[bits, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "signed"), RANGES)
@pytest.mark.parametrize("kind", ACT_QUANTIZERS)
def test_act_quantizer_codes(kind: str, bits: int, signed: bool, dtype: torch.dtype) -> None:
    quantizer = ACT_QUANTIZERS[kind](bits, signed=signed)
    quantizer.set_range(0.73)  # a step whose reciprocal is rounded
    low, high = RANGES[bits, signed]
    # multiples of half a step: a quotient instead of a product with the reciprocal rounds some of them otherwise
    ties = (torch.arange(-601, 601) * 0.5) * quantizer.scale().detach()
    x = torch.cat([ties, torch.randn(10_007) * 20]).to(dtype)[None]
    codes, scale = quantizer(x)
    exact = quantizer.codes(x)
    assert codes.dtype == exact.dtype == torch.float32
    assert torch.equal(codes, exact) and torch.equal(exact, exact.round())
    assert torch.equal(scale, quantizer.scale())
    assert exact.min() == low and exact.max() == high
    if (bits, signed) == (1, True):
        assert set(exact.unique().tolist()) == {-1, 1} and quantizer.codes(torch.zeros(1)) == 1
    else:
        wanted = (x.double() / quantizer.scale().double()).round().clamp(low, high)
        assert ((exact - wanted).abs() <= 1).all() and (exact != wanted).double().mean() < 0.05


def test_learned_step_with_zero_point() -> None:
    quantizer = LearnedStep(4, signed=False)
    quantizer.set_range(0.5, zero_point=3)
    x = torch.tensor([[-9.0, -1.5, -0.74, 0.0, 0.26, 6.0, 9.0]])
    wanted = torch.tensor([[-3.0, -3, -1, 0, 1, 12, 12]])
    assert torch.equal(quantizer.codes(x), wanted) and torch.equal(quantizer(x)[0], wanted)


def test_zero_point_is_in_the_state_dict() -> None:
    quantizer, other = LearnedStep(4, signed=True), LearnedStep(4, signed=True)
    assert set(quantizer.state_dict()) == {"step"}
    quantizer.set_range(0.5, zero_point=-3)
    saved = nn.Sequential(quantizer).state_dict()
    nn.Sequential(other).load_state_dict(saved)
    assert other.zero_point == -3 and isinstance(other.zero_point, int) and float(other.scale()) == 0.5
    assert copy.deepcopy(other).zero_point == -3
    # a checkpoint without the entry, as of before, means 0; the caller's dict is left whole
    other.load_state_dict({"step": torch.tensor(0.25)})
    assert other.zero_point == 0 and set(saved) == {"0.step", "0.zero_point"}


def test_zero_point_under_compile() -> None:
    quantizer = LearnedStep(4, signed=True)
    quantizer.set_range(0.5, zero_point=-3)
    torch.compiler.reset()
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    x = torch.randn(2, 9) * 5
    assert torch.equal(compiled(x)[0], quantizer(x)[0])
    compiled.load_state_dict({"_orig_mod.step": torch.tensor(0.5), "_orig_mod.zero_point": torch.tensor(5)})
    assert quantizer.zero_point == 5 and torch.equal(compiled(x)[0], quantizer(x)[0])


@pytest.mark.parametrize(("bits", "signed"), RANGES)
def test_clip_gradient_is_one_strictly_inside(bits: int, signed: bool) -> None:
    low, high = RANGES[bits, signed]
    x = torch.tensor([low - 1.0, low, low + 0.25, high - 0.25, high, high + 1.0], requires_grad=True)
    value_of(Clip(bits, signed=signed), x).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_pact_gradients(bits: int) -> None:
    quantizer = PACT(bits, signed=False)
    assert quantizer.alpha.item() == 2**bits - 1
    quantizer.set_range(1.7 / (2**bits - 1))
    alpha = quantizer.alpha.item()
    x = torch.tensor([[-2.0, 0.0, 1e-3, 0.3, 1.1, alpha - 1e-3, alpha + 1e-3, 5.0]], requires_grad=True)
    weights = torch.tensor([[3.0, 5, 7, 11, 13, 17, 19, 23]])
    (value_of(quantizer, x) * weights).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([[0.0, 0, 7, 11, 13, 17, 0, 0]]), rtol=1e-5)
    assert float(quantizer.alpha.grad) == pytest.approx(19 + 23, abs=1e-4)


def test_pact_alpha_has_no_gradient_inside() -> None:
    quantizer = PACT(2, signed=False)
    value_of(quantizer, torch.rand(1, 1001) * 2.9 + 0.05).sum().backward()
    assert abs(float(quantizer.alpha.grad)) < 1e-4 * 1001


def test_pact_gradients_below_a_signed_range() -> None:
    quantizer = PACT(2, signed=True)  # codes -2 .. 1: the lowest value is -2 alpha
    x = torch.tensor([[-9.0, -0.3, 0.4, 9.0]], requires_grad=True)
    (value_of(quantizer, x) * torch.tensor([[1.0, 10, 100, 1000]])).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([[0.0, 10, 100, 0]]))
    assert float(quantizer.alpha.grad) == pytest.approx(-2 + 1000)


@pytest.mark.parametrize("zero_point", [0, 1])
@pytest.mark.parametrize(("bits", "signed"), [key for key in RANGES if key != (1, True)])
def test_learned_step_gradients(bits: int, signed: bool, zero_point: int) -> None:
    quantizer = LearnedStep(bits, signed=signed)
    quantizer.set_range(0.3, zero_point)
    low, high = (bound - zero_point for bound in RANGES[bits, signed])
    v = torch.tensor([low - 0.7, low + 0.2, low + 0.9, high - 0.6, high - 0.1, high + 0.7])
    x = (v * 0.3)[None].requires_grad_()
    weights = torch.tensor([3.0, 5, 7, 11, 13, 17])
    (value_of(quantizer, x) * weights).sum().backward()
    inside = torch.tensor([0.0, 1, 1, 1, 1, 0])
    assert torch.allclose(x.grad[0], weights * inside, rtol=1e-5)
    of_step = torch.where(inside > 0, v.round() - v, v.clamp(low, high))
    wanted = float((weights * of_step).sum()) / (6 * RANGES[bits, signed][1]) ** 0.5
    assert float(quantizer.step.grad) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_learned_step_scales_its_gradient_by_features_not_batch() -> None:
    grads = []
    for batch in (1, 4):
        quantizer = LearnedStep(2, signed=False)
        value_of(quantizer, torch.full((batch, 5, 7), 9.0)).mean().backward()
        grads.append(float(quantizer.step.grad))
    assert grads[0] == pytest.approx(grads[1]) == pytest.approx(3 / (35 * 3) ** 0.5)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_learned_weight_gradients(bits: int, per_channel: bool) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(5, 3, 3, 1, requires_grad=True)
    quantizer = LearnedWeight(bits, weight, per_channel=per_channel)
    low, high = code_range(bits)
    quantizer.set_step(torch.linspace(0.3, 0.5, 5) * 2 / high if per_channel else torch.tensor([0.7 / high]))
    upstream = torch.randn(5, 3, 3, 1)
    codes, scale = quantizer(weight)
    assert scale.shape == (5,) and torch.equal(codes, codes.round()) and codes.min() >= low and codes.max() <= high
    (codes * scale.view(-1, 1, 1, 1) * upstream).sum().backward()
    v = weight.detach() / scale.detach().view(-1, 1, 1, 1)
    inside = (v >= low) & (v <= high)
    assert inside.any() and not inside.all()
    assert torch.allclose(weight.grad, upstream * inside, rtol=1e-5, atol=1e-6)
    exact = torch.where(v >= 0, 1.0, -1.0) if bits == 1 else v.round().clamp(low, high)
    of_step = (upstream * torch.where(inside, exact - v, exact)).flatten(1).sum(1)
    wanted = of_step / (9 * high) ** 0.5 if per_channel else of_step.sum(0, keepdim=True) / (45 * high) ** 0.5
    assert torch.allclose(quantizer.step.grad, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("per_channel", [True, False])
def test_scaled_sign(per_channel: bool) -> None:
    weight = torch.randn(5, 3, 3, 1)
    weight[0, 0, 0, 0] = 0.0
    weight.requires_grad_()
    quantizer = ScaledSign(per_channel=per_channel)
    codes, scale = quantizer(weight)
    magnitude = weight.detach().abs()
    assert torch.equal(codes, torch.where(weight >= 0, 1.0, -1.0)) and codes[0, 0, 0, 0] == 1
    assert torch.allclose(scale, magnitude.mean((1, 2, 3)) if per_channel else magnitude.mean().expand(5))
    upstream = torch.randn(5, 3, 3, 1)
    (codes * scale.view(-1, 1, 1, 1) * upstream).sum().backward()
    assert torch.allclose(weight.grad, upstream, rtol=1e-5)


def test_scaled_sign_held_by_optimizer() -> None:
    quantizer = ScaledSign()
    quantizer.held_by_optimizer = True
    weight = torch.tensor([[0.5, -0.5, 0.1], [2.0, 2.0, -2.0]])
    codes, scale = quantizer.train()(weight)
    assert torch.equal(codes, weight) and torch.equal(scale, torch.ones(2))
    codes, scale = quantizer.eval()(weight)
    assert torch.equal(codes, weight.sign()) and torch.allclose(scale, weight.abs().mean(1))


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_all_zero_weights_stay_finite(bits: int) -> None:
    weight = torch.zeros(3, 5, requires_grad=True)
    for quantizer in (LearnedWeight(bits, weight), ScaledSign()):
        codes, scale = quantizer(weight)
        (codes * scale[:, None]).sum().backward()
        assert codes.isfinite().all() and scale.isfinite().all() and weight.grad.isfinite().all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learned_offset_gradients(bits: int) -> None:
    """LSQ+ (arXiv 2004.09576), the derivatives after eq. 6, with each input's share written out."""
    quantizer = LearnedOffset(bits, signed=True)
    quantizer.set_range(0.3, 1)
    with torch.no_grad():
        quantizer.offset += 0.2
    assert quantizer.zero_point == 1
    x = torch.linspace(-50, 50, 401).view(1, -1).mul(0.02 if bits == 2 else 1.0).requires_grad_()
    upstream = torch.rand(1, 401, generator=torch.Generator().manual_seed(bits))
    codes, step = quantizer(x)
    assert torch.equal(codes.detach(), quantizer.codes(x.detach()))
    (codes * step * upstream).sum().backward()
    low, high = quantizer.qmin - 1, quantizer.qmax - 1
    by_step = by_offset = 0.0
    for value, g in zip(x.detach().flatten().tolist(), upstream.flatten().tolist(), strict=True):
        scaled = float(torch.tensor(value) * torch.tensor(0.3).reciprocal())
        if scaled < low or scaled > high:
            by_step += g * (low if scaled < low else high)
            by_offset -= g * 0.3
        else:
            by_step += g * (float(torch.tensor(scaled).round()) - scaled)
    factor = (401 * quantizer.qmax) ** -0.5
    assert float(quantizer.step.grad) == pytest.approx(by_step * factor, rel=1e-4)  # type: ignore[arg-type]
    assert float(quantizer.offset.grad) == pytest.approx(by_offset * factor, rel=1e-4)  # type: ignore[arg-type]
    inside = (x.detach() / 0.3 > low + 1e-3) & (x.detach() / 0.3 < high - 1e-3)
    assert torch.allclose(x.grad[inside], upstream[inside])  # type: ignore[index]


def test_learned_offset_is_packed_and_learned() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 5, 3))
    tq.attach(model, "w4a4", first_last="same", act_quantizer="lsq+")
    calibrate(model, [torch.randn(8, 3, 8, 8) + 1])
    before = {name: layer.input_quantizer.zero_point for name, layer in quant_layers(model).items()}
    assert all(before.values()), "shifted inputs need a zero point"
    offsets = [p for name, p in model.named_parameters() if name.endswith("offset")]
    optimizer = torch.optim.SGD(offsets, lr=300.0)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 8, 8) - 1).square().mean().backward()
        optimizer.step()
    after = {name: layer.input_quantizer.zero_point for name, layer in quant_layers(model).items()}
    assert after != before
    other = tq.attach(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 5, 3)),
        "w4a4", first_last="same", act_quantizer="lsq+",
    )  # fmt: skip
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(tq.convert(model)(x), other.eval()(x)) and torch.equal(model.eval()(x), other(x))
    for offset in torch.linspace(-3, 3, 101):
        quantizer = LearnedOffset(4, signed=True)
        with torch.no_grad():
            quantizer.offset.fill_(offset)
        codes = quantizer(torch.linspace(-9, 9, 40)[None])[0].detach()
        assert torch.equal(codes, codes.round())
    model.requires_grad_(False)
    assert {name: layer.input_quantizer.zero_point for name, layer in quant_layers(model).items()} == after
    unsigned = LearnedOffset(4, signed=False)
    assert unsigned.zero_point == 0 and not unsigned.offset.requires_grad
