"""The columns of the list of runs, and which of them fit. No Textual here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tq.byte_size import size_text
from tui import words
from tui.state import RunView

GAP = 1
# Wider than this a name only pushes the numbers away from it.
NAME_WIDTHS = (18, 34)


@dataclass(frozen=True)
class Column:
    """One column: its text for a run at a moment (unix seconds), and how soon it is given room."""

    title: str
    text: Callable[[RunView, float], str]
    width: int
    rank: int
    """columns of a low rank are shown first"""
    sort: str = ""
    """a click on the header orders by this key of query.SORTS"""
    justify: Literal["left", "right"] = "left"


def _known(text: Callable[[RunView], str]) -> Callable[[RunView, float], str]:
    """ "…" until the log has been read: an old number would be taken for the last one."""
    return lambda run, now: text(run) if run.share == 1 else "…"


def _time_left(run: RunView) -> str:
    """ETA of a live run, else how long it took."""
    if not run.status.live:
        return words.span(run.elapsed_s)
    return "-" if math.isnan(run.state.eta_s) else f"~{words.span(run.state.eta_s)}"


def _setting(name: str) -> Callable[[RunView, float], str]:
    return lambda run, now: words.clean(str(run.config.get(name) or "-"))


def _size(run: RunView) -> str:
    return size_text(run.state.packed_bytes) if run.state.packed_bytes else "-"


COLUMNS = (
    Column("Status", lambda run, now: f"{run.icon} {run.word}", 14, 0, "state"),
    Column("Run", lambda run, now: run.name, 0, 0, "name"),
    Column("Scheme", _setting("scheme"), 6, 5, "scheme"),
    Column("Data", _setting("dataset"), 9, 8, "dataset"),
    Column("Optimizer", _setting("optimizer"), 14, 12, "optimizer"),
    Column("Device", lambda run, now: words.clean(str(run.manifest.get("device") or "-")), 7, 13),
    Column("Epoch", _known(lambda run: words.epochs(run.state)), 7, 3, "epoch", "right"),
    Column("Acc", _known(lambda run: words.percent(run.state.last_acc)), 6, 1, "acc", "right"),
    Column("Best", _known(lambda run: words.percent(run.state.best_acc)), 6, 4, "best", "right"),
    Column("Curve", _known(lambda run: run.curve), words.SPARK_WIDTH, 9),
    Column("Loss", _known(lambda run: words.number(run.state.loss)), 7, 10, "loss", "right"),
    Column("img/s", lambda run, now: words.number(run.state.img_s) if run.status.live else "-", 7, 11, "", "right"),
    Column("Size", _known(_size), 7, 2, "size", "right"),
    Column(
        "Ratio",
        _known(lambda run: f"{run.state.ratio:.1f}x" if run.state.packed_bytes else "-"),
        6,
        7,
        "size",
        "right",
    ),
    Column("Time", _known(_time_left), 6, 6, "", "right"),
    Column("Age", lambda run, now: words.age(now - run.started) if run.started else "-", 4, 4, "age", "right"),
)


def fitting(width: int) -> tuple[tuple[Column, int], ...]:
    """The columns that fit into `width` with their widths; the name takes what is left."""
    room = width - sum(column.width + GAP for column in COLUMNS if column.rank == 0) - NAME_WIDTHS[0]
    chosen = {column for column in COLUMNS if column.rank == 0}
    for column in sorted(COLUMNS, key=lambda column: column.rank):
        if column.rank and column.width + GAP <= room:
            chosen.add(column)
            room -= column.width + GAP
        elif column.rank:
            # not a lesser one in its place: with a little more room the columns would jump about
            break
    name = max(8, min(NAME_WIDTHS[1], NAME_WIDTHS[0] + room))
    return tuple((column, column.width or name) for column in COLUMNS if column in chosen)
