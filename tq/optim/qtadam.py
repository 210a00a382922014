"""Adam and AdamW whose update is quantized at a resolution that only rises. With g the gradient, one step does

    QtAdam: g = g + weight_decay * w                 QtAdamW: w = w - lr * weight_decay * w     (not quantized)
    m = b1 * m + (1 - b1) * g                        v = b2 * v + (1 - b2) * g^2
    h = -lr * (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)        at the k-th step, k = 1, 2, ...
    w = w + [h]                                      [h] = floor(2^p h + 1/2) / 2^p, p by the rule

That is Algorithm 1 of Kingma and Ba (2015) and, for QtAdamW, Algorithm 2 of Loshchilov and Hutter (2019), h rounded.
Rules and sources: tq/optim/resolution.py. eps is 1e-6, as published for QtAdamW; it is added after the bias correction,
as in torch's Adam, so that the plain optimizer beside it differs by the rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tq.optim.quantized_update import QuantizedUpdate
from tq.optim.resolution import Resolution


class QtAdam(QuantizedUpdate):
    """See the file's docstring.

    Args:
        params: parameters or groups.
        lr: learning rate, float or 0-dim tensor (a tensor keeps a compiled step from recompiling).
        betas: b1 and b2, from 0 to below 1.
        eps: at least 0.
        weight_decay: L2, part of the gradient.
        rule: how the resolution rises.

    State beside that of every quantized update: `exp_avg` and `exp_avg_sq`, both the parameter's shape.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        rule: Resolution | None = None,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"expected betas from 0 to below 1, got {betas}; use (0.9, 0.999)")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, rule=rule or Resolution(), buffers=("exp_avg", "exp_avg_sq"))

    def gradients(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """g, with L2 weight decay."""
        g = [p.grad for p in params if p.grad is not None]
        if not group["weight_decay"]:
            return g
        return list(torch._foreach_add(torch._foreach_mul(params, group["weight_decay"]), g))

    def direction(self, group: dict[str, Any], params: list[Tensor], t_N: Tensor) -> list[Tensor]:
        """The Adam step; updates both averages."""
        b1, b2 = group["betas"]
        g = self.gradients(group, params)
        m, v = ([self.state[p][name] for p in params] for name in self.buffers)
        # sums without alpha: a fused multiply-add would round once less here than in a compiled step
        torch._foreach_mul_(m, b1)
        torch._foreach_add_(m, torch._foreach_mul(g, 1 - b1))
        torch._foreach_mul_(v, b2)
        torch._foreach_add_(v, torch._foreach_mul(torch._foreach_mul(g, g), 1 - b2))
        # float64: 1 - b2^k cancels
        k_N = t_N.double() + 1
        size_N = (-group["lr"] / (1 - b1**k_N)).to(t_N.dtype)
        spread_N = torch.sqrt(1 - b2**k_N).to(t_N.dtype)
        below = torch._foreach_div(torch._foreach_sqrt(v), list(spread_N.unbind()))
        torch._foreach_add_(below, group["eps"])
        return list(torch._foreach_div(torch._foreach_mul(m, list(size_N.unbind())), below))


class QtAdamW(QtAdam):
    """QtAdam with decoupled weight decay, which is not quantized. Same arguments; weight_decay is 0.01 at first."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        rule: Resolution | None = None,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, rule=rule)

    def gradients(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """g as it is."""
        return [p.grad for p in params if p.grad is not None]

    def decay(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """w = w (1 - lr * weight_decay)."""
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
