"""`tq reproduce`: the tables, the work on one of them as it goes on, and the table that comes of it."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tq import history, queue, recipe, report
from tq.atomic import atomic
from tq.commands.output import plain, print_result, stderr
from tq.flags.runs import Reproduce
from tq.liveness import duration
from tq.reproduce import POLL_S, Reproduction, Standing

MARKS = {"done": "green", "live": "cyan", "failed": "red", "crashed": "red", "stopped": "yellow"}


def reproduce(flags: Reproduce, argv: list[str]) -> int:
    """Run the command: 0 complete, 1 runs are missing, 130 interrupted. Raises ValueError for bad input."""
    if flags.list or not flags.table:
        print_result({"tables": _tables()}, flags, _list)
        return 0
    table = recipe.load(flags.table, quick=flags.quick)
    table = table.only(flags.rows) if flags.rows else table
    work = Reproduction(
        table,
        flags.runs,
        seeds=flags.seeds,
        dataset=flags.dataset,
        data=flags.data,
        download=flags.download,
        device=flags.device,
        init=flags.init,
    )
    files = _files(table, flags)
    interrupted = False
    if flags.only_report:
        standings = work.look()
    else:
        _check_data(work, flags)
        standings, interrupted = _run(work)
    result = report.build(work, standings)
    _write(result, files)
    print_result({**result, "files": [str(f) for f in files]}, flags, lambda r: _table(result, files))
    complete = result["runs_done"] == result["runs_wanted"]
    if interrupted:
        stderr().print("stopped; the same command goes on from here")
        return 130
    return 0 if complete or flags.only_report else 1


def _check_data(work: Reproduction, flags: Reproduce) -> None:
    if work.dataset == "digits":
        return
    if flags.data is None:
        fetch = "" if work.dataset == "imagefolder" else " (and --download to fetch it)"
        raise ValueError(f"table {work.table.name} needs {work.dataset}: say where it is with --data DIR{fetch}")
    if not flags.download and not Path(flags.data).is_dir():
        raise ValueError(f"--data {flags.data} is not a directory; give the one that holds {work.dataset}")


def _run(work: Reproduction) -> tuple[list[Standing], bool]:
    """Start and follow until nothing is left to wait for; whether Ctrl-C or SIGTERM ended it."""
    with _Display(work) as display, _terminable():
        try:
            while not work.over(standings := work.step()):
                display.show(standings)
                time.sleep(POLL_S)
            display.show(standings)
            return standings, False
        except KeyboardInterrupt:
            display.say("stopping the run at work, with a checkpoint; Ctrl-C again to leave it to itself")
            with contextlib.suppress(KeyboardInterrupt):
                work.leave()
            return work.look(), True


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM counts as Ctrl-C."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


class _Display:
    """The jobs on stderr: one live table in a terminal, a line a change elsewhere."""

    def __init__(self, work: Reproduction) -> None:
        self.work, self.console = work, stderr()
        self.followers: dict[Path, history.Follower] = {}
        self.said: dict[str, str] = {}
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None

    def __enter__(self) -> _Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(escape(text), soft_wrap=self.live is None)

    def show(self, standings: Sequence[Standing]) -> None:
        """How the jobs stand now."""
        if self.live:
            self.live.update(self._table(standings), refresh=True)
            return
        for s in standings:
            text = f"{s.state}{f': {s.error}' if s.error else ''}"
            if self.said.get(s.job.label, "missing") != text and s.state != "blocked":
                figures = f"  {self._figures(s)}" if s.state == "done" else ""
                self.say(f"{time.strftime('%H:%M:%S')} {s.job.label} {text}{figures}  {s.run.name if s.run else ''}")
            self.said[s.job.label] = text
        if (idle := self._idle()) != self.said.get("queue", ""):
            self.said["queue"] = idle
            self.say(idle or "the queue is being worked on again")

    def _table(self, standings: Sequence[Standing]) -> Any:
        table = Table(title=self.work.table.title, title_justify="left")
        for column in ("run of the table", "state", "so far", "run"):
            table.add_column(column, overflow="fold")
        done = sum(s.state == "done" for s in standings)
        # What needs no look makes way where the terminal is too low for all.
        room = max(3, self.console.height - 10)
        shown = sorted(standings, key=lambda s: s.state in ("done", "blocked", "queued"))[:room]
        for s in [s for s in standings if s in shown]:
            colour = MARKS.get(s.state, "dim")
            facts = f"after {s.job.row.start}" if s.state == "blocked" else s.error or self._figures(s)
            name = s.run.name if s.run else ""
            table.add_row(escape(s.job.label), f"[{colour}]{s.state}[/]", escape(facts), escape(name))
        more = f"and {len(standings) - room} more; " if len(standings) > room else ""
        note = f"{idle}; " if (idle := self._idle()) else ""
        return Group(
            table, f"{more}{done} of {len(standings)} done; {note}Ctrl-C stops with a checkpoint, to go on later"
        )

    def _idle(self) -> str:
        """What to do when the queue's runner has been paused or killed; empty while one works."""
        runner = queue.runner_status(self.work.root, self.work.device or "auto")
        if runner.working or not runner.waiting:
            return ""
        return f"nobody works on the queue of {runner.device}: tq queue start --runs {self.work.root}"

    def _figures(self, s: Standing) -> str:
        """Epoch, accuracy and time to go of a run that has begun."""
        if s.run is None or s.state == "queued":
            return ""
        if s.run not in self.followers:
            self.followers[s.run] = history.Follower(s.run)
        state = self.followers[s.run].poll()
        facts = [f"epoch {max(1, state.epoch)}/{state.epochs}"] if state.epochs else []
        facts += [f"acc {state.last_acc:.2f} %"] if state.last_acc == state.last_acc else []
        facts += [f"{duration(state.eta_s)} left"] if s.state == "live" and state.eta_s == state.eta_s else []
        return ", ".join(facts)


def _files(table: recipe.Table, flags: Reproduce) -> list[Path]:
    """The Markdown and the JSON beside it, before hours of work. Raises ValueError where one of them is the recipe."""
    path = flags.out or flags.runs / "tables" / f"{table.name}-{table.version}.md"
    files = [path, path.with_suffix(".json") if path.suffix != ".json" else path.with_name(path.name + ".json")]
    if table.name.endswith(".json") and Path(flags.table).resolve() in [file.resolve() for file in files]:
        raise ValueError(f"--out {flags.out} would write over the recipe {flags.table}; choose another name")
    return files


def _write(result: dict[str, Any], files: Sequence[Path]) -> None:
    as_json = json.dumps(plain(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for file, text in zip(files, (report.markdown(result), as_json), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as out:
            out.write(text.encode())


def _table(result: dict[str, Any], files: Sequence[Path]) -> Any:
    table = Table(title=escape(result["title"]), title_justify="left")
    for number, column in enumerate(report.header(result)):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in report.body(result):
        table.add_row(*map(escape, row))
    lines = [report.conditions(result), *_missing(result)]
    return Group(table, *map(escape, lines), escape(f"wrote {files[0]} and {files[1]}"))


def _missing(result: dict[str, Any]) -> list[str]:
    """One line a state: the rows and seeds that have no figures."""
    by_state: dict[str, list[str]] = {}
    for row in result["rows"]:
        for r in row["runs"]:
            rate = f" lr {r['lr']:.4g}" if r["lr"] else ""
            why = f" ({r['error']})" if r["error"] else ""
            by_state.setdefault(r["state"], []).append(f"{row['row']}{rate} seed {r['seed']}{why}")
    return [f"{state}: {', '.join(jobs)}" for state, jobs in by_state.items() if state != "done"]


def _tables() -> list[dict[str, Any]]:
    found = []
    for name in recipe.names():
        for quick in (True, False):
            table = recipe.load(name, quick=quick)
            found.append(
                {
                    "table": name,
                    "version": table.version,
                    "title": table.title,
                    "rows": [row.label for row in table.rows],
                    "data": list(table.datasets),
                    "seeds": list(table.seeds),
                    "epochs": sum(row.epochs * max(1, len(row.rates)) for row in table.rows),
                    "minutes_a_seed": table.minutes,
                    "timed_on": table.timed_on,
                }
            )
    return found


def _list(result: dict[str, Any]) -> Any:
    table = Table()
    for column in ("table", "", "data", "rows", "seeds", "epochs a seed", "time a seed"):
        table.add_column(column, overflow="fold")
    for t in result["tables"]:
        first = t["version"] == "quick"
        table.add_row(
            escape(t["table"]) if first else "",
            t["version"],
            " or ".join(t["data"]) if first else "",
            escape(" ".join(t["rows"])) if first else "",
            " ".join(map(str, t["seeds"])),
            str(t["epochs"]),
            f"{duration(60 * t['minutes_a_seed'])}, {t['timed_on']}" if t["minutes_a_seed"] else "not measured",
        )
    return table
