"""tq.optim.QSGD, QtAdam and QtAdamW, bit for bit against the written-out rules, one float32 scalar at a time.

Bit for bit works because the optimizers multiply and add in separate steps (no fused multiply-add), because scaling by
2^p is exact, and because the one sum, the norm of the scheduled rule, is taken from torch here too.
"""

from __future__ import annotations

import copy
import inspect
import io
import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tq.optim import QSGD, QtAdam, QtAdamW, Resolution

F = np.float32
SHAPES = ((3, 7), (5,), (), (2, 3, 3))
STEPS, LR = 40, 0.02
OPTIMIZERS = {"qsgd": QSGD, "qtadam": QtAdam, "qtadamw": QtAdamW}
RULES = [
    Resolution(),
    Resolution(start=6),
    Resolution(shared=False),
    Resolution("log-t"),
    Resolution("scheduled", tau0=1.5, steps_per_epoch=10),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=["shared", "start-6", "each", "log-t", "scheduled"])
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


class Oracle:
    """The published rules with loops; all tensors flat lists of float32."""

    def __init__(self, weights: list[Tensor], rule: Resolution, *, momentum: float, weight_decay: float) -> None:
        self.w = [[F(x) for x in w.flatten().tolist()] for w in weights]
        self.m, self.v = ([[F(0)] * len(w) for w in self.w] for _ in range(2))
        self.rule, self.momentum, self.decay, self.t = rule, F(momentum), weight_decay, 0
        self.p = [rule.start] * len(self.w)

    def step(self, name: str, grads: list[Tensor]) -> None:
        for i, grad in enumerate(grads):
            g = [F(x) for x in grad.flatten().tolist()]
            h = self.sgd(i, g) if name == "qsgd" else self.adam(i, g, name)
            if name == "qtadamw":
                self.w[i] = [w * F(1 - LR * self.decay) for w in self.w[i]]
            moved = self.scheduled(h, i) if self.rule.rule == "scheduled" else self.rounded(h, i)
            self.w[i] = [w + F(float(x)) for w, x in zip(self.w[i], moved, strict=True)]
        self.t += 1

    def sgd(self, i: int, g: list[Any]) -> list[Any]:
        decay = F(self.decay)
        self.m[i] = [(self.momentum * m + x) + decay * w for m, x, w in zip(self.m[i], g, self.w[i], strict=True)]
        return [F(-LR) * m for m in self.m[i]]

    def adam(self, i: int, g: list[Any], name: str) -> list[Any]:
        if name == "qtadam":
            g = [F(self.decay) * w + x for x, w in zip(g, self.w[i], strict=True)]
        self.m[i] = [F(0.9) * m + F(1 - 0.9) * x for m, x in zip(self.m[i], g, strict=True)]
        self.v[i] = [F(0.999) * v + F(1 - 0.999) * (x * x) for v, x in zip(self.v[i], g, strict=True)]
        size, spread = F(-LR / (1 - 0.9 ** (self.t + 1))), F(math.sqrt(1 - 0.999 ** (self.t + 1)))
        return [size * m / (np.sqrt(v) / spread + F(1e-6)) for m, v in zip(self.m[i], self.v[i], strict=True)]

    def rounded(self, h: list[Any], i: int) -> list[Fraction]:
        p = max(self.p) if self.rule.shared else self.p[i]
        if self.rule.rule == "log-t":
            while 0.5 * math.log2(64 / (24 * 2 ** (40 / (self.t + 2)) * 1e-6 / math.log(self.t + 2))) > p:
                p += 1
        elif self.t > 0 and any(h):
            while p < 32 and not any(self.at(h, p)):
                p += 1
        self.p[i] = p
        return self.at(h, p)

    def at(self, h: list[Any], p: int) -> list[Fraction]:
        return [Fraction(math.floor(Fraction(float(x)) * 2**p + Fraction(1, 2)), 2**p) for x in h]

    def scheduled(self, h: list[Any], i: int) -> list[Fraction]:
        assert self.rule.steps_per_epoch
        epoch = self.t / self.rule.steps_per_epoch
        self.p[i] = p = 19 + math.floor(math.log2(math.log(epoch + 2)))
        norm = F(float(torch.tensor([float(x) for x in h]).norm()))
        share = F(0.5 * (1 + math.tanh(-self.rule.kappa * (epoch - self.rule.tau0))))
        factor = share * F(LR) / norm if norm > 0 else F(0)
        return [Fraction(math.floor(Fraction(float(x + x * factor)) * 2**p), 2**p) for x in h]


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator) * 0.3) for shape in SHAPES]


def gradients(steps: int = STEPS) -> list[list[Tensor]]:
    """Falling over the steps, of different size from tensor to tensor, some zero, one tensor zero now and then."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for step in range(steps):
        size = 0.8**step
        grads = [torch.randn(shape, generator=generator) * size * 10.0**-i for i, shape in enumerate(SHAPES)]
        grads[0][0] = 0
        grads[1] *= step % 4 != 2
        made.append(grads)
    return made


def give(params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()


def make(name: str, params: list[nn.Parameter], rule: Resolution, decay: float, momentum: float = 0.9) -> Any:
    options = {"momentum": momentum} if name == "qsgd" else {}
    return OPTIMIZERS[name](params, LR, weight_decay=decay, rule=rule, **options)


@pytest.mark.parametrize("decay", [0.0, 0.03])
@each_rule
@each_optimizer
def test_against_the_loops(name: str, rule: Resolution, decay: float) -> None:
    params = weights()
    momentum = 0.0 if decay else 0.9
    optimizer = make(name, params, rule, decay, momentum)
    oracle = Oracle([p.detach() for p in params], rule, momentum=momentum, weight_decay=decay)
    for grads in gradients():
        give(params, grads)
        optimizer.step()
        oracle.step(name, grads)
        for p, wanted in zip(params, oracle.w, strict=True):
            assert p.detach().flatten().tolist() == [float(w) for w in wanted]
        p_N = [int(optimizer.state[p]["resolution"]) for p in params]
        assert p_N == oracle.p
        assert optimizer.resolution().tolist() == pytest.approx([min(p_N), sum(p_N) / len(p_N), max(p_N)])
    assert max(oracle.p) > rule.start


@each_rule
@each_optimizer
def test_state_dict_continues_bit_for_bit(name: str, rule: Resolution) -> None:
    params = weights()
    optimizer = make(name, params, rule, 0.01)
    for grads in gradients()[:13]:
        give(params, grads)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"weights": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    others = weights()
    resumed = make(name, others, rule, 0.01)
    for p, value in zip(others, saved["weights"], strict=True):
        p.data.copy_(value)
    resumed.load_state_dict(saved["optimizer"])
    for grads in gradients()[13:]:
        give(params, grads)
        give(others, grads)
        optimizer.step()
        resumed.step()
        assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
        assert torch.equal(optimizer.resolution(), resumed.resolution())


def compiled_equals_eager(name: str, rule: Resolution, backend: str) -> None:
    torch._dynamo.reset()
    params, others = weights(), weights()
    eager, other = make(name, params, rule, 0.01), make(name, others, rule, 0.01)
    plain = inspect.unwrap(type(other).step)
    for optimizer in (eager, other):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(LR)

    def update() -> None:
        with torch.no_grad():
            plain(other)

    compiled = torch.compile(update, fullgraph=True, backend=backend)
    for grads in gradients(12):
        give(params, grads)
        give(others, grads)
        eager.step()
        compiled()
        assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
        assert torch.equal(eager.resolution(), other.resolution())


@each_rule
@each_optimizer
def test_one_graph_equals_eager(name: str, rule: Resolution) -> None:
    compiled_equals_eager(name, rule, "aot_eager")


@pytest.mark.parametrize("name", ["qsgd", "qtadamw"])
def test_compiled_equals_eager(name: str) -> None:
    compiled_equals_eager(name, RULES[0], "inductor")


class NoReading(TorchDispatchMode):
    """Refuses what would wait for a device: reading a value, or sizes that depend on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@each_rule
@each_optimizer
def test_a_step_and_its_resolution_wait_for_nothing(name: str, rule: Resolution) -> None:
    params = weights()
    optimizer = make(name, params, rule, 0.01)
    optimizer.param_groups[0]["lr"] = torch.tensor(LR)
    for grads in gradients(3):
        give(params, grads)
        with NoReading():
            optimizer.step()
            optimizer.resolution()


@each_optimizer
def test_at_a_fine_resolution_the_plain_optimizers_remain(name: str) -> None:
    ours, theirs = weights(), weights()
    optimizer = make(name, ours, Resolution(start=32), 0.05)
    plain: torch.optim.Optimizer = {
        "qsgd": partial(torch.optim.SGD, momentum=0.9),
        "qtadam": partial(torch.optim.Adam, eps=1e-6),
        "qtadamw": partial(torch.optim.AdamW, eps=1e-6),
    }[name](theirs, lr=LR, weight_decay=0.05)
    for grads in gradients():
        give(ours, grads)
        give(theirs, grads)
        optimizer.step()
        plain.step()
        for p, q in zip(ours, theirs, strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)


@each_rule
@each_optimizer
def test_zero_gradients_move_nothing(name: str, rule: Resolution) -> None:
    params = weights()
    before = copy.deepcopy(params)
    optimizer = make(name, params, rule, 0.0)
    for _ in range(3):
        give(params, [torch.zeros(shape) for shape in SHAPES])
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    if rule.rule == "on-demand":
        assert optimizer.resolution().tolist() == [rule.start] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@each_optimizer
def test_a_nan_stays_in_its_weight_and_leaves_the_resolution(name: str, bad: float) -> None:
    params = weights()
    optimizer = make(name, params, Resolution(shared=False), 0.0)
    p_of_bad = []
    for step, grads in enumerate(gradients(6)):
        if step == 3:
            grads[1][2] = bad
        give(params, grads)
        optimizer.step()
        p_of_bad.append(float(optimizer.state[params[1]]["resolution"]))
    assert p_of_bad[2:] == [p_of_bad[2]] * 4 and p_of_bad[1] > 0
    assert [bool(x) for x in params[1].isfinite()] == [True, True, False, True, True]
    assert all(bool(p.isfinite().all()) for p in (params[0], *params[2:]))


@each_optimizer
def test_updates_are_multiples_and_the_resolution_ends_at_32(name: str) -> None:
    params = weights()
    optimizer = make(name, params, Resolution(shared=False, start=3), 0.0)
    before = copy.deepcopy(params)
    give(params, gradients(1)[0])
    optimizer.step()
    assert optimizer.resolution().tolist() == [3, 3, 3]
    for p, q in zip(params, before, strict=True):
        assert torch.allclose((p - q) * 8, ((p - q) * 8).round(), atol=1e-5)
    optimizer.param_groups[0]["lr"] = 1e-20
    give(params, gradients(1)[0])
    optimizer.step()
    assert optimizer.resolution().tolist() == [32, 32, 32]


@each_optimizer
def test_parameters_without_gradient_or_elements_stay(name: str) -> None:
    params = [*weights(), nn.Parameter(torch.zeros(0, 3))]
    optimizer = make(name, params, Resolution(), 0.01)
    before = params[0].detach().clone()
    assert optimizer.step(lambda: 1.5) == 1.5
    give(params, [*gradients(1)[0], torch.zeros(0, 3)])
    params[0].grad = None
    optimizer.step()
    assert torch.equal(params[0], before)
    assert [float(optimizer.state[p]["steps_done"]) for p in params] == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("make_it", "hint"),
    [
        (lambda p: QSGD([p], -0.1), "lr of at least 0, got -0.1"),
        (lambda p: QSGD([p], momentum=-1), "momentum"),
        (lambda p: QtAdam([p], betas=(0.9, 1.0)), "betas from 0 to below 1"),
        (lambda p: QtAdamW([p], weight_decay=math.nan), "weight_decay"),
        (lambda p: QSGD([nn.Parameter(p.detach().bfloat16())]), "bfloat16"),
    ],
)
def test_bad_settings(make_it: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        make_it(weights()[0])
