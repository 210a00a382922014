"""Weight bits layer by layer: the least predicted loss in a file of given size, or the smallest file for a loss.

The losses are measured with one layer quantized at a time (tq/ptq/sensitivity.py) and added up; tq/ptq/knapsack.py
then finds the exact best choices. Their sum is a model, which holds while each loss is small: `smallest_within`
measures whole combinations along the front instead.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tq.config import parse_override
from tq.ptq.knapsack import Bits, Front, Option
from tq.ptq.sensitivity import Sensitivity

MAX_MEASUREMENTS = 8
Costs = Mapping[str, Mapping[int, int]]
Pins = Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Point:
    """One combination of widths; `bytes` of the whole file, `loss` in nats an image, predicted."""

    bytes: int
    loss: float
    bits: Bits


@dataclass(frozen=True)
class Allocation:
    """The chosen point, why each layer has its bits, and the front that it was chosen from, by size (at most 128)."""

    chosen: Point
    reasons: dict[str, str]
    front: list[Point]


@dataclass(frozen=True)
class Measured:
    """A point whose drop (top-1, in percentage points) was measured."""

    point: Point
    drop: float


def allocate(
    rows: Iterable[Sensitivity],
    costs: Costs,
    *,
    file_bytes: Callable[[Bits], int],
    target_bytes: int | None = None,
    max_loss: float | None = None,
    pinned: Pins | None = None,
) -> Allocation:
    """Choose the weight bits of every layer of `rows`.

    Args:
        rows: measured losses; a negative one (noise) counts as none.
        costs: stored bytes of each layer at each width, `tq.file_size.layer_bytes`.
        file_bytes: size of the whole file with given bits, `tq.file_size.file_bytes`; the header is a part of it.
        target_bytes: the file is at most this large, and its predicted loss the least.
        max_loss: the predicted loss is at most this, in nats an image, and the file the smallest.
        pinned: {layer: (bits, what pins it)}, such as {"conv1": (8, "--first-last")}, see `pins`.

    Raises:
        ValueError: both or neither limit, a limit that cannot be met (the sentence names the best that can), a layer
            pinned to a width that was not measured.
    """
    if (target_bytes is None) == (max_loss is None):
        raise ValueError("bits are allocated for either target_bytes or max_loss; give one of them")
    options = options_of(rows, costs, pinned or {})
    front = Front(options)
    if target_bytes is not None:
        index = _at_most_bytes(front, target_bytes, file_bytes)
    else:
        index = _at_most_loss(front, max_loss or 0.0)
    chosen = _point(front, index, file_bytes)
    return Allocation(chosen, reasons(options, chosen.bits, pinned or {}), thinned(front, file_bytes))


def smallest_within(
    front: Sequence[Point],
    drop_of: Callable[[Bits], float],
    max_drop: float,
    *,
    max_measurements: int = MAX_MEASUREMENTS,
    on_measure: Callable[[Measured], None] = lambda measured: None,
) -> tuple[Point, list[Measured]]:
    """The smallest point of a front (by rising size) whose measured drop is at most `max_drop`, by bisection.

    The largest point is measured first. The drop is taken to fall with size: where it does not, the answer still is
    within the limit, but a smaller file may be, too. 8 measurements are enough for 128 points.

    drop_of: top-1 drop of the network with these weight bits, in percentage points.
    Raises ValueError with the drop of the largest point when even that is over the limit.
    """
    measured: list[Measured] = []

    def within(index: int) -> bool:
        measured.append(Measured(front[index], drop_of(front[index].bits)))
        on_measure(measured[-1])
        return measured[-1].drop <= max_drop

    low, best = 0, len(front) - 1
    if not within(best):
        raise ValueError(
            f"a drop of at most {max_drop:g} points cannot be met: the largest choice, {front[best].bytes:,} bytes, "
            f"already drops {measured[0].drop:.2f}; allow more, or give the activations more bits"
        )
    while low < best and len(measured) < max_measurements:
        middle = (low + best) // 2
        if within(middle):
            best = middle
        else:
            low = middle + 1
    return front[best], measured


def thinned(front: Front, file_bytes: Callable[[Bits], int], count: int = 2 ** (MAX_MEASUREMENTS - 1)) -> list[Point]:
    """At most `count` points of a front, evenly spaced in the logarithm of layer bytes, with both ends."""
    wanted = np.geomspace(max(1, front.bytes[0]), max(1, front.bytes[-1]), count)[1:-1]
    indices = np.searchsorted(front.bytes, wanted, side="right") - 1
    points = [_point(front, int(i), file_bytes) for i in np.unique([0, *indices.clip(0), len(front) - 1])]
    # the header's length depends on the widths, which can turn the order of neighbours
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def pins(names: Sequence[str], *, first_last: str = "8", override: Iterable[str] = ()) -> dict[str, tuple[int, str]]:
    """Layers whose weight bits the user has fixed, of all layers in order, with the flag that says so."""
    found = {}
    if first_last != "same":
        bits = 8 if first_last == "8" else 16
        found = dict.fromkeys((names[0], names[-1]), (bits, f"--first-last {first_last}"))
    for rule in override:
        pattern, scheme = parse_override(rule)
        found |= dict.fromkeys(fnmatch.filter(names, pattern), (scheme.weight_bits, f"--override {rule}"))
    return found


def reasons(options: Mapping[str, list[Option]], bits: Bits, pinned: Pins) -> dict[str, str]:
    """One line a layer: what the best smaller width would cost, or what the best larger one would win."""
    lines, prices = {}, {}
    for name, widths in options.items():
        own = next(o for o in widths if o.bits == bits[name])
        others = [(abs((o.loss - own.loss) / (o.bytes - own.bytes)), o) for o in widths if o.bytes != own.bytes]
        smaller = [(price, o) for price, o in others if o.bytes < own.bytes]
        larger = [(price, o) for price, o in others if o.bytes > own.bytes and o.loss < own.loss]
        lines[name] = f"{own.bits} bits: "
        if name in pinned:
            lines[name] += f"pinned by {pinned[name][1]}"
        elif smaller:
            prices[name], other = min(smaller, key=lambda pair: pair[0])
            lines[name] += f"going to {other.bits} would cost {other.loss - own.loss:.2g} nats "
            lines[name] += f"and save {own.bytes - other.bytes:,} bytes"
        elif larger:
            _, other = max(larger, key=lambda pair: pair[0])
            lines[name] += f"the fewest; going to {other.bits} would win {own.loss - other.loss:.2g} nats "
            lines[name] += f"and cost {other.bytes - own.bytes:,} bytes"
        else:
            lines[name] += "more would win nothing"
    if prices:
        lines[max(prices, key=prices.__getitem__)] += ", the most nats per byte"
    return lines


def options_of(rows: Iterable[Sensitivity], costs: Costs, pinned: Pins) -> dict[str, list[Option]]:
    found: dict[str, list[Option]] = {}
    for row in rows:
        widths = found.setdefault(row.layer, [])
        if row.layer not in pinned or pinned[row.layer][0] == row.bits:
            widths.append(Option(row.bits, costs[row.layer][row.bits], max(row.loss, 0.0)))
    if not found:
        raise ValueError("there is no measured layer to allocate bits to")
    for name, widths in found.items():
        if not widths:
            raise ValueError(f"layer {name} is pinned to {pinned[name][0]} bits by {pinned[name][1]}, not measured")
    return found


def _at_most_bytes(front: Front, target: int, file_bytes: Callable[[Bits], int]) -> int:
    """The least loss whose file fits."""
    floor = file_bytes(front.bits(0))
    # headers name the layers of all widths but the most frequent: start where the shortest might do, go down from there
    # (a header may lose every quoted name, and the whole group of each of the four widths)
    room = target - floor + int(front.bytes[0]) + sum(len(name) + 6 for name in front.names) + 4 * 256
    start = int(np.searchsorted(front.bytes, room, side="right")) - 1
    for index in range(start, -1, -1):
        if file_bytes(front.bits(index)) <= target:
            return index
    raise ValueError(f"a file of {target:,} bytes cannot be made: the smallest possible has {floor:,} bytes")


def _at_most_loss(front: Front, max_loss: float) -> int:
    """The fewest bytes whose predicted loss is within the limit."""
    index = int(np.searchsorted(-front.loss, -max_loss, side="left"))
    if index == len(front):
        raise ValueError(
            f"a predicted loss of {max_loss:g} nats cannot be met: with the most bits it is {front.loss[-1]:.4g}"
        )
    return index


def _point(front: Front, index: int, file_bytes: Callable[[Bits], int]) -> Point:
    bits = front.bits(index)
    return Point(file_bytes(bits), float(front.loss[index]), bits)
