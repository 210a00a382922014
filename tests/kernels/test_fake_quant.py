"""Fused fake quantization: the values and gradients of tq.quantizers, as operators and as kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tq.quantizers import PACT, LearnedStep, LearnedWeight, ScaledSign
from triton_kernels import fake_quant, fake_quant_kernels
from triton_kernels.fake_quant_kernels import Rule
from triton_kernels.launch import interpreted

Quantizer = Callable[[Tensor], tuple[Tensor, Tensor]]
ACTS = [(1, True, 0), (1, False, 0), (2, False, 1), (4, True, 0), (8, False, 128)]
WEIGHTS = [(bits, per_channel) for bits in (1, 2, 4, 8) for per_channel in (True, False)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def lsq_inputs(bits: int, signed: bool, zero_point: int) -> tuple[LearnedStep, Quantizer]:
    q = LearnedStep(bits, signed=signed).to(DEVICE)
    q.set_range(3.3 / q.qmax, zero_point)
    return q, lambda x: fake_quant.learned_step(x, q.step, q.qmin, q.qmax, q.zero_point, binary=q.binary)


def pact(bits: int, signed: bool, zero_point: int = 0) -> tuple[PACT, Quantizer]:
    q = PACT(bits, signed=signed).to(DEVICE)
    q.set_range(-1.7 / q.qmax)  # training may take alpha below zero; its magnitude counts
    return q, lambda x: fake_quant.pact(x, q.alpha, q.qmin, q.qmax, binary=q.binary)


def lsq_weight(bits: int, per_channel: bool, weight: Tensor) -> tuple[LearnedWeight, Quantizer]:
    q = LearnedWeight(bits, weight, per_channel=per_channel).to(DEVICE)
    with torch.no_grad():
        q.step[-1] *= -1
    return q, lambda w: fake_quant.learned_weight(w, q.step, bits)


def gradients(run: Quantizer, x: Tensor, *parameters: Tensor, seed: int = 0) -> tuple[Tensor, ...]:
    """codes, scale, and the gradients of x and the parameters for a random gradient of both."""
    x = x.detach().clone().requires_grad_()
    codes, scale = run(x)
    torch.manual_seed(seed)
    # of x's sign, so that the terms of a parameter's gradient do not cancel and leave only their rounding errors
    upstream, of_scale = torch.randn(codes.shape).to(DEVICE).copysign(x.detach()), -torch.rand(scale.shape).to(DEVICE)
    loss = (codes * upstream).sum()
    if scale.requires_grad:
        loss = loss + (scale * of_scale).sum()
    return codes.detach(), scale.detach(), *torch.autograd.grad(loss, [x, *parameters])


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=0)


def check(quantizer: Any, run: Quantizer, x: Tensor) -> None:
    parameters = list(quantizer.parameters())
    got, want = gradients(run, x, *parameters), gradients(quantizer, x, *parameters)
    for a, b in zip(got[:3], want[:3], strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert torch.equal(got[2], want[2])
    for a, b in zip(got[3:], want[3:], strict=True):
        assert close(a, b)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 5, 5), (63, 1000)])
@pytest.mark.parametrize("make", [lsq_inputs, pact])
@pytest.mark.parametrize(("bits", "signed", "zero_point"), ACTS)
def test_inputs(make: Any, bits: int, signed: bool, zero_point: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(bits)
    x = torch.randn(shape) * 2
    x.view(-1)[::3] = (x.view(-1)[::3] * 2).round() / 2 * 3.3 / 15  # ties between codes
    check(*make(bits, signed, zero_point), x.to(DEVICE))


@pytest.mark.parametrize("shape", [(1, 1), (5, 3, 3, 3), (9, 1001)])
@pytest.mark.parametrize(("bits", "per_channel"), WEIGHTS)
def test_weights(bits: int, per_channel: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(bits)
    w = torch.randn(shape, device=DEVICE)
    check(*lsq_weight(bits, per_channel, w), w)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3, 3, 3), (9, 1001)])
def test_sign(per_channel: bool, shape: tuple[int, ...]) -> None:
    w = torch.randn(shape, device=DEVICE)
    w.view(-1)[0] = 0
    q = ScaledSign(per_channel=per_channel)
    got, want = (gradients(f, w) for f in (lambda w: fake_quant.scaled_sign(w, per_channel=per_channel), q))
    assert torch.equal(got[0], want[0]) and torch.allclose(got[1], want[1], rtol=1e-6)
    assert torch.allclose(got[2], want[2], rtol=1e-6)


def test_memory_formats_half_precision_and_missing_gradients() -> None:
    q, run = lsq_inputs(4, False, 0)
    x = torch.randn(3, 5, 4, 6, device=DEVICE).to(memory_format=torch.channels_last)
    check(q, run, x)
    check(q, run, x.transpose(1, 3)[:, ::2])
    check(q, run, x.to(torch.bfloat16))
    check(*lsq_weight(4, True, x), x)
    assert run(x)[0].is_contiguous(memory_format=torch.channels_last)
    x = x.detach().requires_grad_()
    run(x)[0].sum().backward()
    assert x.grad is not None and q.step.grad is not None
    with pytest.raises(ValueError, match="one for each slice"):
        torch.ops.tq.fake_quant_lsq(x, torch.ones(2, device=DEVICE), 0, 3, 1.0)
    with pytest.raises(ValueError, match="float32 parameters"):
        fake_quant.scaled_sign(x.detach().half())


def test_no_elements_and_nan() -> None:
    for make in (lsq_inputs, pact):
        q, run = make(2, False, 0)
        x = torch.zeros(0, 3, device=DEVICE, requires_grad=True)
        codes, scale = run(x)
        (codes.sum() + scale).backward()
        assert codes.shape == (0, 3) and torch.equal(scale, q.scale()) and next(q.parameters()).grad.isfinite()
        odd = torch.tensor([[float("nan"), 1.0, float("inf"), -float("inf")]], device=DEVICE)
        parameter = next(q.parameters())
        for a, b in zip(gradients(run, odd, parameter), gradients(q, odd, parameter), strict=True):
            assert torch.allclose(a, b, equal_nan=True)
    for run, q in ((fake_quant.scaled_sign, ScaledSign()), lsq_weight(4, True, torch.ones(2, 2, device=DEVICE))[::-1]):
        odd = torch.tensor([[float("nan"), 1.0], [2.0, -1.0]], device=DEVICE)
        (a, of_a), (b, of_b) = run(odd), q(odd)
        assert torch.allclose(a * of_a[:, None], b * of_b[:, None], equal_nan=True)


RULES = [
    Rule(0, 15, False, factor=0.1),
    Rule(-1, 1, True, factor=0.1),
    Rule(-8, 7, False, divide=True, factor=0.1),
    Rule(0, 3, False, pact=True),
    Rule(-1, 1, True, pact=True),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("shape", "groups"), [((3, 7, 5), 1), ((5, 27), 5), ((3, 1500), 3), ((1100, 2), 1)])
def test_kernels_equal_twins(rule: Rule, shape: tuple[int, ...], groups: int) -> None:
    if DEVICE == "cpu" and not interpreted():
        pytest.skip("no GPU, and Triton's interpreter is off")
    torch.manual_seed(groups)
    x = torch.randn(shape, device=DEVICE) * 2
    g = torch.randn(shape, device=DEVICE).copysign(x)
    x.view(-1)[:3] = torch.tensor([float("inf"), -float("inf"), 1e30]) if rule.pact else torch.tensor([9e9, -1e30, 0])
    parameter = (torch.rand(groups, device=DEVICE) + 0.3) * torch.tensor([1.0, -1, 0, 1, -1], device=DEVICE)[:groups]
    of_scale = -torch.rand(groups, device=DEVICE)
    got, want = (
        fake_quant_kernels.triton_quantize(x, parameter, rule),
        fake_quant.quantize_reference(x, parameter, rule),
    )
    assert all(map(torch.equal, got, want))
    grad_x, grad = fake_quant_kernels.triton_gradient(g, of_scale, x, parameter, rule)
    want_x, want = fake_quant.gradient_reference(g, of_scale, x, parameter, rule)
    assert torch.equal(grad_x, want_x)
    assert close(grad, want)


@pytest.mark.parametrize("per_channel", [True, False])
def test_sign_kernels_equal_twins(per_channel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu" and not interpreted():
        pytest.skip("no GPU, and Triton's interpreter is off")
    monkeypatch.setattr(fake_quant_kernels, "_PROGRAMS", 2)
    w = torch.randn(5, 700, device=DEVICE)
    w[0, 0], w[1] = float("nan"), 0
    got, want = fake_quant_kernels.triton_sign(w, per_channel), fake_quant.sign_reference(w, per_channel)
    assert torch.equal(got[0], want[0]) and torch.allclose(got[1], want[1], rtol=1e-6, equal_nan=True)
    scale = want[1].nan_to_num(0.5)
    got_grad = fake_quant_kernels.triton_sign_gradient(w, scale)
    assert torch.allclose(got_grad, w / scale[:, None], rtol=0, atol=0, equal_nan=True)


def test_opcheck() -> None:
    x, w = torch.randn(3, 5, device=DEVICE).requires_grad_(), torch.randn(4, 3, 2, device=DEVICE).requires_grad_()
    step = torch.tensor(0.4, device=DEVICE, requires_grad=True)
    steps = torch.rand(4, device=DEVICE).requires_grad_()
    tq = torch.ops.tq
    torch.library.opcheck(tq.fake_quant_lsq, (x, step, 0, 3, 0.1))
    torch.library.opcheck(tq.fake_quant_lsq, (w, steps, -8, 7, 0.1, False, True))
    torch.library.opcheck(tq.fake_quant_pact, (x, step, 0, 3))
    torch.library.opcheck(tq.scaled_sign, (w, True))
    d = [t.detach() for t in (x, w, step, steps)]
    torch.library.opcheck(tq.fake_quant_lsq_backward, (d[1], d[3], d[1], d[3], -8, 7, 0.1, False, True))
    torch.library.opcheck(tq.fake_quant_pact_backward, (d[0], d[2], d[0], d[2], 0, 3))
    torch.library.opcheck(tq.scaled_sign_backward, (d[1], d[3]))


def test_compiles_whole() -> None:
    w = torch.randn(5, 9, device=DEVICE)
    weight, run_weight = lsq_weight(4, True, w)
    act, run_act = lsq_inputs(4, False, 0)
    clip, run_clip = pact(2, False)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        total = x.new_zeros(())
        for codes, scale in (run_act(x), run_clip(x), run_weight(w), fake_quant.scaled_sign(w)):
            total = total + (codes.sin() * (scale[:, None] if scale.dim() else scale)).sum()
        return total

    x = torch.randn(7, 9, device=DEVICE, requires_grad=True)
    w.requires_grad_()
    wanted = [x, w, *weight.parameters(), *act.parameters(), *clip.parameters()]
    want = torch.autograd.grad(loss(x, w), wanted)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, w), wanted)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(got, want, strict=True))


def test_cases_are_planned_on_meta() -> None:
    assert len(fake_quant.cases()) == 8
