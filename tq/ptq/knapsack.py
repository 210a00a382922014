"""The exact Pareto front of a multiple-choice knapsack: bytes against predicted loss over all choices of widths.

    minimise sum of loss(layer, bits of the layer)   subject to   sum of bytes(layer, bits) <= budget

Layer after layer, the list of all (bytes, loss) that no other combination beats in both is kept (Nemhauser and
Ullmann 1969; Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter 11), so one pass answers for every
budget at once. Beyond MAX_STATES entries the list is thinned evenly by bytes: the answer then is at least as good as
the exact one for a budget smaller by a part in MAX_STATES for each layer. ResNet-20 stays below that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_STATES = 1 << 16
Bits = dict[str, int]


@dataclass(frozen=True)
class Option:
    """One width of one layer: stored bytes and predicted loss in nats an image."""

    bits: int
    bytes: int
    loss: float


class Front:
    """All combinations that no other beats in layer bytes and predicted loss, by rising bytes and falling loss.

    bytes: int64 [N], of the layers alone; loss: float64 [N], nats an image.
    """

    def __init__(self, options: Mapping[str, list[Option]], *, max_states: int = MAX_STATES) -> None:
        self.names = tuple(options)
        self._options = list(options.values())
        self._steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self.bytes, self.loss = np.zeros(1, np.int64), np.zeros(1)
        for widths in self._options:
            size = (self.bytes[:, None] + np.array([o.bytes for o in widths])).ravel()
            loss = (self.loss[:, None] + np.array([o.loss for o in widths])).ravel()
            kept = _undominated(size, loss, max_states)
            self.bytes, self.loss = size[kept], loss[kept]
            parent, choice = np.divmod(kept, len(widths))
            self._steps.append((parent, choice))

    def __len__(self) -> int:
        return len(self.bytes)

    def bits(self, index: int) -> Bits:
        """The widths of one entry, traced back layer by layer."""
        found: Bits = {}
        for number in range(len(self.names) - 1, -1, -1):
            parent, choice = self._steps[number]
            found[self.names[number]] = self._options[number][choice[index]].bits
            index = int(parent[index])
        return {name: found[name] for name in self.names}


def _undominated(size: NDArray[np.int64], loss: NDArray[np.float64], max_states: int) -> NDArray[np.int64]:
    """Indices of the pairs that no other beats in both, by rising size; at most max_states + 1 of them."""
    order = np.lexsort((loss, size))
    before = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    kept = order[loss[order] < before]
    if len(kept) <= max_states:
        return kept
    # the last, that is the least loss, of every bucket of bytes; and the smallest of all
    low, high = int(size[kept[0]]), int(size[kept[-1]])
    buckets = (size[kept] - low) * max_states // (high - low + 1)
    last = np.flatnonzero(np.diff(buckets, append=max_states))
    return kept[np.union1d([0], last)]
