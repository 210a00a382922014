"""`tq queue`: what waits for which device, and who works on it."""

from __future__ import annotations

import signal
import time
from dataclasses import asdict
from types import FrameType
from typing import Any

from rich.markup import escape
from rich.table import Table

from tq import queue as store
from tq import runs
from tq.commands.output import print_result, show
from tq.flags.runs import Queue


def queue(flags: Queue, argv: list[str]) -> None:
    """list, add, cancel, move, start, stop, work. Raises ValueError for bad input."""
    if flags.action in ("add", "cancel") and not flags.names:
        raise ValueError(f"tq queue {flags.action} needs {'a run' if flags.action == 'add' else 'an entry'}: its id")
    if flags.action not in ("add", "cancel", "move") and flags.names:
        raise ValueError(f"tq queue {flags.action} takes no entry, got {flags.names[0]!r}")
    _ACTIONS[flags.action](flags)


def _list(flags: Queue) -> None:
    found = store.entries(flags.runs, flags.device)
    lanes = [store.device_name(flags.device)] if flags.device else store.devices(flags.runs)
    result = {
        "entries": [asdict(e) for e in found],
        "runners": [
            {"device": r.device, "working": r.working, "pid": r.pid, "waiting": r.waiting}
            for r in (store.runner_status(flags.runs, lane) for lane in lanes)
        ],
    }
    empty = f"the queue of {flags.runs} is empty; add to it with: tq train ... --queue"
    show(result, flags, lambda r: _table(r) if found else empty)


def _add(flags: Queue) -> None:
    added = []
    for text in flags.names:
        record = runs.manifest(path := runs.find(flags.runs, text))
        device = flags.device or record.get("config", {}).get("device", "auto")
        name = str(record.get("name", path.name))
        added.append(store.add(flags.runs, ["train", "--resume", str(path)], name=name, device=device, start=True))
    result = {"entries": [asdict(e) for e in added]}
    print_result(result, flags, lambda r: "\n".join(f"{e.id}: run {e.run} waits for {e.device}" for e in added))


def _cancel(flags: Queue) -> None:
    gone = [store.cancel(flags.runs, text) for text in flags.names]
    print_result(
        {"cancelled": [asdict(e) for e in gone]}, flags, lambda r: "\n".join(f"{e.id}: taken out" for e in gone)
    )


def _move(flags: Queue) -> None:
    if len(flags.names) != 2 or not flags.names[1].isdigit() or int(flags.names[1]) < 1:
        raise ValueError("tq queue move needs an entry and its new place, such as: tq queue move ENTRY 1 (1 is next)")
    entry = store.move(flags.runs, flags.names[0], int(flags.names[1]) - 1)
    place = [e.id for e in store.entries(flags.runs, entry.device) if e.waiting].index(entry.id) + 1
    print_result({"entry": entry.id, "place": place}, flags, lambda r: f"{entry.id} is number {place}")


def _start(flags: Queue) -> None:
    lane = store.device_name(flags.device or "auto")
    pid = store.start_runner(flags.runs, lane)
    said = f"a runner works on {lane} (pid {pid})" if pid else f"nothing waits for {lane}"
    print_result({"device": lane, "pid": pid}, flags, lambda r: said)


def _stop(flags: Queue) -> None:
    found = store.runner_status(flags.runs, flags.device or "auto")
    pid = store.stop_runner(flags.runs, found.device)
    said = f"the runner of {found.device} (pid {pid}) stops its run with a checkpoint; go on: tq queue start"
    print_result({"device": found.device, "pid": pid}, flags, lambda r: said)


def _work(flags: Queue) -> None:
    """The runner itself. The first SIGTERM or Ctrl-C pauses it, a second Ctrl-C leaves the run to itself."""
    stopped: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.append(number)

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        store.work(flags.runs, flags.device or "auto", should_stop=lambda: bool(stopped))
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


_ACTIONS = {
    "list": _list,
    "add": _add,
    "cancel": _cancel,
    "move": _move,
    "start": _start,
    "stop": _stop,
    "work": _work,
}


def _table(result: dict[str, Any]) -> Table:
    runners = {r["device"]: r["working"] for r in result["runners"]}
    idle = [device for device, working in runners.items() if not working]
    table = Table(caption=f"nobody works on {', '.join(idle)}: tq queue start" if idle else None)
    for column in ("entry", "device", "state", "name", "run", "added"):
        table.add_column(column, overflow="fold")
    for e in result["entries"]:
        added = f"{runs.duration(time.time() - e['added'])} ago" if e["added"] else ""
        what = e["run"] or ""
        if e["error"]:
            what = e["error"]
        table.add_row(*(escape(str(v)) for v in (e["id"], e["device"], e["state"], e["name"], what, added)))
    return table
