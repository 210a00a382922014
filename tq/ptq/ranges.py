"""From a distribution to a quantizer's range: min-max, percentile, least squared error, or least KL divergence.

Inputs are seen once, as a stream; what is kept is a histogram of fixed size, so memory does not grow with the number
of images. Weights are at hand as a whole and are searched directly, one scale per output channel, tensor or group.

| method | the range ends at | source |
| --- | --- | --- |
| minmax | the largest value | Jacob et al., arXiv 1712.05877, section 3 |
| percentile | what `percentile` of the values stay below | Wu et al., arXiv 2004.09602, section 4 |
| mse | the end that loses least squared error, clipping and rounding together | the same |
| lp | the end with the least sum of abs(error)^3: large weights count more (weights only) | LAPQ, arXiv 1911.07190 |
| entropy | the end whose codes tell most of the distribution (inputs only) | Migacz, TensorRT, GTC 2017 |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tq.quantizers import by_group
from triton_kernels.layout import code_range

ACT_METHODS = ("minmax", "percentile", "mse", "entropy")
WEIGHT_METHODS = ("minmax", "percentile", "mse", "lp")
BINS = 4096
# LAPQ finds the best p between 2 and 4, section 4.1; the figures for 2, 2.4, 3, 4 and 6 are in LOG.md
LP_POWER = 3.0
# a bin that P fills and Q does not would make their divergence infinite; MXNet's calibration gives it this count
_SMOOTH = 1e-4
_FRACTIONS = torch.cat([torch.linspace(0.02, 0.3, 29), torch.linspace(0.31, 1.0, 70)])


class Histogram:
    """Streaming histogram of a layer's inputs over [-limit, limit]; the limit doubles when a value does not fit."""

    def __init__(self, name: str = "a layer") -> None:
        self.name = name
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit = 0.0
        self.low = torch.inf
        self.high = -torch.inf

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """x: float, any shape. Raises ValueError for NaN and infinity."""
        x = x.detach().float()
        low, high = (float(v) for v in torch.aminmax(x))
        if not (low > -torch.inf and high < torch.inf):
            raise ValueError(
                f"calibration met NaN or infinity in the input of {self.name}; check the weights and the images"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        needed = max(-low, high)
        if self.limit == 0.0:
            self.limit = needed
        while needed > self.limit > 0:
            half = self.counts.view(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 4 : BINS // 4 * 3] = half
            self.limit *= 2
        if self.limit == 0.0:  # only zeros so far; they belong to this bin whatever the limit becomes
            self.counts[BINS // 2] += x.numel()
            return
        # histc counts in float32, which stops at 2^24
        for part in x.flatten().split(1 << 24):
            self.counts += torch.histc(part, BINS, -self.limit, self.limit).double().cpu()

    def centers(self) -> Tensor:
        """Middle of each bin, float64 [BINS]."""
        width = 2 * self.limit / BINS
        return -self.limit + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def magnitudes(self) -> Tensor:
        """Counts of |x|, float64 [BINS / 2] over [0, limit]."""
        return self.counts[BINS // 2 :] + self.counts[: BINS // 2].flip(0)


def act_scale(seen: Histogram, qmin: int, qmax: int, *, method: str, percentile: float = 99.99) -> float:
    """Symmetric scale (zero point 0) of an input from its histogram. A constant zero input gives 1.

    Raises ValueError: nothing was seen, unknown method.
    """
    _check(seen, method)
    # one bit, signed: the codes are signs, and the mean magnitude is the least squares scale
    if (qmin, qmax) == (-1, 1):
        return float((seen.centers().abs() * seen.counts).sum() / seen.counts.sum()) or 1.0
    largest = max(seen.high / qmax, seen.low / qmin if qmin < 0 else 0.0)
    if largest <= 0:
        return 1.0
    if method == "minmax":
        return largest
    if method == "percentile":
        return min(largest, _quantile(seen.magnitudes(), percentile) * seen.limit / qmax)
    if method == "entropy":
        return min(largest, entropy_threshold(seen.magnitudes(), qmax + 1) * seen.limit / qmax)
    scales = largest * _FRACTIONS.double()
    return float(scales[_errors(seen, scales, torch.zeros(()), qmin, qmax).argmin()])


def act_affine(seen: Histogram, qmin: int, qmax: int, *, method: str, percentile: float = 99.99) -> tuple[float, int]:
    """Scale and zero point of an input: x -> clamp(round(x / scale) + zero point, qmin, qmax), more than one bit.

    The range contains 0, which is a code of its own (arXiv 1712.05877, section 2.1), so that padding with zeros is
    exact. "percentile" leaves half of the rest out at either end; "mse" searches both ends, and is never worse than
    `act_scale`. Raises ValueError: nothing was seen, unknown method.
    """
    _check(seen, method)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if low == high:
        return 1.0, 0
    if method == "mse":
        return _least_squares_ends(seen, low, high, qmin, qmax)
    if method == "percentile":
        rest = (100 - percentile) / 2
        ends = [(2 * _quantile(seen.counts, p) - 1) * seen.limit for p in (rest, 100 - rest)]
        low, high = max(low, min(ends[0], 0.0)), min(high, max(ends[1], 0.0))
    elif method == "entropy":
        end = entropy_threshold(seen.magnitudes(), (qmax - qmin + 1) // 2) * seen.limit
        low, high = max(low, -end), min(high, end)
    scales, zeros = _affine(torch.tensor([low]).double(), torch.tensor([high]).double(), qmin, qmax)
    return float(scales), int(zeros)


def entropy_threshold(counts: Tensor, levels: int) -> float:
    """Where to clip |x|, as a fraction of the histogram: least KL(P || Q) over all ends i >= levels, in bins.

    P is the first i bins with everything beyond added to the last; Q the same bins without it, merged into `levels`
    equal groups and spread again over those bins of each group that are not empty. The first bin is set to the second:
    the zeros behind a ReLU are exact at any scale and would hide the rest, as in NVIDIA's pytorch-quantization
    (calib/histogram.py). All ends at once, by sums of prefixes. Made for values that are dense near zero.

    counts: float64 [N], of |x|. Fewer bins than levels: 1.
    """
    counts = counts.clone()
    counts[0] = counts[1]
    used = int(counts.nonzero().max()) + 1 if bool(counts.any()) else 0
    if used <= levels:
        return 1.0
    ends = torch.arange(levels, used + 1)
    mass, filled, own = (_prefix(x) for x in (counts, (counts > 0).double(), torch.xlogy(counts, counts)))
    # [ends, levels + 1]: bin j of i belongs to group j * levels // i
    edges = (torch.arange(levels + 1) * ends[:, None] + levels - 1) // levels
    group_mass, group_filled = mass[edges].diff(dim=1), filled[edges].diff(dim=1)
    log_q = (group_mass / group_filled.clamp_min(1)).log()
    inside, beyond, last = mass[ends], mass[-1] - mass[ends], counts[ends - 1]
    cross = torch.where(group_mass > 0, group_mass * log_q, 0.0).sum(1)
    cross += beyond * torch.where(last > 0, log_q[:, -1], math.log(_SMOOTH))
    itself = own[ends - 1] + torch.xlogy(last + beyond, last + beyond)
    divergence = (itself - cross) / mass[-1] - mass[-1].log() + inside.log()
    divergence = torch.where(inside > 0, divergence, torch.inf)
    # the first of those that differ by no more than rounding
    return float(ends[(divergence <= divergence.min() + 1e-12).nonzero()[0]]) / len(counts)


@torch.no_grad()
def weight_scale(
    weight: Tensor, bits: int, *, method: str, percentile: float = 99.99, per_channel: bool = True, group: int = 0
) -> Tensor:
    """Scales [O] (per tensor [1], groups [O, ceil(K / group)]) of a weight [O, ...], float32.

    One bit: the mean magnitude, the least squares one. Raises ValueError for an unknown method.
    """
    weight = weight.detach().float()
    if group:
        return by_group(weight, group, lambda rows: _row_scales(rows, bits, method, percentile))
    return _row_scales(weight.flatten(1) if per_channel else weight.flatten()[None], bits, method, percentile)


def _row_scales(rows: Tensor, bits: int, method: str, percentile: float) -> Tensor:
    """Scales [R] of weights [R, n]."""
    if bits == 1:
        return rows.abs().mean(1)
    qmin, qmax = code_range(bits)
    largest = torch.maximum(rows.amax(1) / qmax, rows.amin(1) / qmin)
    if method == "minmax":
        return largest
    if method == "percentile":
        if rows.shape[1] <= 1 << 24:
            return torch.minimum(largest, rows.abs().quantile(percentile / 100, dim=1) / qmax)
        # quantile() refuses longer rows
        rank = max(1, math.ceil(percentile / 100 * rows.shape[1]))
        return torch.minimum(largest, rows.abs().kthvalue(rank, dim=1).values / qmax)
    if method not in WEIGHT_METHODS:
        raise ValueError(f"unknown range method {method!r} of weights: expected {', '.join(WEIGHT_METHODS)}")
    power = 2.0 if method == "mse" else LP_POWER
    best, best_error = largest, torch.full_like(largest, torch.inf)
    for fraction in _FRACTIONS.tolist():
        scale = (largest * fraction).clamp_min(1e-12)
        codes = (rows / scale[:, None]).round().clamp(qmin, qmax)
        error = (codes * scale[:, None] - rows).abs().pow(power).sum(1)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    return best


def _check(seen: Histogram, method: str) -> None:
    if seen.high < seen.low:
        raise ValueError("calibration saw no images; give at least one")
    if method not in ACT_METHODS:
        raise ValueError(f"unknown range method {method!r}: expected {', '.join(ACT_METHODS)}")


def _prefix(x: Tensor) -> Tensor:
    """[N] -> [N + 1], the sum of everything before."""
    return torch.cat([x.new_zeros(1), x.cumsum(0)])


def _quantile(counts: Tensor, percent: float) -> float:
    """Middle of the bin that holds this share of the counts, as a fraction of all bins."""
    cumulative = counts.cumsum(0)
    index = torch.searchsorted(cumulative, cumulative[-1] * percent / 100).clamp_max(len(counts) - 1)
    return (float(index) + 0.5) / len(counts)


def _errors(seen: Histogram, scales: Tensor, zeros: Tensor, qmin: int, qmax: int) -> Tensor:
    """Summed squared error [C] of the candidates `scales` [C] with zero points [C] or 0-dim, float64."""
    filled = seen.counts > 0
    values, counts = seen.centers()[filled], seen.counts[filled]
    scales, zeros = scales[:, None], zeros.expand(scales.shape)[:, None]
    codes = (values / scales).round_().clamp_(qmin - zeros, qmax - zeros)
    return codes.mul_(scales).sub_(values).square_() @ counts


def _affine(low: Tensor, high: Tensor, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    """Scales and integer zero points of ranges low <= 0 <= high, low < high, float64."""
    scales = (high - low) / (qmax - qmin)
    return scales, (qmin - low / scales).round().clamp(qmin, qmax)


def _least_squares_ends(seen: Histogram, low: float, high: float, qmin: int, qmax: int) -> tuple[float, int]:
    """Both ends over a coarse grid, then a fine one around the best; and the symmetric range, which may still win."""
    start, step = (0.52, 0.52), 0.04
    for _ in range(2):
        ends = [(f + step * torch.arange(-12, 13)).clamp(0.0, 1.0).double() for f in start]
        grid = torch.cartesian_prod(*ends)
        grid = grid[(grid * torch.tensor([low, high])).abs().sum(1) > 0]
        scales, zeros = _affine(low * grid[:, 0], high * grid[:, 1], qmin, qmax)
        best = _errors(seen, scales, zeros, qmin, qmax).argmin()
        start, step = tuple(grid[best].tolist()), step / 12
    symmetric = torch.tensor([act_scale(seen, qmin, qmax, method="mse")], dtype=torch.float64)
    choices = torch.cat([scales[best, None], symmetric]), torch.stack([zeros[best], torch.zeros(())])
    winner = _errors(seen, *choices, qmin, qmax).argmin()
    return float(choices[0][winner]), int(choices[1][winner])
