"""Two networks layer by layer on the same images: where they begin to differ, and by how much.

    snr_db = 10 log10( sum of reference^2 / sum of (other - reference)^2 )

`compare` is for any two modules with corresponding layers: two implementations of one packed network, which must be
equal, or a packed network beside its float original, where the ratio shows which layer loses most.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tq.attach import sites
from tq.evaluate import differences
from tq.hooks import hooked

OUTPUT = "(output)"
"""the row of the network's own result"""


@dataclass(frozen=True)
class Row:
    """One layer's outputs in both networks, over all images. largest: of |other - reference|; inf where one has NaN."""

    name: str
    snr_db: float
    largest: float
    equal: bool


class _Tally:
    """Sums of one layer over calls and batches."""

    def __init__(self) -> None:
        self.signal = self.error = self.largest = 0.0

    def add(self, name: str, reference: Tensor, other: Tensor) -> None:
        if reference.shape != other.shape:
            raise ValueError(
                f"expected the same shapes in both networks, got {list(reference.shape)} and {list(other.shape)} at "
                f"{name}; is one of them another model?"
            )
        error = differences(reference, other)
        self.signal += float(reference.double().square().sum())
        self.error += float(error.square().sum())
        self.largest = max(self.largest, float(error.max()) if error.numel() else 0.0)

    def row(self, name: str) -> Row:
        if self.error == 0:
            snr = math.inf
        else:
            snr = 10 * math.log10(self.signal / self.error) if 0 < self.signal / self.error < math.inf else -math.inf
        return Row(name, snr, self.largest, self.largest == 0)


@torch.no_grad()
def compare(
    reference: nn.Module, other: nn.Module, batches: Iterable[Tensor], *, names: Mapping[str, str] | None = None
) -> list[Row]:
    """Rows in the order of execution of `other`, the last for the networks' outputs.

    reference, other: networks in evaluation mode. batches: inputs float32 [N, C, H, W]. names: layer of `other` -> its
    counterpart in `reference`; default: every convolution and linear layer (float, training form or packed) under its
    own name. Raises ValueError: a layer is missing, or shapes differ.
    """
    names = {n: n for n, m in other.named_modules() if is_layer(m)} if names is None else names
    own = dict(reference.named_modules())
    if missing := sorted(name for name in names.values() if name not in own):
        raise ValueError(f"expected layer {missing[0]} in both networks, got one without it; is it another model?")
    tallies: dict[str, _Tally] = {}
    for x in batches:
        expected: dict[str, list[Tensor]] = {}

        def keep(name: str, y: Tensor, seen: dict[str, list[Tensor]] = expected) -> None:
            # a copy: the next operation may be in place
            seen.setdefault(name, []).append(y.clone())

        def hold(name: str, y: Tensor, seen: dict[str, list[Tensor]] = expected) -> None:
            # a layer that is called twice is compared call by call
            if seen.get(names[name]):
                tallies.setdefault(name, _Tally()).add(name, seen[names[name]].pop(0), y)

        with _watching(reference, set(names.values()), keep):
            result = reference(x.clone())
        with _watching(other, set(names), hold):
            got = other(x.clone())
        tallies.setdefault(OUTPUT, _Tally()).add(OUTPUT, result, got)
    # the output was there first when a later batch reached a layer that the first did not
    return [tally.row(name) for name, tally in sorted(tallies.items(), key=lambda item: item[0] == OUTPUT)]


def first_divergence(rows: Iterable[Row]) -> Row | None:
    """The first layer that is not equal."""
    return next((row for row in rows if not row.equal), None)


def is_layer(module: nn.Module) -> bool:
    """A convolution or linear layer: float, in training form, or packed."""
    return isinstance(module, nn.Conv2d | nn.Linear) or hasattr(module, "weight_packed")


def twins(other: nn.Module, reference: nn.Module) -> dict[str, str]:
    """For `compare`: the layers of a quantized network and their counterparts in the float one that it came from.

    A layer that has taken its batch normalization in corresponds to the float normalization.
    """
    modules = dict(other.named_modules())
    found = {site.name: site.bn for site in sites(reference)}
    return {
        name: bn if bn and type(modules.get(bn)) is nn.Identity else name
        for name, bn in found.items()
        if is_layer(modules.get(name, nn.Identity()))
    }


def _watching(
    model: nn.Module, names: set[str], see: Callable[[str, Tensor], None]
) -> contextlib.AbstractContextManager[None]:
    """Call see(name, output) for every call of the named modules."""

    def hook(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, inputs: Any, output: Tensor) -> None:
            see(name, output)

        return seen

    return hooked(m.register_forward_hook(hook(n)) for n, m in model.named_modules() if n in names)
