"""What is quantized to how many bits, and the short names for it: w1a2, w4a8, w2a16, float.

`w<bits>a<bits>` gives the bits of weights and of activations (inputs of a layer); 16 means "left in
floating point". One-bit weights are {-1, +1} times a scale ("binary"); 2, 4 and 8 bits are signed integers
times a scale. Standard library only: the dashboard imports this file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

WEIGHT_BITS = (1, 2, 4, 8, 16)
ACT_BITS = (1, 2, 4, 8, 16)
_NAME = re.compile(r"w(\d+)a(\d+)")


@dataclass(frozen=True)
class Scheme:
    """Bits of one layer. `Scheme.parse("w1a2")`; `str(scheme)` gives the name back."""

    weight_bits: int = 16
    act_bits: int = 16

    def __post_init__(self) -> None:
        for what, bits, known in (("weight", self.weight_bits, WEIGHT_BITS), ("activation", self.act_bits, ACT_BITS)):
            if bits not in known:
                raise ValueError(f"{what} bits must be one of {', '.join(map(str, known))}, got {bits}")

    @staticmethod
    def parse(name: str) -> Scheme:
        """`w<bits>a<bits>` or `float` (the same as w16a16). Raises ValueError with the nearest name."""
        if name == "float":
            return Scheme()
        if not (match := _NAME.fullmatch(name)):
            known = ["float", *(f"w{w}a{a}" for w in WEIGHT_BITS for a in ACT_BITS)]
            raise ValueError(
                f"unknown scheme {name!r}: expected w<bits>a<bits> such as w1a2, w4a8 or w2a16, or 'float'"
                f"{did_you_mean(name, known)}"
            )
        return Scheme(int(match[1]), int(match[2]))

    @property
    def is_float(self) -> bool:
        return self.weight_bits == 16 and self.act_bits == 16

    def __str__(self) -> str:
        return "float" if self.is_float else f"w{self.weight_bits}a{self.act_bits}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error sentence: "; did you mean 'x'?" or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
