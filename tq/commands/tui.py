"""`tq tui`: the dashboard, one frame of it, or a replay."""

from __future__ import annotations

import gc
import os
import sys

from tq import runs
from tq.commands.output import show
from tq.commands.runs import describe
from tq.flags.runs import Tui


def tui(flags: Tui, argv: list[str]) -> None:
    """Open the dashboard, or print one frame of it."""
    if flags.once and (flags.json or flags.out):
        show({"runs": [describe(path) for path in runs.list_runs(flags.runs)]}, flags, str)
        return
    if flags.demo and flags.run:
        raise ValueError("--demo replays recorded runs and --run opens one of yours; choose one of them")
    if flags.web is not None:
        _serve(flags, flags.web)
        return
    # textual-serve sets the driver, and talks to it through pipes
    if not (flags.once or "TEXTUAL_DRIVER" in os.environ or (sys.stdin.isatty() and sys.stdout.isatty())):
        raise ValueError("the dashboard needs a terminal; `tq tui --once` prints one frame of it")
    # A tenth of the time to the first frame is the collector's, and it finds nothing; the dashboard turns it on again.
    gc.disable()
    from tui.start import main

    main(
        flags.runs,
        runs.find(flags.runs, flags.run) if flags.run else None,
        once=flags.once,
        demo=flags.demo,
        readonly=flags.readonly,
        ascii=flags.ascii,
    )


def _serve(flags: Tui, port: int) -> None:
    if flags.once:
        raise ValueError("--once prints one frame and --web serves all of them; choose one of them")
    if not 1 <= port <= 65_535:
        raise ValueError(f"--web is a port from 1 to 65535, got {port}")
    from tui.web import serve

    passed = [f"--runs={flags.runs.absolute()}", *([f"--run={flags.run}"] if flags.run else [])]
    passed += [f"--{name}" for name in ("demo", "readonly", "ascii") if getattr(flags, name)]
    serve(passed, port)
