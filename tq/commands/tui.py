"""`tq tui`."""

from __future__ import annotations

from tq import runs
from tq.cli import Tui


def tui(flags: Tui, argv: list[str]) -> None:
    """Open the dashboard."""
    from tui.app import main

    main(flags.runs, runs.find(flags.runs, flags.run) if flags.run else None, once=flags.once)
