"""`tq runs` and `tq plot`: what the run directories tell."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from tq import history, query
from tq import runs as store
from tq.byte_size import size_text
from tq.commands.output import print_result, show
from tq.flags.runs import Plot, Runs
from tq.plot import Kind
from tq.plot import plot as draw


def runs(flags: Runs, argv: list[str]) -> None:
    """list, show, compare, stop, resume."""
    if flags.action == "list":
        show({"runs": chosen(flags)}, flags, lambda r: _table(r["runs"]) if r["runs"] else _none(flags))
        return
    if flags.filter or flags.sort:
        raise ValueError(f"--filter and --sort are for the list; tq runs {flags.action} takes the runs' names")
    if not flags.names:
        raise ValueError(f"tq runs {flags.action} needs a run: an id, a piece of it, or 'last'")
    paths = [store.find(flags.runs, name) for name in flags.names]
    if flags.action in ("stop", "resume"):
        done = []
        for path in paths:
            store.stop(path) if flags.action == "stop" else store.resume(path)
            done.append({"run": path.name, "asked": flags.action})
        show({"runs": done}, flags, lambda r: "\n".join(f"{d['run']}: asked to {d['asked']}" for d in r["runs"]))
        return
    rows = [describe(path) | {"config": store.manifest(path).get("config", {})} for path in paths]
    show({"runs": rows}, flags, lambda r: _compare(r["runs"]))


def chosen(flags: Runs) -> list[dict[str, Any]]:
    """The runs that --filter leaves, in the order of --sort (default: newest first)."""
    wanted, now = query.parse(flags.filter), time.time()
    rows = [row for path in store.list_runs(flags.runs) if wanted.match(row := describe(path), now)]
    return query.ordered(rows, flags.sort, lambda row: row) if flags.sort else rows


def plot(flags: Plot, argv: list[str]) -> None:
    """Draw curves into a picture, or write their table."""
    if flags.errors and flags.kind not in ("all", "errors"):
        raise ValueError(f"expected --errors or --kind {flags.kind}, got both; drop one")
    out = flags.out or Path("runs.png")
    chosen = [store.find(flags.runs, name) for name in flags.names] or store.list_runs(flags.runs)
    if not chosen:
        raise ValueError(f"no runs in {flags.runs} to plot; start one: tq train")
    kind: Kind = "errors" if flags.errors else flags.kind
    draw(chosen, out, kind=kind)
    print_result({"file": str(out), "runs": [path.name for path in chosen]}, flags, lambda r: f"wrote {out}")


def describe(path: Path) -> dict[str, Any]:
    """One run as plain values."""
    state, status, manifest = history.read(path), store.status(path), store.manifest(path)
    return {
        **query.facts(path, manifest, state, status),
        "epochs": state.epochs,
        "float_bytes": state.float_bytes or None,
        "age_s": round(time.time() - state.started) if state.started else None,
        "error": state.error,
    }


def _none(flags: Runs) -> str:
    if flags.filter and store.list_runs(flags.runs):
        return escape(f"no run in {flags.runs} fits the filter {flags.filter!r}")
    return f"no runs in {flags.runs}; start one: tq train"


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in ("run", "status", "epoch", "accuracy %", "best %", "size"):
        table.add_column(column, overflow="fold")
    for r in rows:
        epoch = f"{r['epoch']:.0f}/{r['epochs']}" if r["epochs"] else ""
        values = (_percent(r["accuracy"]), _percent(r["best"]), size_text(r["bytes"]) if r["bytes"] else "")
        table.add_row(escape(r["run"]), escape(r["status"]), epoch, *values)
    return table


def _compare(rows: list[dict[str, Any]]) -> Table:
    """A column a run; of the settings only those that differ, or all for a single run."""
    table = Table()
    table.add_column("")
    for r in rows:
        table.add_column(escape(r["run"]), overflow="fold")
    best = max((r["best"] for r in rows if r["best"] is not None), default=None)
    star = {id(r): " *" if len(rows) > 1 and r["best"] == best else "" for r in rows}
    table.add_row("status", *(escape(r["status"]) for r in rows))
    table.add_row("accuracy %", *(_percent(r["accuracy"]) for r in rows))
    table.add_row("best %", *(_percent(r["best"]) + star[id(r)] for r in rows))
    table.add_row("size", *(size_text(r["bytes"]) if r["bytes"] else "" for r in rows))
    for r in rows:
        if r["error"]:
            table.add_row("error", *(escape(str(x["error"] or "")) for x in rows))
            break
    for key in sorted({key for r in rows for key in r["config"]}):
        values = [r["config"].get(key) for r in rows]
        if len(rows) == 1 or any(value != values[0] for value in values):
            table.add_row(escape(key), *(escape(str(value)) for value in values))
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
