"""The table of a reproduction: what its runs measured, mean and deviation over the seeds, beside what is published.

`build` gives plain JSON values, `markdown` the same as text. `last` is the network after its last epoch, which is the
one in the file; `best` is the best epoch by the test images themselves, as published figures often are. The deviation
is that of the sample (n - 1). Standard library only.
"""

from __future__ import annotations

import math
import shlex
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tq import events, history, runs
from tq.recipe import Row
from tq.reproduce import Reproduction, Standing


def build(work: Reproduction, standings: Sequence[Standing]) -> dict[str, Any]:
    """The table as it is now; runs that are not done have their state and no figures."""
    table = work.table
    results = [_run(s) for s in standings]
    tried = {row.label: _by_rate(row, results) for row in table.rows}
    chosen = {label: max(found, key=lambda rate: _score(found[rate])) for label, found in tried.items()}
    last = {label: {r["seed"]: r["last"] for r in found[chosen[label]]} for label, found in tried.items()}
    for row in table.rows:
        # A float network from elsewhere has no run here; those that began with it measured it first.
        if row.start is not None and not any(tried[row.start].values()):
            found = tried[row.label][chosen[row.label]]
            last[row.start] |= {r["seed"]: r["float_accuracy"] for r in found if r["float_accuracy"] is not None}
    rows = [_row(row, chosen[row.label], tried[row.label], last, table.reference) for row in table.rows]
    done = [s.run for s in standings if s.state == "done" and s.run is not None]
    return {
        "table": table.name,
        "version": table.version,
        "title": table.title,
        "dataset": work.dataset,
        "seeds": work.seeds,
        "command": _command(work),
        "made": time.strftime("%Y-%m-%d"),
        "runs_done": len(done),
        "runs_wanted": len(standings),
        "devices": sorted({_device(path) for path in done}),
        "versions": _versions(done),
        "reference": table.reference,
        "rows": rows,
        "notes": [*table.notes, *_warnings(work)],
    }


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown, complete with its conditions."""
    lines = [f"## {report['title']}", "", conditions(report), ""]
    head = header(report)
    lines += [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in body(report)]
    lines += [""]
    notes = [*report["notes"], *(f"{row['row']}: {row['note']}" for row in report["rows"] if row["note"])]
    lines += [f"- {note}" for note in [*notes, *_searches(report)]]
    lines += ["", "| run | row | seed | state |", "| --- | --- | --- | --- |"]
    for row in report["rows"]:
        lines += [f"| {r['run'] or ''} | {row['row']} | {r['seed']} | {r['state']} |" for r in row["runs"]]
    return "\n".join(lines) + "\n"


def conditions(report: dict[str, Any]) -> str:
    """One line: command, data, seeds, device, software, how many runs are done."""
    seeds = f"seed{'s' if len(report['seeds']) > 1 else ''} {', '.join(map(str, report['seeds']))}"
    said = [f"`{report['command']}`", report["dataset"], seeds, *report["devices"]]
    said += [f"{name} {number}" for name, number in report["versions"].items()]
    said += [report["made"], f"{report['runs_done']} of {report['runs_wanted']} runs done"]
    return ", ".join(said) + "."


def body(report: dict[str, Any]) -> list[list[str]]:
    """The texts of every row."""
    named = header(report)[3] == "drop"
    return [cells(row, named=named) for row in report["rows"]]


def header(report: dict[str, Any]) -> list[str]:
    """The columns' titles."""
    others = {row["against"] for row in report["rows"]} - {None, report["reference"]}
    against = f"drop against {report['reference']}" if report["reference"] and not others else "drop"
    return ["", "last %", "best % (epoch)", against, "published %", "minutes", "bytes", "of float"]


def cells(row: dict[str, Any], *, named: bool) -> list[str]:
    """One row's texts; empty where nothing is known. `named`: say what the drop is measured against.

    The best epochs are those of the seeds that are done, in their order.
    """
    drop = spread(row["drop"], row["drop_std"], sign="+")
    name = row["row"] + (f" (lr {row['lr']:.4g})" if row["lr"] is not None and len(row["searched"]) > 1 else "")
    # no blank: a terminal that is too narrow puts them together on a line of their own
    epochs = ",".join(f"{epoch:.0f}" for epoch in row["best_epochs"])
    published = "" if row["published"] is None else f"{row['published']:.2f}"
    return [
        name,
        spread(row["last"], row["last_std"]),
        spread(row["best"], row["best_std"]) + (f" ({epochs})" if epochs else ""),
        f"{drop} ({row['against']})" if drop and named else drop,
        f"{published} {row['source']}".strip(),
        "" if row["minutes"] is None else f"{row['minutes']:.1f}",
        "" if row["bytes"] is None else f"{row['bytes']:,.0f}",
        "" if not row["bytes"] else f"1/{row['float_bytes'] / row['bytes']:.1f}",
    ]


def spread(mean: float | None, deviation: float | None, *, sign: str = "") -> str:
    """'91.78 ± 0.12', without a deviation where there is one value only."""
    if mean is None:
        return ""
    return f"{mean:{sign}.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _command(work: Reproduction) -> str:
    """What makes this table again, with DIR and FILE for paths, which are nobody else's."""
    table = work.table
    words = ["tq", "reproduce", table.name, *(["--quick"] if table.quick else [])]
    words += ["--rows", *table.picked] if table.picked else []
    words += ["--seeds", *map(str, work.seeds)] if work.seeds != list(table.seeds) else []
    words += ["--dataset", work.dataset] if work.dataset != table.datasets[0] else []
    words += ["--data", "DIR"] if work.dataset != "digits" else []
    words += ["--init", "FILE"] if work.init else []
    words += ["--device", work.device] if work.device else []
    return shlex.join(words)


def _warnings(work: Reproduction) -> list[str]:
    own = work.table.datasets[0]
    if work.dataset == own or not any(row.published for row in work.table.rows):
        return []
    return [f"The published figures are of {own}, these runs are of {work.dataset}: compare the drops."]


def _by_rate(row: Row, results: Sequence[dict[str, Any]]) -> dict[float | None, list[dict[str, Any]]]:
    return {rate: [r for r in results if (r["row"], r["lr"]) == (row.label, rate)] for rate in row.rates or (None,)}


def _score(found: Sequence[dict[str, Any]]) -> float:
    """Mean accuracy of the last epoch; a rate without a finished run is never chosen."""
    mean = _mean([r["last"] for r in found])
    return -math.inf if mean is None else mean


def _row(
    row: Row,
    chosen: float | None,
    tried: dict[float | None, list[dict[str, Any]]],
    last: dict[str, dict[int, float | None]],
    reference: str | None,
) -> dict[str, Any]:
    """One line. `tried`: its runs by learning rate; `last`: accuracy by row and seed, to compare with."""
    mine, base = tried[chosen], row.against or reference
    about = last.get(base, {}) if base is not None and base != row.label else {}
    pairs = [(about.get(seed), accuracy) for seed, accuracy in last[row.label].items()]
    drops = [theirs - ours for theirs, ours in pairs if theirs is not None and ours is not None]
    return {
        "row": row.label,
        "from": row.start,
        "against": base if drops else None,
        "settings": row.settings,
        "lr": row.settings.get("lr") if chosen is None else chosen,
        "seeds_done": sum(r["state"] == "done" for r in mine),
        **_figures("last", list(last[row.label].values())),
        **_figures("best", [r["best"] for r in mine]),
        "best_epochs": [r["best_epoch"] for r in mine if r["best_epoch"] is not None],
        **_figures("drop", drops),
        **{name: _mean([r[name] for r in mine]) for name in ("minutes", "bytes", "float_bytes")},
        "published": row.published,
        "source": row.source,
        "note": row.note,
        "searched": [{"lr": rate, **_figures("last", [r["last"] for r in found])} for rate, found in tried.items()],
        "runs": [{k: v for k, v in r.items() if k != "row"} for found in tried.values() for r in found],
    }


def _run(s: Standing) -> dict[str, Any]:
    """One run's figures, None where it is not done."""
    summary = dict(history.read(s.run).summary) if s.state == "done" and s.run is not None else {}
    return {
        "row": s.job.row.label,
        "seed": s.job.seed,
        "lr": s.job.rate,
        "run": s.run.name if s.run else None,
        "state": s.state,
        "error": s.error,
        "last": _number(summary, "trained_accuracy"),
        "best": _number(summary, "best_accuracy"),
        "best_epoch": _number(summary, "best_epoch"),
        "float_accuracy": _number(summary, "float_accuracy"),
        "bytes": _number(summary, "bytes"),
        "float_bytes": _number(summary, "float_bytes"),
        "minutes": minutes(s.run) if summary and s.run is not None else None,
    }


def minutes(run: Path) -> float:
    """Time at work: from the first event of each start to the last before the next one, pauses left out."""
    total, before = 0.0, None
    for event in events.tail(run / "events.jsonl")[0]:
        # A trainer's first word is that it reads its data.
        begins = event["k"] == "phase" and event.get("name") == "data"
        if before is not None and not begins:
            total += max(0.0, event["t"] - before)
        before = event["t"]
    return total / 60


def _device(run: Path) -> str:
    """What the trainer says it ran on; older logs know only what it was asked for."""
    started = [e for e in events.tail(run / "events.jsonl")[0] if e["k"] == "start"]
    named = started[-1].get("device") if started else None
    return str(named or runs.manifest(run).get("device", "unknown device"))


def _versions(done: Sequence[Path]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for path in done:
        versions = runs.manifest(path).get("versions", {})
        for name in ("torch", "python"):
            if name in versions:
                found.setdefault(name, set()).add(str(versions[name]))
    return {name: " and ".join(sorted(values)) for name, values in found.items()}


def _searches(report: dict[str, Any]) -> list[str]:
    said = []
    for row in report["rows"]:
        if len(row["searched"]) > 1:
            tried = [f"{s['lr']:.4g}: {spread(s['last'], s['last_std']) or '?'}" for s in row["searched"]]
            said.append(f"{row['row']}, last % by lr: {'; '.join(tried)}")
    return said


def _figures(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    known = [v for v in values if v is not None]
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {name: _mean(known), f"{name}_std": deviation}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _number(summary: dict[str, Any], name: str) -> float | None:
    value = events.number(summary.get(name))
    return value if math.isfinite(value) else None
