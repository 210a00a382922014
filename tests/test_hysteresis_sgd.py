"""tq.optim.HysteresisSGD against a slow oracle, one scalar at a time."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tq.optim import HysteresisSGD

ROWS, COLUMNS, STEPS = 3, 7, 25


class Oracle:
    """The rule of methods, in Python floats, for a matrix; per output channel or per tensor."""

    def __init__(self, weight: Tensor, **settings: Any) -> None:
        self.u = weight.tolist()
        self.m = [[0.0] * COLUMNS for _ in range(ROWS)]
        self.sign = [[1.0 if u >= 0 else -1.0 for u in row] for row in self.u]
        self.__dict__.update(settings)
        scale = self.scales()
        self.p = [[scale[i] * self.sign[i][j] for j in range(COLUMNS)] for i in range(ROWS)]
        self.waited = self.flipped = 0

    def scales(self) -> list[float]:
        means = [sum(abs(u) for u in row) / COLUMNS for row in self.u]
        return means if self.per_channel else [sum(means) / ROWS] * ROWS

    def step(self, grad: list[list[float]]) -> None:
        for i in range(ROWS):
            for j in range(COLUMNS):
                self.m[i][j] = self.momentum * self.m[i][j] + grad[i][j] + self.weight_decay * self.p[i][j]
                self.u[i][j] -= self.lr * self.m[i][j]
        scale = self.scales()
        for i in range(ROWS):
            theta = self.threshold * scale[i] if self.relative else self.threshold
            for j in range(COLUMNS):
                u, new = self.u[i][j], 1.0 if self.u[i][j] >= 0 else -1.0
                if new == self.sign[i][j]:
                    self.p[i][j] = scale[i] * new
                elif abs(u) >= theta:
                    self.flipped += 1
                    self.p[i][j] = scale[i] * new
                    self.sign[i][j] = new
                elif self.mode == "loop":
                    self.waited += 1
                    self.p[i][j] = scale[i] * self.sign[i][j]
                else:
                    self.waited += 1
                    self.p[i][j] = scale[i] * u
                    self.sign[i][j] = new


def gradients(seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # a kick at every fifth step crosses the threshold at once, the others creep
    kicks = [8.0 if step % 5 == 4 else 1.0 for step in range(STEPS)]
    return [torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64) * kick for kick in kicks]


def start() -> nn.Parameter:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.3
    return nn.Parameter(weight)


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.07)])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("mode", ["loop", "one-step"])
def test_hysteresis_sgd(mode: str, relative: bool, per_channel: bool, momentum: float, weight_decay: float) -> None:
    settings = {"mode": mode, "relative": relative, "per_channel": per_channel, "momentum": momentum}
    settings |= {"weight_decay": weight_decay, "threshold": 0.4 if relative else 0.15, "lr": 0.05}
    p = start()
    oracle = Oracle(p.detach(), **settings)
    optimizer = HysteresisSGD([{"params": [p], "binary": True}], **settings)
    assert torch.allclose(p, torch.tensor(oracle.p, dtype=torch.float64), rtol=1e-12)
    for grad in gradients():
        p.grad = grad
        optimizer.step()
        oracle.step(grad.tolist())
        assert torch.allclose(p, torch.tensor(oracle.p, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        assert torch.allclose(
            optimizer.state[p]["latent"], torch.tensor(oracle.u, dtype=torch.float64), rtol=1e-9, atol=1e-12
        )
    assert oracle.waited > 10 and oracle.flipped > 3


def test_hysteresis_sgd_keeps_the_sign_in_the_loop() -> None:
    p = nn.Parameter(torch.tensor([[0.2, 0.2]]))
    optimizer = HysteresisSGD([{"params": [p], "binary": True}], lr=1.0, momentum=0.0, threshold=0.1)
    signs = []
    for grad in (0.25, 0.0, 0.04, 0.02, -0.1, -0.05):  # latent -0.05, -0.05, -0.09, -0.11, -0.01, 0.04
        p.grad = torch.tensor([[grad, 0.0]])
        optimizer.step()
        signs.append(p[0, 0].sign().item())
    assert signs == [1, 1, 1, -1, -1, -1]


@pytest.mark.parametrize("mode", ["loop", "one-step"])
def test_state_dict_continues_bit_for_bit(mode: str) -> None:
    def make(weight: nn.Parameter) -> HysteresisSGD:
        return HysteresisSGD(
            [{"params": [weight], "binary": True}], lr=0.05, threshold=0.15, mode=mode, weight_decay=0.01
        )

    p = start()
    optimizer = make(p)
    for grad in gradients()[:11]:
        p.grad = grad
        optimizer.step()
    file = io.BytesIO()
    torch.save({"weight": p.detach(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    q = start()
    resumed = make(q)
    q.data.copy_(saved["weight"])
    resumed.load_state_dict(saved["optimizer"])
    for grad in gradients()[11:]:
        p.grad, q.grad = grad.clone(), grad.clone()
        optimizer.step()
        resumed.step()
        assert torch.equal(p, q)


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.05)])
def test_other_groups_get_plain_sgd(momentum: float, weight_decay: float) -> None:
    p = start()
    q = copy.deepcopy(p)
    ours = HysteresisSGD([p], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    theirs = torch.optim.SGD([q], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    for grad in gradients():
        p.grad, q.grad = grad.clone(), grad.clone()
        ours.step()
        theirs.step()
        assert torch.allclose(p, q, rtol=1e-13, atol=1e-15)


def test_parameters_without_gradient_stay() -> None:
    p = start()
    optimizer = HysteresisSGD([{"params": [p], "binary": True}])
    before = p.detach().clone()
    assert optimizer.step(lambda: 1.5) == 1.5 and torch.equal(p, before)


def test_groups_can_be_added_later() -> None:
    p, q = start(), start()
    optimizer = HysteresisSGD([p], lr=0.1)
    optimizer.add_param_group({"params": [q], "binary": True})
    assert len(q.abs()[0].unique()) == 1
    q.grad = torch.ones_like(q)
    optimizer.step()


@pytest.mark.parametrize(
    "settings", [{"mode": "twice"}, {"threshold": -0.1}, {"threshold": float("nan")}, {"lr": -1.0}, {"pull": -1.0}]
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        HysteresisSGD([start()], **settings)
