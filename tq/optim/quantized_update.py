"""What QSGD, QtAdam and QtAdamW share: a direction h from the subclass, then w <- w + [h] at the rule's resolution.

State per parameter, 0-dim in the parameter's dtype: `resolution`, p = log2 of the resolution of its last step, and
`steps_done`. Both are part of state_dict; the rule is an argument, not state. The update is a function of gradients
and state alone: replicas with equal gradients (DDP) stay equal without a word, and no step waits for the device.

A NaN in a gradient becomes a NaN in the weights that it belongs to, as with torch's optimizers; p does not move.
Weights stay float32 (or float64): the network is not compressed by these optimizers, they search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tq.optim.resolution import Resolution

TYPES = (torch.float32, torch.float64)


class QuantizedUpdate(Optimizer):
    """Base of the optimizers whose update is quantized; all parameters lie on one device and have one dtype.

    Args:
        params: parameters or groups.
        defaults: the subclass's settings per group; lr is a float or a 0-dim tensor.
        rule: how the resolution rises.
        buffers: names of the state tensors of the parameter's shape, zero at first.
    """

    def __init__(
        self, params: Iterable[Any], defaults: dict[str, Any], *, rule: Resolution, buffers: tuple[str, ...]
    ) -> None:
        for name, value in defaults.items():
            if isinstance(value, int | float) and not value >= 0:
                raise ValueError(f"expected {name} of at least 0, got {value}; raise it")
        self.rule, self.buffers = rule, buffers
        super().__init__(params, defaults)

    def direction(self, group: dict[str, Any], params: list[Tensor], t_N: Tensor) -> list[Tensor]:
        """h of the parameters that have a gradient, t_N steps after their first; may update the buffers."""
        raise NotImplementedError

    def decay(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Weight decay that is not part of h; none unless a subclass says so."""

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take over more parameters and make their state, so that a compiled step has one graph."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dtype not in TYPES:
                raise ValueError(f"expected float32 or float64 parameters, got {p.dtype}; use autocast instead")
            self.state[p]["resolution"] = p.new_full((), self.rule.start)
            self.state[p]["steps_done"] = p.new_zeros(())
            for name in self.buffers:
                self.state[p][name] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved: list[Tensor] = []
        h: list[Tensor] = []
        rates: list[Tensor] = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel()]
            if params:
                t_N = self._stacked("steps_done", params)
                h += self.direction(group, params, t_N)
                rates.append(group["lr"] * torch.ones_like(t_N))
                moved += params
                self.decay(group, params)
        if moved:
            self._move(moved, h, torch.cat(rates))
        return loss

    def resolution(self) -> Tensor:
        """[3]: the smallest, mean and largest p of the last step over the tensors; on the device, not waited for."""
        p_N = self._stacked("resolution", self._all()).float()
        return torch.stack([p_N.amin(), p_N.mean(), p_N.amax()])

    def _move(self, params: list[Tensor], h: list[Tensor], lr_N: Tensor) -> None:
        t_N = self._stacked("steps_done", params)
        largest = self._stacked("resolution", self._all()).amax()
        p_N = self.rule.following(self._stacked("resolution", params), t_N, h, largest)
        torch._foreach_add_(params, self.rule.quantize(h, p_N, lr_N=lr_N, t_N=t_N))
        torch._foreach_copy_([self.state[p]["resolution"] for p in params], list(p_N.unbind()))
        torch._foreach_add_([self.state[p]["steps_done"] for p in params], 1)

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _stacked(self, name: str, params: list[Tensor]) -> Tensor:
        return torch.stack([self.state[p][name] for p in params])
