"""What is quantized to how many bits, and the short names for it: w1a2, w4a8, w2a16, inq5, inq4a8, float.

`w<bits>a<bits>` gives the bits of weights and of activations (inputs of a layer); 16 means "left in
floating point". One-bit weights are {-1, +1} times a scale ("binary"); 2, 4 and 8 bits are signed integers
times a scale. `inq<bits>` and `inq<bits>a<bits>` have weights of zero and powers of two ("pow2").
Standard library only: the dashboard imports this file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

WEIGHT_BITS = (1, 2, 4, 8, 16)
ACT_BITS = (1, 2, 4, 8, 16)
POW2_BITS = (2, 3, 4, 5, 6, 7, 8)
_NAME = re.compile(r"w(\d+)a(\d+)")
_POW2_NAME = re.compile(r"inq(\d+)(?:a(\d+))?")


@dataclass(frozen=True)
class Scheme:
    """Bits of one layer. `Scheme.parse("w1a2")`; `str(scheme)` gives the name back."""

    weight_bits: int = 16
    act_bits: int = 16
    pow2: bool = False
    """weights are 0 and +-2^n (incremental network quantization), not integers times a scale"""

    def __post_init__(self) -> None:
        weight_bits = POW2_BITS if self.pow2 else WEIGHT_BITS
        for what, bits, known in (("weight", self.weight_bits, weight_bits), ("activation", self.act_bits, ACT_BITS)):
            if bits not in known:
                raise ValueError(f"{what} bits must be one of {', '.join(map(str, known))}, got {bits}")
        if self.pow2 and self.weight_bits > 5 and self.act_bits < 16:
            raise ValueError(
                f"powers of two of {self.weight_bits} bits times {self.act_bits}-bit activations pass 32-bit sums; "
                f"use inq5a{self.act_bits} or inq{self.weight_bits}"
            )

    @staticmethod
    def parse(name: str) -> Scheme:
        """`w<bits>a<bits>`, `inq<bits>[a<bits>]` or `float` (w16a16). Raises ValueError with the nearest name."""
        if name == "float":
            return Scheme()
        if match := _POW2_NAME.fullmatch(name):
            return Scheme(int(match[1]), int(match[2] or 16), pow2=True)
        if not (match := _NAME.fullmatch(name)):
            known = ["float", *(f"w{w}a{a}" for w in WEIGHT_BITS for a in ACT_BITS), *(f"inq{b}" for b in POW2_BITS)]
            raise ValueError(
                f"unknown scheme {name!r}: expected w<bits>a<bits> such as w1a2, w4a8 or w2a16, inq<bits>, or 'float'"
                f"{did_you_mean(name, known)}"
            )
        return Scheme(int(match[1]), int(match[2]))

    @property
    def is_float(self) -> bool:
        return self.weight_bits == 16 and self.act_bits == 16

    def __str__(self) -> str:
        if self.pow2:
            return f"inq{self.weight_bits}" + (f"a{self.act_bits}" if self.act_bits < 16 else "")
        return "float" if self.is_float else f"w{self.weight_bits}a{self.act_bits}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error sentence: "; did you mean 'x'?" or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
