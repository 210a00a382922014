"""Runs side by side: their figures with the best one starred, and the settings that differ. No Textual here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tq.byte_size import size_text
from tui import words
from tui.state import RunView

Value = Callable[[RunView], float]


@dataclass(frozen=True)
class Row:
    """One line: what it is, a text for each run, and which of them are the best."""

    label: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


# Label, value, how it is written, and which is better: the higher or the lower.
FIGURES: tuple[tuple[str, Value, Callable[[float], str], Literal["max", "min"]], ...] = (
    ("best accuracy", lambda run: run.state.best_acc, lambda x: words.percent(x, 2), "max"),
    ("last accuracy", lambda run: run.state.last_acc, lambda x: words.percent(x, 2), "max"),
    ("packed file", lambda run: words.packed_accuracy(run.state), lambda x: words.percent(x, 2), "max"),
    ("training loss", lambda run: run.state.loss, words.number, "min"),
    ("size", lambda run: run.state.packed_bytes or math.nan, lambda x: size_text(x) if x == x else "-", "min"),
    ("smaller by", lambda run: run.state.ratio, lambda x: f"{x:.1f}x" if x == x else "-", "max"),
)


def figures(chosen: Sequence[RunView]) -> list[Row]:
    """What the runs have reached. Figures that none of them has are left out."""
    rows = [
        Row("state", tuple(f"{run.icon} {run.word}" for run in chosen)),
        Row("epoch", tuple(words.epochs(run.state) for run in chosen)),
        Row("time", tuple(words.span(run.elapsed_s) for run in chosen)),
    ]
    for label, value, text, goal in FIGURES:
        values = [value(run) for run in chosen]
        known = [x for x in values if math.isfinite(x)]
        if known:
            rows.append(
                Row(label, tuple(map(text, values)), _best(values, max(known) if goal == "max" else min(known)))
            )
    return rows


def differences(chosen: Sequence[RunView]) -> list[Row]:
    """The settings, versions and devices in which the runs differ."""
    about = [_about(run) for run in chosen]
    names = list(dict.fromkeys(name for one in about for name in one))
    rows = [Row(name.replace("_", " "), tuple(one.get(name, "-") for one in about)) for name in names]
    return [row for row in rows if len(set(row.cells)) > 1]


def _best(values: Sequence[float], best: float) -> frozenset[int]:
    """The indices of the best; none where all are the same, for then nothing is said by it."""
    found = frozenset(i for i, value in enumerate(values) if value == best)
    return found if len(found) < len(values) else frozenset()


def _about(run: RunView) -> dict[str, str]:
    versions = run.manifest.get("versions")
    more: dict[str, Any] = {"device": run.manifest.get("device"), "git": run.manifest.get("git")}
    found = {**run.config, **more, **(versions if isinstance(versions, dict) else {})}
    return {str(name): _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    if value is None or value == [] or value == "":
        return "-"
    return words.clean(" ".join(map(str, value)) if isinstance(value, list) else str(value))
