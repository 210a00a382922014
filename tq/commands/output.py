"""Print a result for people or for scripts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from tq.atomic import atomic
from tq.flags.base import Output


def stderr() -> Console:
    """The console for logs and progress."""
    return Console(stderr=True, highlight=False)


def show(result: dict[str, Any], flags: Output, render: Callable[[dict[str, Any]], RenderableType]) -> None:
    """Print `result`: with --json as one object, else as `render` draws it; --out keeps the object in a file."""
    text = json.dumps(plain(result), indent=1, ensure_ascii=False, allow_nan=False)
    if flags.out is not None:
        with atomic(flags.out) as file:
            file.write(f"{text}\n".encode())
    print_result(result, flags, render)


def print_result(result: dict[str, Any], flags: Output, render: Callable[[dict[str, Any]], RenderableType]) -> None:
    """`show` without --out, for commands whose --out is something else."""
    if flags.json:
        print(json.dumps(plain(result), ensure_ascii=False, allow_nan=False))
    else:
        Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(render(result))


def plain(value: Any) -> Any:
    """NaN and infinity have no JSON: null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
