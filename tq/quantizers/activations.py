"""Quantizers of a layer's inputs: fixed step, learned range, learned step, learned step and zero point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tq.quantizers.gradient import TINY, scale_gradient, sign, straight_through
from triton_kernels.layout import code_range
from triton_kernels.reference import quantize_input


def act_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Smallest and largest input code: 0 .. 2^bits - 1, or two's complement when signed (one bit: -1 and 1)."""
    return code_range(bits) if signed else (0, 2**bits - 1)


def _recomputed(forward: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    """forward(x), whose masks a compiled backward derives from x again instead of reading them from memory.

    Left to itself the compiler keeps one-byte masks where nothing else needs x; on a CPU, Inductor's loops that store
    or load them are many times slower, which made a training step of Clip and PACT twice as slow. The formulas are the
    same; under autocast other intermediate values may be rounded to bfloat16.
    """
    if not torch.compiler.is_compiling():
        return forward(x)
    codes: tuple[Tensor, Tensor] = checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)
    return codes


class ActQuantizer(nn.Module):
    """Base of the input quantizers. `codes` is the exact form that evaluation and the packed layer share."""

    def __init__(self, bits: int, *, signed: bool) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.qmin, self.qmax = act_range(bits, signed=signed)
        # a Python int, so that a compiled graph holds it as a constant; the two methods below keep it in state dicts
        self._zero_point = 0

    @property
    def zero_point(self) -> int:
        """The code that means 0.0."""
        return self._zero_point

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._zero_point:
            destination[prefix + "zero_point"] = torch.tensor(self._zero_point)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # no entry is a zero point of 0, as in every checkpoint from before there was one
        self._zero_point = int(state_dict.pop(prefix + "zero_point", 0))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def binary(self) -> bool:
        """True for signed one-bit inputs, whose codes are only -1 and 1."""
        return self.bits == 1 and self.signed

    def scale(self) -> Tensor:
        """Value of one code, 0-dim float32."""
        raise NotImplementedError

    def set_range(self, scale: float, zero_point: int = 0) -> None:
        """Take over a calibrated range."""
        raise NotImplementedError

    def codes(self, x: Tensor) -> Tensor:
        """x float -> centred integer codes, float32, without gradient rules."""
        inverse = self.scale().reciprocal()
        return quantize_input(x, inverse, self.zero_point, self.qmin, self.qmax, binary=self.binary)

    def _round(self, scaled: Tensor) -> Tensor:
        if self.binary:
            return sign(scaled)
        return (scaled.round() + self.zero_point).clamp(self.qmin, self.qmax) - self.zero_point

    def _strictly_inside(self, scaled: Tensor) -> Tensor:
        return (scaled > self.qmin - self.zero_point) & (scaled < self.qmax - self.zero_point)


class Clip(ActQuantizer):
    """clip(round(x), 0, 2^bits - 1): step 1, nothing to learn; batch normalization adapts to it."""

    def scale(self) -> Tensor:
        return torch.ones(())

    def set_range(self, scale: float, zero_point: int = 0) -> None:
        """The step is fixed at 1: a calibrated range is ignored by definition."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x float -> codes, scale."""
        return _recomputed(self._fake_quantize, x.float())

    def _fake_quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return straight_through(x, self._round(x), self._strictly_inside(x)), torch.ones((), device=x.device)


class PACT(ActQuantizer):
    """Range [0, alpha] with alpha learned; its L2 penalty is the optimizer's weight decay on alpha."""

    def __init__(self, bits: int, *, signed: bool) -> None:
        super().__init__(bits, signed=signed)
        self.alpha = nn.Parameter(torch.tensor(float(self.qmax)))

    def scale(self) -> Tensor:
        return self.alpha.detach().abs().clamp_min(TINY) / self.qmax

    @torch.no_grad()
    def set_range(self, scale: float, zero_point: int = 0) -> None:
        """PACT has no zero point; alpha = scale * n."""
        self.alpha.fill_(scale * self.qmax)

    def start_as_published(self) -> None:
        """alpha = n, a step of 1, whatever was calibrated."""
        self.set_range(1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x float -> codes, scale."""
        return _recomputed(self._fake_quantize, x.float())

    def _fake_quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha.abs().clamp_min(TINY)
        scaled = x.float() * self.scale().reciprocal()
        inside = self._strictly_inside(scaled)
        codes = straight_through(scaled, self._round(scaled), inside)
        # value = codes * alpha / n: inside the range alpha must get no gradient (eq. 3), so its share is taken back
        back = codes.detach() * (1 - alpha / alpha.detach())
        return codes + torch.where(inside, back, 0.0), alpha / self.qmax


class LearnedStep(ActQuantizer):
    """LSQ for inputs; after calibration without training it is plain static quantization."""

    def __init__(self, bits: int, *, signed: bool) -> None:
        super().__init__(bits, signed=signed)
        self.step = nn.Parameter(torch.ones(()))

    def scale(self) -> Tensor:
        return self.step.detach().abs().clamp_min(TINY)

    @torch.no_grad()
    def set_range(self, scale: float, zero_point: int = 0) -> None:
        """scale: float > 0; zero_point: a code in [qmin, qmax] that means 0.0."""
        self.step.fill_(max(scale, TINY))
        self._zero_point = zero_point

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, ...] float -> codes, scale."""
        x = x.float()
        step = scale_gradient(self.step.abs().clamp_min(TINY), (x[0].numel() * self.qmax) ** -0.5)
        # by the reciprocal, as in `codes`: a quotient could round to the other side of a half
        scaled = x * step.reciprocal()
        low, high = self.qmin - self.zero_point, self.qmax - self.zero_point
        inside = (scaled >= low) & (scaled <= high)
        exact = self._round(scaled)
        return straight_through(scaled, exact, inside), step


class LearnedOffset(LearnedStep):
    """LSQ+: step and zero point are learned. Inputs that are never negative keep the zero point 0."""

    def __init__(self, bits: int, *, signed: bool) -> None:
        super().__init__(bits, signed=signed)
        self.learns = signed and not self.binary
        self.offset = nn.Parameter(torch.zeros(()), requires_grad=self.learns)

    @property
    def zero_point(self) -> int:
        """The learned offset, rounded into the range of codes."""
        return int(self.offset.detach().round().clamp(self.qmin, self.qmax)) if self.learns else 0

    @torch.no_grad()
    def set_range(self, scale: float, zero_point: int = 0) -> None:
        """As LearnedStep; both are where learning starts."""
        self.step.fill_(max(scale, TINY))
        self.offset.fill_(zero_point)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, ...] float -> codes, scale. d codes / d offset is 0 inside the range and -1 where it is clipped."""
        if not self.learns:
            return super().forward(x)
        x = x.float()
        factor = (x[0].numel() * self.qmax) ** -0.5
        step = scale_gradient(self.step.abs().clamp_min(TINY), factor)
        zero = self.offset.detach().round().clamp(self.qmin, self.qmax)
        offset = scale_gradient(self.offset, factor)
        # zero + 0: whole numbers stay whole
        learned = zero + (offset - offset.detach())
        scaled = x * step.reciprocal()
        exact = (scaled.round() + zero).clamp(self.qmin, self.qmax)
        shifted = scaled + learned
        inside = (scaled + zero >= self.qmin) & (scaled + zero <= self.qmax)
        return straight_through(shifted, exact, inside) - learned, step


ACT_QUANTIZERS = {"clip": Clip, "pact": PACT, "lsq": LearnedStep, "lsq+": LearnedOffset}
