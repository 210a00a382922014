"""Bars of text: as fine as an eighth of a column. No Textual here."""

from __future__ import annotations

import math

EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, width: int) -> str:
    """`share` (0 to 1) of `width` columns; what is not 0 shows at least a sliver, NaN and less than 0 nothing."""
    if not math.isfinite(share) or share <= 0 or width < 1:
        return ""
    eighths = max(1, round(min(1.0, share) * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def padded(share: float, width: int) -> str:
    """The bar, filled up with spaces to `width` columns."""
    return f"{bar(share, width):<{max(0, width)}}"


def columns(room: int, count: int, *, least: int = 4, most: int = 24) -> int:
    """Width of each of `count` equal bars in `room` columns; 0 where they would be too short to tell anything."""
    width = min(most, room // count) if count else 0
    return width if width >= least else 0
