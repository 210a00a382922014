"""SGD whose one-bit weights flip only after their latent weight has passed a threshold on the other side.

The parameter p itself is binary (+-s); the latent weight u lives in the optimizer's STATE, so that saving and
resuming keep it. With g the gradient at p, m momentum and theta the threshold, one step does

    m = momentum * m + g + weight_decay * p + pull * (u - s sign(u))
    u = u - lr * m                         s = mean |u|   (per output channel or per tensor)
    h = sign(u)     where sign(u) equals the old sign, or |u| >= theta
    h = old sign    else ("loop"), or u itself for this one step ("one-step")
    p = s * h

"loop" is a true hysteresis loop and the default; "one-step" is what the published code of Quantized_ResNet does
(p is not binary for that step; evaluation resolves it by its sign). Parameters of groups without `binary=True` get
plain SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class HysteresisSGD(Optimizer):
    """See the file's docstring.

    Args:
        params: parameters or groups; a group's `binary=True` selects the hysteresis rule (tensors of 2 or more dims).
        lr: learning rate, float or 0-dim tensor (a tensor keeps a compiled step from recompiling).
        threshold: theta >= 0, in latent units, or in units of s with `relative=True`.
        mode: "loop" or "one-step".
        per_channel: one s per output channel (dim 0) instead of per tensor.
        pull: weight regularization towards +-s, the gradient of pull / 2 * sum (|u| - s)^2 with s held fixed.

    State per binary parameter: `latent` and `momentum_buffer`, both the parameter's shape; `old_sign` is the sign of
    the parameter that the last forward saw.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        threshold: float = 0.1,
        relative: bool = False,
        mode: str = "loop",
        per_channel: bool = True,
        pull: float = 0.0,
    ) -> None:
        if mode not in ("loop", "one-step"):
            raise ValueError(f"mode must be 'loop' or 'one-step', got {mode!r}")
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("pull", pull)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        # NaN would never wait
        if not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {threshold}")
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "binary": False,
            "threshold": threshold, "relative": relative, "mode": mode, "per_channel": per_channel, "pull": pull,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take over more parameters; those of a `binary=True` group become binary at once."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        # here, not at the first step: a compiled step then has one graph, and p is binary from the start
        for p in group["params"]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            if group["binary"]:
                self.state[p]["latent"] = p.detach().clone()
                self.state[p]["old_sign"] = _sign(p)
                p.copy_(_sign(p) * _scale(p, group["per_channel"]))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p]["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(p.grad + group["weight_decay"] * p)
                if group["binary"] and group["pull"]:
                    latent = self.state[p]["latent"]
                    buffer.add_(group["pull"] * (latent - _sign(latent) * _scale(latent, group["per_channel"])))
                if group["binary"]:
                    _hysteresis(p, buffer, self.state[p], group)
                else:
                    p.sub_(group["lr"] * buffer)
        return loss


def _sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def _scale(latent: Tensor, per_channel: bool) -> Tensor:
    """mean |u|, shaped to broadcast over the parameter."""
    return latent.abs().mean(dim=list(range(1, latent.ndim)), keepdim=True) if per_channel else latent.abs().mean()


def _hysteresis(p: Tensor, buffer: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    latent, old = state["latent"], state["old_sign"]
    latent.sub_(group["lr"] * buffer)
    scale = _scale(latent, group["per_channel"])
    theta = group["threshold"] * scale if group["relative"] else group["threshold"]
    new = _sign(latent)
    waits = (new != old) & (latent.abs() < theta)
    if group["mode"] == "loop":
        sign = torch.where(waits, old, new)
        old.copy_(sign)
        p.copy_(scale * sign)
    else:
        # the published rule compares with the sign of the previous latent weight, so the wait lasts one step
        old.copy_(new)
        p.copy_(scale * torch.where(waits, latent, new))
