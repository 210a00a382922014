"""Sizes as people write them: `60KB`, `0.06MB`, `60KiB`, `61440`. Standard library only: tq/config.py reads them."""

from __future__ import annotations

import re

UNITS = {
    "": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes, rounded down: decimal units as file managers count (60KB = 60,000), binary with an i (60KiB = 61,440).

    Raises ValueError: no number, unknown unit, less than one byte.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"size {text!r} is not a number with a unit; expected such as 60KB, 0.06MB, 60KiB or 61440")
    number, unit = match[1].replace(",", "").replace("_", ""), match[2].lower()
    if unit not in UNITS:
        raise ValueError(f"size {text!r} has the unknown unit {match[2]!r}: expected B, KB, MB, GB, KiB, MiB or GiB")
    size = int(float(number) * UNITS[unit] + 1e-6)
    if size < 1:
        raise ValueError(f"size {text!r} is less than one byte; expected such as 60KB")
    return size


def size_text(count: float) -> str:
    """48,624 -> 48.6 kB: three digits, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
