"""`tq tui`: the dashboard, one frame of it, or a replay."""

from __future__ import annotations

import gc
import sys

from tq import runs
from tq.cli import Tui
from tq.commands.output import show
from tq.commands.runs import describe


def tui(flags: Tui, argv: list[str]) -> None:
    """Open the dashboard, or print one frame of it."""
    if flags.once and (flags.json or flags.out):
        show({"runs": [describe(path) for path in runs.list_runs(flags.runs)]}, flags, str)
        return
    if not flags.once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError("the dashboard needs a terminal; `tq tui --once` prints one frame of it")
    if flags.demo and flags.run:
        raise ValueError("--demo replays recorded runs and --run opens one of yours; choose one of them")
    # A tenth of the time to the first frame is the collector's, and it finds nothing; the dashboard turns it on again.
    gc.disable()
    from tui.app import main

    main(
        flags.runs,
        runs.find(flags.runs, flags.run) if flags.run else None,
        once=flags.once,
        demo=flags.demo,
        readonly=flags.readonly,
        ascii=flags.ascii,
    )
