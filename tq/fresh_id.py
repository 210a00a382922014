"""Ids that sort by their time and that nothing else has: 20261122-094700-3f2c. Standard library only."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable


def fresh_id(taken: Callable[[str], bool], *words: str, at: float | None = None) -> str:
    """Local time (`at` in seconds since the epoch, default: now), words, four hex digits; drawn until it is not taken.

    Of 40 ids of one second two are the same once in a hundred times.
    """
    while True:
        found = "-".join([time.strftime("%Y%m%d-%H%M%S", time.localtime(at)), *words, secrets.token_hex(2)])
        if not taken(found):
            return found
