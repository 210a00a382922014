"""How finely an optimizer's update is quantized, and when that resolution rises: three published rules.

Only the UPDATE h is quantized, never the weight: w <- w + [h], [h] = floor(2^p h + 1/2) / 2^p. The resolution p never
falls; from coarse to fine steps this is a search like simulated annealing (Seok and Kim, "Nonlinear optimization ...
monotonically increasing quantization resolution", 2021; "Stochastic gradient Langevin dynamics based on quantization
with increasing resolution", 2023). t counts the steps before this one and t_e = t / steps per epoch.

    on-demand   from the second step on, p rises by 1 while the quantized update is all zero, at most to 32
    log-t       p rises by 1 while log_t_bound(t) > p, at most to 32; nothing else raises it: smaller updates are lost
    scheduled   p = 19 + floor(log2(ln(t_e + 2))), and w <- w + floor(2^p (h + r)) / 2^p with the compensation
                r = (1 + tanh(-kappa (t_e - tau0))) / 2 * lr * h / |h|    (no 1/2 inside this floor, as published)

The loop of on-demand in one expression: x = 2^p h becomes 0 exactly when -1/2 <= x < 1/2, so that something moves when
2^p max(h) >= 1/2 or 2^p min(h) < -1/2. With max(h) = f 2^e, 1/2 <= f < 1 (frexp), the first holds from p = -e on; with
-min(h) = f 2^e the second holds from p = -e on too, or from 1 - e if f is 1/2 exactly, for a half rounds up. The
smaller of the two, within [p, 32], is where the loop ends. Two cases in which no p helps leave p alone, where the
published loop runs to 32: h is zero everywhere, or has a NaN or an infinite element.

The published code tests the plain sum of the quantized update, in which steps up and down cancel. That has no closed
form (33 passes over every tensor) and is not offered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RULES = ("on-demand", "scheduled", "log-t")
CAP = 32
ETA_LOG2 = 19  # scheduled: Q_p = 2^19 * 2^p
# log-t: T(t) = 2^(2 BETA / (t + 2)) C / ln(t + 2) is the temperature, D the dimension in the bound on p
BETA, C, D = 20.0, 1e-6, 64.0


@dataclass(frozen=True)
class Resolution:
    """A rule and its settings.

    Args:
        rule: "on-demand", "scheduled" or "log-t".
        start: p of the first step, 0 to 32 (on-demand, log-t).
        shared: one p for all tensors; a tensor that raises it raises it for those after it in this step and for all
            in the next, as published. Else each has its own (on-demand).
        kappa: how fast the compensation ends, per epoch (scheduled).
        tau0: when it is half gone, in epochs (scheduled).
        steps_per_epoch: needed by scheduled only.
    """

    rule: Literal["on-demand", "scheduled", "log-t"] = "on-demand"
    start: int = 0
    shared: bool = True
    kappa: float = 2.0
    tau0: float = 0.0
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"expected a resolution of {', '.join(RULES)}, got {self.rule!r}; name one of them")
        if self.start not in range(CAP + 1):
            raise ValueError(f"expected a whole start resolution from 0 to {CAP}, got {self.start}; choose one of them")
        if not all(math.isfinite(x) and x >= 0 for x in (self.kappa, self.tau0)):
            raise ValueError(f"expected kappa and tau0 of at least 0, got {self.kappa} and {self.tau0}; raise them")
        if self.rule == "scheduled" and not (self.steps_per_epoch and self.steps_per_epoch > 0):
            got = self.steps_per_epoch
            raise ValueError(f"expected a positive steps_per_epoch with the scheduled resolution, got {got}; give it")

    def following(self, p_N: Tensor, t_N: Tensor, h: list[Tensor], floor_p: Tensor) -> Tensor:
        """log2 of the resolutions of this step for N updates h; p_N is that of the last step, t_N the steps before.

        `floor_p`, 0-dim, is the largest p of any tensor so far; with `shared` nothing stays below it.
        """
        if self.rule == "scheduled":
            return (ETA_LOG2 + torch.floor(torch.log2(torch.log(self._epochs(t_N) + 2)))).to(p_N.dtype)
        if self.rule == "log-t":
            return torch.maximum(p_N, torch.ceil(log_t_bound(t_N)).clamp(max=CAP).to(p_N.dtype))
        wanted_N = torch.where(t_N > 0, needed(h).clamp(max=CAP), -math.inf)
        if not self.shared:
            return torch.maximum(p_N, wanted_N)
        # tensor after tensor with one p: a running maximum
        return torch.cummax(torch.maximum(floor_p, wanted_N), dim=0).values

    def quantize(self, h: list[Tensor], p_N: Tensor, *, lr_N: Tensor, t_N: Tensor) -> list[Tensor]:
        """[h] for N updates h of any shapes; lr_N is the learning rate of each."""
        if self.rule == "scheduled":
            return floors(self._compensated(h, lr_N, t_N), p_N)
        return nearest(h, p_N)

    def _epochs(self, t_N: Tensor) -> Tensor:
        assert self.steps_per_epoch is not None
        return t_N.double() / self.steps_per_epoch

    def _compensated(self, h: list[Tensor], lr_N: Tensor, t_N: Tensor) -> list[Tensor]:
        share_N = 0.5 * (1 + torch.tanh(-self.kappa * (self._epochs(t_N) - self.tau0)))
        norm_N = torch.stack(torch._foreach_norm(h))
        factor_N = torch.where(norm_N > 0, share_N.to(norm_N.dtype) * lr_N / norm_N, 0.0)
        r = torch._foreach_mul(h, list(factor_N.unbind()))
        return list(torch._foreach_add(h, r))


def log_t_bound(t: Tensor) -> Tensor:
    """0.5 log2(D / (24 T(t))) in float64; about 0.41, 4.07, 9.66, 11.58, 12.05 at t = 0, 1, 10, 100, 1000."""
    t = t.double()
    return 0.5 * (math.log2(D / (24 * C)) + torch.log2(torch.log(t + 2))) - BETA / (t + 2)


def needed(h: list[Tensor]) -> Tensor:
    """The smallest p, of any sign and size, at which the quantized update is not all zero; -inf where p must stay."""
    high_N, low_N = torch.stack([x.amax() for x in h]), torch.stack([x.amin() for x in h])
    _, up_N = torch.frexp(high_N)
    half_N, down_N = torch.frexp(low_N)
    by_high_N = torch.where(high_N > 0, -up_N.to(high_N.dtype), math.inf)
    by_low_N = torch.where(low_N < 0, (half_N == -0.5).to(low_N.dtype) - down_N, math.inf)
    moves_N = ((high_N > 0) | (low_N < 0)) & torch.isfinite(high_N) & torch.isfinite(low_N)
    return torch.where(moves_N, torch.minimum(by_high_N, by_low_N), -math.inf)


def nearest(h: list[Tensor], p_N: Tensor) -> list[Tensor]:
    """floor(2^p h + 1/2) / 2^p, exactly: as ceil(floor(2 x) / 2), for x + 1/2 rounds (0.49999997 + 0.5 is 1.0)."""
    x = torch._foreach_mul(h, list(power_of_two(p_N + 1).unbind()))
    torch._foreach_floor_(x)
    torch._foreach_mul_(x, 0.5)
    torch._foreach_ceil_(x)
    return list(torch._foreach_mul(x, list(power_of_two(-p_N).unbind())))


def floors(h: list[Tensor], p_N: Tensor) -> list[Tensor]:
    """floor(2^p h) / 2^p."""
    x = torch._foreach_mul(h, list(power_of_two(p_N).unbind()))
    torch._foreach_floor_(x)
    return list(torch._foreach_mul(x, list(power_of_two(-p_N).unbind())))


def power_of_two(p: Tensor) -> Tensor:
    """2^p for whole p within +-126, exact; exp2 need not be."""
    # the bits of a float32: its exponent field is p + 127, its fraction 0
    return ((p.to(torch.int32) + 127) << 23).view(torch.float32).to(p.dtype)
