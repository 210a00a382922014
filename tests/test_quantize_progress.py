"""`tq quantize` into a pipe or a file: lines of progress instead of a bar."""

from __future__ import annotations

import io

from rich.console import Console

from tq.commands.checking import progress_on
from tq.commands.quantize import _told_to


def test_a_line_now_and_then_where_there_is_no_terminal() -> None:
    out, now = io.StringIO(), [0.0]
    with progress_on(Console(file=out, width=100)) as bars:
        tell = _told_to(bars, clock=lambda: now[0])
        for done in range(12):
            tell("learning the rounding of layer1.0.conv1 [x]", done, 12)
            now[0] += 1.0
        now[0] += 10
        tell("measuring", 0, 0)
    lines = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    named = "learning the rounding of layer1.0.conv1 [x]"
    assert lines == [f"{named} 0/12", f"{named} 5/12", f"{named} 10/12", "measuring"]
