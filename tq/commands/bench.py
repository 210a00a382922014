"""`tq bench`."""

from __future__ import annotations

import json
from typing import Any

from rich.progress import Progress

from tq.atomic import atomic
from tq.bench import bench as run_bench
from tq.bench import table
from tq.commands.evaluate import file_of
from tq.commands.output import show, stderr
from tq.config import BenchConfig, KernelBenchConfig
from tq.flags.files import Bench, Kernels
from tq.kernels import run as kernel_bench


def bench(flags: Bench, argv: list[str]) -> int:
    """Check, then time; 1 if a contender was wrong."""
    log = stderr()
    result = run_bench(
        file_of(flags.file, flags.runs), flags.settings(BenchConfig), notify=lambda text: log.print(text, style="dim")
    )
    show(result, flags, table)
    return int(any(row["error"] for row in result["rows"]))


def kernels(flags: Kernels, argv: list[str]) -> int:
    """`tq bench kernels`: 1 if a row was wrong, 130 after Ctrl-C, when what was measured so far is shown and kept."""
    log, config = stderr(), flags.settings(KernelBenchConfig)

    def keep(result: dict[str, Any]) -> None:
        if flags.out is not None:
            with atomic(flags.out) as file:
                file.write(f"{json.dumps(result, indent=1, ensure_ascii=False)}\n".encode())

    with Progress(console=log, transient=True, disable=not log.is_terminal) as progress:
        bar = progress.add_task("starting", total=None)

        def notify(done: int, total: int, name: str) -> None:
            progress.update(bar, completed=done, total=total, description=name)
            if not log.is_terminal:
                log.print(f"{done}/{total} {name}", style="dim")

        result = kernel_bench.bench(config, notify=notify, keep=keep)
    show(result, flags, kernel_bench.table)
    wrong = sum(bool(row["error"]) for row in result["rows"])
    if wrong:
        log.print(f"tq: {wrong} of {len(result['rows'])} rows are wrong and have no time")
    if not result["finished"]:
        where = f"; they are in {flags.out}" if flags.out else ""
        log.print(f"tq: interrupted; {len(result['rows'])} rows were measured before{where}")
        return 130
    return int(wrong > 0)
