"""One frame of the dashboard without a terminal: as text (`tq tui --once`) or as a picture."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from tui.app import TqApp

T = TypeVar("T")


def frame(app: TqApp, size: tuple[int, int], take: Callable[[TqApp], T]) -> T:
    """What `take` makes of the screen once everything has been read, at `size` columns and lines."""

    async def draw() -> T:
        async with app.run_test(size=size) as pilot:
            await app.polled()
            # the picture is mounted after the first frame, and drawn after its layout
            for _ in range(3):
                await pilot.pause()
            return take(app)

    return asyncio.run(draw())


def print_once(app: TqApp) -> None:
    """Print the screen as it would look in this terminal; without one at 120x36, or what COLUMNS and LINES say."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    console = Console(color_system="auto" if colour else None, highlight=False)

    def lines(app: TqApp) -> list[str]:
        # Textual gives its finished lines to nobody but the driver; this is what its own screenshot reads too.
        strips = app.screen._compositor.render_strips()
        return [strip.render(console) if colour else strip.text.rstrip() for strip in strips]

    print("\n".join(frame(app, _terminal(), lines)))


def screenshot(app: TqApp, svg_path: Path, *, size: tuple[int, int] = (120, 36)) -> None:
    """Save the screen as an SVG file."""
    svg = frame(app, size, lambda app: app.export_screenshot(title="tq"))
    svg_path.write_text(svg, encoding="utf-8")


def _terminal() -> tuple[int, int]:
    if sys.stdout.isatty():
        # a line less: the prompt that follows must not push the first one out of sight
        size = os.get_terminal_size(sys.stdout.fileno())
        return size.columns, size.lines - 1
    return int(os.environ.get("COLUMNS") or 120), int(os.environ.get("LINES") or 36)
