"""From a distribution to a quantizer's range: min-max, percentile, or least squared error.

Inputs are seen once, as a stream; what is kept is a histogram of fixed size, so memory does not grow with the number
of images. Weights are at hand as a whole and are searched directly, one scale per output channel or per tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tq.quantizers import weight_range

BINS = 4096
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


def act_scale(seen: Histogram, qmin: int, qmax: int, *, method: str, percentile: float = 99.99) -> float:
    """Symmetric scale (zero point 0) of an input from its histogram. A constant zero input gives 1.

    Raises ValueError: nothing was seen, unknown method.
    """
    if seen.high < seen.low:
        raise ValueError("calibration saw no images; give at least one")
    # one bit, signed: the codes are signs, and the mean magnitude is the least squares scale
    if (qmin, qmax) == (-1, 1):
        return float((seen.centers().abs() * seen.counts).sum() / seen.counts.sum()) or 1.0
    largest = max(seen.high / qmax, seen.low / qmin if qmin < 0 else 0.0)
    if largest <= 0:
        return 1.0
    if method == "minmax":
        return largest
    magnitude = seen.centers().abs()
    if method == "percentile":
        order = magnitude.argsort()
        cumulative = seen.counts[order].cumsum(0)
        index = torch.searchsorted(cumulative, cumulative[-1] * percentile / 100).clamp_max(BINS - 1)
        return min(largest, float(magnitude[order][index]) / qmax)
    if method != "mse":
        raise ValueError(f"unknown range method {method!r}: expected minmax, percentile or mse")
    values, scales = seen.centers(), largest * _FRACTIONS.double()
    codes = (values / scales[:, None]).round().clamp(qmin, qmax)
    error = ((codes * scales[:, None] - values).square() * seen.counts).sum(1)
    return float(scales[error.argmin()])


@torch.no_grad()
def weight_scale(
    weight: Tensor, bits: int, *, method: str, percentile: float = 99.99, per_channel: bool = True
) -> Tensor:
    """Scales [O] (or [1]) of a weight [O, ...], float32. One bit: the mean magnitude, the least squares one."""
    rows = weight.detach().float().flatten(1) if per_channel else weight.detach().float().flatten()[None]
    if bits == 1:
        return rows.abs().mean(1)
    qmin, qmax = weight_range(bits)
    largest = torch.maximum(rows.amax(1) / qmax, rows.amin(1) / qmin)
    if method == "minmax":
        return largest
    if method == "percentile":
        return torch.minimum(largest, rows.abs().quantile(percentile / 100, dim=1) / qmax)
    if method != "mse":
        raise ValueError(f"unknown range method {method!r}: expected minmax, percentile or mse")
    best, best_error = largest, torch.full_like(largest, torch.inf)
    for fraction in _FRACTIONS.tolist():
        scale = (largest * fraction).clamp_min(1e-12)
        codes = (rows / scale[:, None]).round().clamp(qmin, qmax)
        error = (codes * scale[:, None] - rows).square().sum(1)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    return best
