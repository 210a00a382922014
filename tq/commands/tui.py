"""`tq tui`."""

from __future__ import annotations

import sys

from tq import runs
from tq.cli import Tui
from tq.commands.output import show
from tq.commands.runs import describe


def tui(flags: Tui, argv: list[str]) -> None:
    """Open the dashboard, or print the list of runs once."""
    from tui.app import main

    if flags.once and (flags.json or flags.out):
        show({"runs": [describe(path) for path in runs.list_runs(flags.runs)]}, flags, str)
        return
    if not flags.once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError("the dashboard needs a terminal; `tq tui --once` prints the list of runs")
    main(flags.runs, runs.find(flags.runs, flags.run) if flags.run else None, once=flags.once)
