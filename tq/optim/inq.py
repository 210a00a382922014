"""Incremental network quantization: weights become powers of two portion by portion, and then never change again.

Zhou, Yao, Guo, Xu and Chen, "Incremental Network Quantization" (2017, arXiv 1702.03044). Per tensor the codebook is
0 and +-2^n2 .. +-2^n1, fixed by the trained weights (tq.quantizers.PowerOfTwo). At each of the portions, such as
0.5, 0.75, 0.875, 1, more weights are rounded to it and frozen, and the others are trained on to make up for them:

    "pruning"  the largest magnitudes that are not frozen yet are next (algorithm 1, "pruning-inspired")
    "random"   any of them

A frozen weight gets no gradient, no decay and no momentum, and stays frozen for ever. (The published code draws its
mask anew at each portion, which sets some weights free again; its text and this file do not.)

    optimizer = INQSGD(model.parameters(), lr=0.01, momentum=0.9, weight_bits=5)     # or any optimizer whose groups
    inq = INQScheduler(optimizer, [0.5, 0.75, 0.875, 1.0])                           # have a "weight_bits"
    for _ in inq.portions:
        reset_lr_scheduler(scheduler)
        inq.step()
        ...                                                                          # some epochs
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau, SequentialLR

from tq.optim.quantized_update import QuantizedUpdate
from tq.quantizers import nearest_power, top_exponent
from tq.scheme import POW2_BITS
from tq.training_rules import check_portions

STRATEGIES = ("pruning", "random")


class INQSGD(SGD):
    """SGD whose weights of two or more dimensions are for an INQScheduler; the others stay float.

    weight_bits: 2 to 8, the width of the codebook's codes. Parameter groups are taken as they are: each of them has
    this width, its own, or None for parameters that stay float.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.01,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        weight_bits: int = 5,
    ) -> None:
        every = list(params)
        groups: list[dict[str, Any]]
        if every and isinstance(every[0], dict):
            groups = [{"weight_bits": weight_bits, **group} for group in every]
        else:
            weights, rest = [p for p in every if p.ndim > 1], [p for p in every if p.ndim <= 1]
            groups = [{"params": weights, "weight_bits": weight_bits}, *([{"params": rest}] if rest else [])]
        super().__init__(groups, lr, momentum, dampening, weight_decay, nesterov)


class INQScheduler:
    """Freezes the next portion of the weights at each `step()`; holds them after each step of the optimizer.

    Args:
        optimizer: any whose update of a weight is its own alone (not QSGD and its kin, whose resolution depends on the
            frozen ones too); the parameters of its groups with a `weight_bits` that require a gradient are quantized.
            Give it trained weights.
        portions: shares of each tensor that are frozen after step 1, 2, ...; increasing, the last is 1.
        strategy: "pruning" or "random".
        seed: of the random choice.

    Raises:
        ValueError: a quantized update, no group with weight_bits, bits outside 2 to 8, portions not increasing or not
            ending at 1, an unknown strategy, weights that are all zero, NaN or infinite.
    """

    def __init__(
        self, optimizer: Optimizer, portions: Sequence[float], strategy: str = "pruning", *, seed: int = 0
    ) -> None:
        check_portions(portions)
        if strategy not in STRATEGIES:
            raise ValueError(f"expected a strategy of {', '.join(STRATEGIES)}, got {strategy!r}; name one of them")
        if isinstance(optimizer, QuantizedUpdate):
            kind = type(optimizer).__name__
            raise ValueError(f"expected an optimizer such as SGD or AdamW, got {kind}: its weights share a resolution")
        self.optimizer, self.portions, self.strategy = optimizer, tuple(portions), strategy
        self.taken = 0
        self.seed = seed
        self.params: list[Tensor] = []
        self.bits: list[int] = []
        for group in optimizer.param_groups:
            if (bits := group.get("weight_bits")) is None:
                continue
            if bits not in POW2_BITS:
                raise ValueError(f"expected weight_bits from {POW2_BITS[0]} to {POW2_BITS[-1]}, got {bits}; change it")
            trained = [p for p in group["params"] if p.requires_grad]
            self.params += trained
            self.bits += [bits] * len(trained)
        if not self.params:
            raise ValueError("expected a parameter group with weight_bits, got none; add weight_bits=5 to a group")
        self.tops = [torch.tensor(float(top_exponent(p)), device=p.device) for p in self.params]
        self.frozen = [torch.zeros_like(p, dtype=torch.bool) for p in self.params]
        self.held = [p.detach().clone() for p in self.params]
        optimizer.register_step_post_hook(lambda *_: self.hold())

    @property
    def portion(self) -> float:
        """The share of the weights that is frozen now."""
        return self.portions[self.taken - 1] if self.taken else 0.0

    @torch.no_grad()
    def step(self) -> None:
        """Quantize and freeze up to the next portion. Raises ValueError after the last."""
        if self.taken == len(self.portions):
            raise ValueError(f"all {len(self.portions)} portions are taken; every weight is frozen")
        share = self.portions[self.taken]
        for number, (p, top, frozen) in enumerate(zip(self.params, self.tops, self.frozen, strict=True)):
            count = p.numel() if share == 1 else round(share * p.numel())
            # flat masks, for weights lie in memory as NHWC
            chosen = torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
            chosen[self._order(number)[:count]] = True
            frozen.copy_(chosen.view(p.shape))
            p.copy_(torch.where(frozen, nearest_power(p, top, self.bits[number]), p))
            self.held[number].copy_(p)
        self.taken += 1
        self.hold()

    def _order(self, number: int) -> Tensor:
        """[numel] the elements, those frozen already first, then the ones to freeze next."""
        p, frozen = self.params[number].reshape(-1), self.frozen[number].reshape(-1)
        if self.strategy == "pruning":
            rank = p.abs()
        else:
            generator = torch.Generator().manual_seed(hash((self.seed, self.taken, number)) % 2**63)
            rank = torch.rand(p.numel(), generator=generator).to(p.device)
        return torch.argsort(torch.where(frozen, torch.inf, rank), descending=True, stable=True)

    @torch.no_grad()
    def hold(self) -> None:
        """Put frozen weights back and clear their momentum; plain tensor code, so that it may be part of a compiled
        step (where hooks are not run)."""
        for p, frozen, held in zip(self.params, self.frozen, self.held, strict=True):
            p.copy_(torch.where(frozen, held, p))
            for value in self.optimizer.state.get(p, {}).values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    value.masked_fill_(frozen, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; tensors by the order of the optimizer's parameters."""
        return {"taken": self.taken, "tops": self.tops, "frozen": self.frozen, "held": self.held}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over `state_dict()`; load the model's and the optimizer's states too."""
        self.taken = state["taken"]
        for name in ("tops", "frozen", "held"):
            for own, saved in zip(getattr(self, name), state[name], strict=True):
                own.copy_(saved)


def reset_lr_scheduler(scheduler: LRScheduler) -> None:
    """Start a learning-rate schedule anew, as at each portion of INQ. Raises ValueError for one without a start."""
    odd = (ReduceLROnPlateau, SequentialLR, ChainedScheduler)
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, odd):
        raise ValueError(
            f"expected a scheduler that is a function of its epoch, such as CosineAnnealingLR or MultiStepLR, got "
            f"{type(scheduler).__name__}; make a new one at each portion instead"
        )
    for group in scheduler.optimizer.param_groups:
        initial = group["initial_lr"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(float(initial))
        else:
            group["lr"] = float(initial)
    scheduler.last_epoch = -1
    scheduler._initial_step()
