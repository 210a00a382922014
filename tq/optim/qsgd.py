"""SGD whose update is quantized at a resolution that only rises. With g the gradient, one step does

    m = momentum * m + g + weight_decay * w          h = -lr * m
    w = w + [h]                                      [h] = floor(2^p h + 1/2) / 2^p, p by the rule

The published rule is h = -lr * g, which is momentum 0 and weight decay 0, the defaults here. Rules and sources:
tq/optim/resolution.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tq.optim.quantized_update import QuantizedUpdate
from tq.optim.resolution import Resolution


class QSGD(QuantizedUpdate):
    """See the file's docstring.

    Args:
        params: parameters or groups.
        lr: learning rate, float or 0-dim tensor (a tensor keeps a compiled step from recompiling).
        momentum: of the gradient before it is quantized.
        weight_decay: L2, part of the quantized update.
        rule: how the resolution rises.

    State beside that of every quantized update: `momentum_buffer`, the parameter's shape.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        rule: Resolution | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, rule=rule or Resolution(), buffers=("momentum_buffer",))

    def direction(self, group: dict[str, Any], params: list[Tensor], t_N: Tensor) -> list[Tensor]:
        """h = -lr m."""
        m = [self.state[p]["momentum_buffer"] for p in params]
        # sums without alpha: a fused multiply-add would round once less here than in a compiled step
        torch._foreach_mul_(m, group["momentum"])
        torch._foreach_add_(m, [p.grad for p in params if p.grad is not None])
        if group["weight_decay"]:
            torch._foreach_add_(m, torch._foreach_mul(params, group["weight_decay"]))
        return list(torch._foreach_mul(m, -group["lr"]))
