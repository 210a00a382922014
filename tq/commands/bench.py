"""`tq bench`."""

from __future__ import annotations

from tq.bench import bench as run_bench
from tq.bench import table
from tq.cli import Bench
from tq.commands.evaluate import file_of
from tq.commands.output import show, stderr
from tq.config import BenchConfig


def bench(flags: Bench, argv: list[str]) -> int:
    """Check, then time; 1 if a contender was wrong."""
    log = stderr()
    result = run_bench(
        file_of(flags.file, flags.runs), flags.settings(BenchConfig), notify=lambda text: log.print(text, style="dim")
    )
    show(result, flags, table)
    return int(any(row["error"] for row in result["rows"]))
