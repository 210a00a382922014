"""Curves and axes as numbers: smoothing, the window that is looked at, ranges, ticks. No Textual here.

What a chart shows is computed in this order: smooth the raw data, cut out the window, bin it to the chart's width.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tq.history import binned

X = Literal["epoch", "step", "time"]
XS: tuple[X, ...] = ("epoch", "step", "time")
# Shares of a curve's points that smoothing averages over; 0 is off.
SMOOTHING = (0.0, 0.01, 0.05, 0.2)
# A window narrower than this share of the data shows single points.
NARROWEST = 1 / 256
TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Curve:
    """One series. `tone` is a theme variable; dots for few points, a line for many. NaN is a gap."""

    label: str
    tone: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False
    best: tuple[float, float] | None = None
    """the point to mark, in the curve's own units"""


@dataclass(frozen=True)
class Picture:
    """What a chart is to draw: curves within [x_low, x_high]."""

    title: str
    curves: tuple[Curve, ...]
    x_low: float
    x_high: float
    x_label: str = ""
    whole: bool = False
    """ticks only at whole numbers of x"""
    log: bool = False
    note: str = ""
    """smoothing and the like"""


@dataclass(frozen=True)
class Window:
    """The stretch of the data that is looked at, as shares of it: 0 is its beginning, 1 its (growing) end."""

    low: float = 0.0
    high: float = 1.0

    @property
    def width(self) -> float:
        return self.high - self.low

    def within(self, first: float, last: float) -> tuple[float, float]:
        """The window on an axis whose data go from `first` to `last`."""
        return first + self.low * (last - first), first + self.high * (last - first)


def zoom_in(window: Window | None, covered: float = 1.0) -> Window | None:
    """Half of it: the latest half where the window ends with the data, else the middle.

    None is the whole axis, of which the data may cover only a part yet: then first that part alone.
    """
    if window is None:
        return Window() if covered < 0.95 else Window(0.5, 1.0)
    width = window.width / 2
    if width < NARROWEST:
        return window
    if window.high >= 1:
        return Window(1 - width, 1.0)
    middle = (window.low + window.high) / 2
    return Window(middle - width / 2, middle + width / 2)


def zoom_out(window: Window | None, covered: float = 1.0) -> Window | None:
    """Twice as wide, and in the end the whole axis again."""
    if window is None or window.width >= 1:
        return None
    width = 2 * window.width
    if width >= 1:
        return Window() if covered < 0.95 else None
    high = 1.0 if window.high >= 1 else min(1.0, (window.low + window.high + width) / 2)
    low = max(0.0, high - width)
    return Window(low, low + width)


def pan(window: Window, by: float) -> Window:
    """Move by a share of its own width; it stays on the data."""
    low = min(max(0.0, window.low + by * window.width), 1 - window.width)
    return Window(low, 1.0 if low + window.width > 1 - 1e-9 else low + window.width)


def smooth(ys: Sequence[float], share: float) -> list[float]:
    """Exponential mean over `share` of the points, without the bias of its beginning; NaN stays a gap.

    With a decay d a value that is k points old weighs d^k; the mean age of the weights is half of the stretch.
    """
    stretch = share * len(ys)
    if stretch < 2:
        return list(ys)
    decay = 1 - 2 / (stretch + 1)
    total = weight = 0.0
    means = []
    for y in ys:
        if math.isfinite(y):
            total, weight = decay * total + y, decay * weight + 1
            means.append(total / weight)
        else:
            means.append(math.nan)
    return means


def cut(xs: Sequence[float], ys: Sequence[float], low: float, high: float) -> tuple[Sequence[float], Sequence[float]]:
    """The points with low <= x <= high; xs ascend."""
    first, last = bisect.bisect_left(xs, low), bisect.bisect_right(xs, high)
    return xs[first:last], ys[first:last]


def shown(curve: Curve, low: float, high: float, bins: int, *, log: bool) -> tuple[list[float], list[float]]:
    """What is drawn of a curve: its points in [low, high] in at most `bins` means; with `log` their log10."""
    xs, ys = cut(curve.xs, curve.ys, low, high)
    xs, ys = (list(xs), list(ys)) if curve.dots else binned(xs, ys, bins)
    return (xs, [math.log10(y) if y > 0 else math.nan for y in ys]) if log else (xs, ys)


def pieces(xs: Sequence[float], ys: Sequence[float]) -> Iterator[tuple[list[float], list[float]]]:
    """The finite stretches of a curve."""
    piece: tuple[list[float], list[float]] = ([], [])
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            piece[0].append(x)
            piece[1].append(y)
        elif piece[0]:
            yield piece
            piece = ([], [])
    if piece[0]:
        yield piece


def span(ys: Sequence[float]) -> tuple[float, float]:
    """The range to draw: a little more than the data; the few highest spikes of a long curve may leave it."""
    finite = sorted(y for y in ys if math.isfinite(y))
    if not finite:
        return 0.0, 1.0
    low, high = finite[0], finite[-1 if len(finite) < 50 else -1 - len(finite) // 100]
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (max(0.0, low - pad) if low >= 0 else low - pad), high + pad


def log_span(ys: Sequence[float]) -> tuple[float, float]:
    """The same for decimal logarithms, which may be negative; never less than a tenth of a decade."""
    low, high = span([y + 1000 for y in ys if math.isfinite(y)] or [1000.0])
    middle, half = (low + high) / 2 - 1000, max(0.05, (high - low) / 2)
    return middle - half, middle + half


def ticks(low: float, high: float, at_most: int, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / at_most))
    found: list[float] = []
    for step in (m * power for m in (1, 2, 5, 10, 20, 50)):
        if whole and step < 1:
            continue
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        # One tick alone gives no scale: then rather one or two too many.
        if last - first < 1 and found:
            break
        found = [round(i * step, 12) for i in range(first, last + 1)]
        if len(found) <= at_most:
            break
    return found


def log_ticks(low: float, high: float, at_most: int) -> list[float]:
    """Exponents of round numbers within 10^low to 10^high: powers of ten, with 2 and 5 between or more where few."""
    for digits in ((1,), (1, 3), (1, 2, 5)):
        found = [
            e + math.log10(d)
            for e in range(math.floor(low), math.ceil(high) + 1)
            for d in digits
            if low <= e + math.log10(d) <= high
        ]
        if len(found) >= min(3, at_most):
            return found[:: math.ceil(len(found) / at_most)]
    # Less than half a decade: as on a linear axis.
    return [math.log10(value) for value in ticks(10**low, 10**high, at_most) if value > 0]


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit for an axis of this length, and its name: two of it at least."""
    return next(((size, name) for size, name in TIME_UNITS if seconds >= 2 * size), TIME_UNITS[-1])


def tick_text(value: float) -> str:
    """A number on an axis: 0.25, 40, 12k."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:.4g}"
