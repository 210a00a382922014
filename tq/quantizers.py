"""Fake quantizers: what a layer's weights and inputs become, as integer codes and a scale.

Every quantizer returns `(codes, scale)` with value = codes * scale. The layer convolves the codes and multiplies by
the scale afterwards, in training as in inference: the codes of 8 bits and less are exact in bfloat16, so mixed
precision rounds nothing that the packed file keeps. Gradients pass the rounding straight through (STE); each class
states its rule. Codes are integer-valued floats, centred on zero (a zero point is already subtracted).

A weight [O, ...] has one scale per output channel ([O]), one for all ([O] too, all equal), or one for each group of
consecutive weights of a channel, in the order in which they are packed (kh, kw, in). Of these every weight is given its
own (a scale of the weight's shape), as they cannot leave the sum: the layer convolves codes * scale.

| class | of | scale | gradient | source |
| --- | --- | --- | --- | --- |
| ScaledSign | weights, 1 bit | mean of abs(w) | identity | XNOR-Net, arXiv 1603.05279, eq. 6 |
| LearnedWeight | weights, 1 to 8 bits | learned | LSQ | arXiv 1902.08153, eqs. 1 to 5 |
| PowerOfTwo | weights, 2 to 8 bits | smallest power, fixed | none: frozen in steps | INQ, arXiv 1702.03044 |
| Clip | inputs | 1, fixed | 1 strictly inside the range | DoReFa-like, Quantized_ResNet |
| PACT | inputs | alpha / n, learned | 1 inside; d/d alpha = 1 above | arXiv 1805.06085, eqs. 1 to 3 |
| LearnedStep | inputs | learned, with a calibrated zero point | LSQ | arXiv 1902.08153, eqs. 1 to 5 |
| LearnedOffset | inputs | learned, as is the zero point of signed ones | LSQ+ | arXiv 2004.09576, eqs. 4 to 6 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triton_kernels.layout import code_range, to_rows
from triton_kernels.reference import quantize_input

_TINY = 1e-8


def act_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Smallest and largest input code: 0 .. 2^bits - 1, or two's complement when signed (one bit: -1 and 1)."""
    return code_range(bits) if signed else (0, 2**bits - 1)


def _straight_through(value: Tensor, exact: Tensor, passes: Tensor) -> Tensor:
    """Forward `exact`; backward the gradient of `value` where `passes`."""
    return exact.detach() + torch.where(passes, value - value.detach(), 0.0)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    return x.detach() + (x - x.detach()) * factor


def _sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def per_weight(scale: Tensor, weight: Tensor) -> Tensor:
    """A weight's scale so that it can be multiplied with it: [O] as [O, 1, ...], one of its shape as it is."""
    return scale if scale.ndim == weight.ndim else scale.view(-1, *[1] * (weight.ndim - 1))


def groups_of(weight: Tensor, group: int) -> int:
    """The group size that a weight [O, ...] really has: 0, a scale per channel, where a group holds the channel."""
    return group if group < weight[0].numel() else 0


def by_group(weight: Tensor, group: int, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """[O, ceil(K / group)]: rule([rows, n] -> [rows]) of each group of a weight [O, ...]; the last may be shorter."""
    rows = to_rows(weight)
    whole = rows.shape[1] // group * group
    found = [rule(rows[:, :whole].reshape(-1, group)).view(len(rows), -1)]
    if whole < rows.shape[1]:
        found.append(rule(rows[:, whole:])[:, None])
    return torch.cat(found, 1)


def spread(scale: Tensor, shape: Sequence[int], group: int) -> Tensor:
    """The scales of groups, [O, ceil(K / group)], for each weight: of the weight's shape, OIHW or [O, K]."""
    rows = scale.unsqueeze(2).expand(-1, -1, group).flatten(1)[:, : math.prod(shape[1:])]
    if len(shape) == 2:
        return rows
    out, inside, height, width = shape
    return rows.reshape(out, height, width, inside).permute(0, 3, 1, 2)


class ScaledSign(nn.Module):
    """w -> sign(w) with scale mean|w|, per output channel, per tensor or per group.

    With `held_by_optimizer` the parameter already is +-s (hysteresis-sgd keeps the latent weights): training uses it
    as it is, evaluation resolves it by its sign.
    """

    bits = 1

    def __init__(self, *, per_channel: bool = True, group: int = 0) -> None:
        super().__init__()
        self.per_channel, self.group = per_channel, group
        self.held_by_optimizer = False

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight [O, ...] float -> codes [O, ...], scale [O] or [O, ...]."""
        if self.held_by_optimizer and self.training:
            return weight, torch.ones(weight.shape[0], device=weight.device)
        scale = self.scale(weight.detach())
        latent = weight / per_weight(scale, weight)
        return _sign(weight).detach() + (latent - latent.detach()), scale

    def scale(self, weight: Tensor) -> Tensor:
        """weight [O, ...] -> mean magnitudes [O], or [O, ...] of groups."""
        if self.group:
            scale = by_group(weight.abs(), self.group, lambda rows: rows.mean(1))
            return spread(scale, weight.shape, self.group).clamp_min(_TINY)
        scale = weight.abs().flatten(1).mean(1)
        if not self.per_channel:
            scale = scale.mean().expand(weight.shape[0])
        return scale.clamp_min(_TINY)


class LearnedWeight(nn.Module):
    """LSQ for weights; calibration sets `step`, training learns it."""

    def __init__(self, bits: int, weight: Tensor, *, per_channel: bool = True, group: int = 0) -> None:
        super().__init__()
        self.bits = bits
        self.qmin, self.qmax = code_range(bits)
        self.per_channel, self.group = per_channel, group
        # LSQ's own start, section 2.1; calibration replaces it
        size = weight.detach().abs()
        if group:
            means = by_group(size, group, lambda rows: rows.mean(1))
        else:
            means = size.flatten(1).mean(1) if per_channel else size.mean()[None]
        self.step = nn.Parameter(torch.empty_like(means))
        self.set_step(2 * means / self.qmax**0.5)

    @torch.no_grad()
    def set_step(self, step: Tensor) -> None:
        """step: [O] (per channel), [1] or [O, groups], float32, positive; zero (an all-zero channel) becomes tiny."""
        self.step.copy_(step.clamp_min(_TINY))

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight [O, ...] float -> codes [O, ...], scale [O] or [O, ...]."""
        count = weight.numel() / self.step.numel()
        step = _scale_gradient(self.step.abs().clamp_min(_TINY), (count * self.qmax) ** -0.5)
        scale = spread(step, weight.shape, self.group) if self.group else step.expand(weight.shape[0])
        scaled = weight / per_weight(scale, weight)
        exact = _sign(scaled) if self.bits == 1 else scaled.round().clamp(self.qmin, self.qmax)
        inside = (scaled >= self.qmin) & (scaled <= self.qmax)
        return _straight_through(scaled, exact, inside), scale


class PowerOfTwo(nn.Module):
    """Weights of 0 and +-2^n2 .. +-2^n1 (INQ); in training the optimizer holds those already quantized (tq.optim.inq).

    Codes are 0 and +-2^i, i = 0 .. 2^(bits-2) - 1, the scale is 2^n2. `top` is n1, fixed by the weights given here.
    """

    top: Tensor
    per_channel = False
    group = 0

    def __init__(self, bits: int, weight: Tensor) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("top", torch.tensor(float(top_exponent(weight)), device=weight.device))

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight [O, ...] float -> training: itself and ones; else codes [O, ...] and scale [O]."""
        if self.training:
            return weight, torch.ones(weight.shape[0], device=weight.device)
        scale = torch.exp2(self.top + 1 - magnitudes(self.bits))
        return nearest_power(weight, self.top, self.bits) / scale, scale.expand(weight.shape[0])


def magnitudes(bits: int) -> int:
    """How many powers of two a codebook of so many bits has: 2^(bits-2) (INQ, eq. 3; one code more is zero)."""
    return 2 ** (bits - 2)


def top_exponent(weight: Tensor) -> int:
    """n1 = floor(log2(4 s / 3)) with s = max |w| (INQ, eq. 2). Raises ValueError where that is no number."""
    largest = float(weight.detach().abs().max())
    if not 0 < largest < math.inf:
        raise ValueError(f"expected weights with a largest magnitude above 0, got {largest}; give a trained network")
    fraction, exponent = math.frexp(largest)
    return exponent if fraction >= 0.75 else exponent - 1


def nearest_power(weight: Tensor, top: Tensor, bits: int) -> Tensor:
    """Each weight as 0 or +-2^i, n2 <= i <= n1 = top, n2 = n1 + 1 - 2^(bits-2) (INQ, eq. 4).

    Below 2^(n2-1) it is 0; between powers the thresholds are 1.5 * 2^i, ties upward; above 2^n1 it saturates.
    """
    fraction, exponent = torch.frexp(weight.abs())
    nearest = exponent - (fraction < 0.75).to(exponent.dtype)
    low = top + 1 - magnitudes(bits)
    power = torch.exp2(torch.clamp(nearest.to(weight.dtype), low, top))
    return torch.where(weight.abs() < torch.exp2(low - 1), 0.0, torch.where(weight < 0, -power, power))


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
            return _sign(scaled)
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
        return _straight_through(x, self._round(x), self._strictly_inside(x)), torch.ones((), device=x.device)


class PACT(ActQuantizer):
    """Range [0, alpha] with alpha learned; its L2 penalty is the optimizer's weight decay on alpha."""

    def __init__(self, bits: int, *, signed: bool) -> None:
        super().__init__(bits, signed=signed)
        self.alpha = nn.Parameter(torch.tensor(float(self.qmax)))

    def scale(self) -> Tensor:
        return self.alpha.detach().abs().clamp_min(_TINY) / self.qmax

    @torch.no_grad()
    def set_range(self, scale: float, zero_point: int = 0) -> None:
        """PACT has no zero point; alpha = scale * n."""
        self.alpha.fill_(scale * self.qmax)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x float -> codes, scale."""
        return _recomputed(self._fake_quantize, x.float())

    def _fake_quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha.abs().clamp_min(_TINY)
        scaled = x.float() * self.scale().reciprocal()
        inside = self._strictly_inside(scaled)
        codes = _straight_through(scaled, self._round(scaled), inside)
        # value = codes * alpha / n: inside the range alpha must get no gradient (eq. 3), so its share is taken back
        back = codes.detach() * (1 - alpha / alpha.detach())
        return codes + torch.where(inside, back, 0.0), alpha / self.qmax


class LearnedStep(ActQuantizer):
    """LSQ for inputs; after calibration without training it is plain static quantization."""

    def __init__(self, bits: int, *, signed: bool) -> None:
        super().__init__(bits, signed=signed)
        self.step = nn.Parameter(torch.ones(()))

    def scale(self) -> Tensor:
        return self.step.detach().abs().clamp_min(_TINY)

    @torch.no_grad()
    def set_range(self, scale: float, zero_point: int = 0) -> None:
        """scale: float > 0; zero_point: a code in [qmin, qmax] that means 0.0."""
        self.step.fill_(max(scale, _TINY))
        self._zero_point = zero_point

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, ...] float -> codes, scale."""
        x = x.float()
        step = _scale_gradient(self.step.abs().clamp_min(_TINY), (x[0].numel() * self.qmax) ** -0.5)
        # by the reciprocal, as in `codes`: a quotient could round to the other side of a half
        scaled = x * step.reciprocal()
        low, high = self.qmin - self.zero_point, self.qmax - self.zero_point
        inside = (scaled >= low) & (scaled <= high)
        exact = self._round(scaled)
        return _straight_through(scaled, exact, inside), step


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
        self.step.fill_(max(scale, _TINY))
        self.offset.fill_(zero_point)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, ...] float -> codes, scale. d codes / d offset is 0 inside the range and -1 where it is clipped."""
        if not self.learns:
            return super().forward(x)
        x = x.float()
        factor = (x[0].numel() * self.qmax) ** -0.5
        step = _scale_gradient(self.step.abs().clamp_min(_TINY), factor)
        zero = self.offset.detach().round().clamp(self.qmin, self.qmax)
        offset = _scale_gradient(self.offset, factor)
        # zero + 0: whole numbers stay whole
        learned = zero + (offset - offset.detach())
        scaled = x * step.reciprocal()
        exact = (scaled.round() + zero).clamp(self.qmin, self.qmax)
        shifted = scaled + learned
        inside = (scaled + zero >= self.qmin) & (scaled + zero <= self.qmax)
        return _straight_through(shifted, exact, inside) - learned, step


WeightQuantizer = ScaledSign | LearnedWeight | PowerOfTwo
ACT_QUANTIZERS = {"clip": Clip, "pact": PACT, "lsq": LearnedStep, "lsq+": LearnedOffset}
