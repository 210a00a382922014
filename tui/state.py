"""What the dashboard knows of the runs: immutable snapshots, and their words and numbers for people.

No Textual here: this is plain data, made by the poller's thread and read by the screens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tq import query, runs
from tq.history import RunState
from tq.panels import packed_point, pareto
from tq.query import Query
from tq.runs import Status
from tui import words
from tui.system import System

# Icon and colour (a Textual theme variable) by state. The word is always shown too: colour alone says nothing.
ICONS = {
    "live": ("●", "primary"),
    "starting": ("◌", "primary"),
    "done": ("✓", "success"),
    "failed": ("✗", "error"),
    "crashed": ("▲", "error"),
    "stopped": ("■", "warning"),
    "remote": ("?", "secondary"),
}


@dataclass(frozen=True)
class RunView:
    """One run at one moment."""

    path: Path
    status: Status
    state: RunState = field(default_factory=RunState)
    manifest: dict[str, Any] = field(default_factory=dict)
    output: tuple[str, ...] = ()
    """last lines of out.log; only of the run that is being looked at"""
    now: float = 0.0
    """when it was looked at; a run that is over keeps the time of its last change"""
    share: float = 1.0
    """how much of the log has been read, 0 to 1"""
    gone: bool = False
    """its directory was deleted; what is known of it was read before"""
    asked_t: float | None = None
    """when this dashboard asked it to stop"""

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a filter or an order asks for."""
        return query.facts(self.path, self.manifest, self.state, self.status)

    @cached_property
    def curve(self) -> str:
        """The training accuracy in one line."""
        return words.spark([p.acc for p in self.state.points])

    @cached_property
    def name(self) -> str:
        """resnet20-w1a2: the manifest's name, or what the directory's name says."""
        return words.clean(query.name(self.path, self.manifest))

    @property
    def tag(self) -> str:
        """The last four characters of the id: enough for `tq stop 3f2c`."""
        return self.path.name.rpartition("-")[2][-4:]

    @property
    def icon(self) -> str:
        if self.gone:
            return "✗"
        return "▲" if self.word.startswith("stalled") else ICONS[self.status.state][0]

    @property
    def tone(self) -> str:
        """The theme variable of its colour."""
        if self.gone:
            return "error"
        return "warning" if self.word.startswith("stalled") else ICONS[self.status.state][1]

    @property
    def word(self) -> str:
        if self.gone:
            return "deleted"
        if self.asked_t is not None and self.status.live:
            return f"stopping {runs.duration(self.now - self.asked_t)}"
        return words.clean(self.status.word)

    @property
    def config(self) -> dict[str, Any]:
        found = self.manifest.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def started(self) -> float:
        """Unix seconds; 0 where nothing says."""
        created = self.manifest.get("created")
        return self.state.started or (created if isinstance(created, int | float) else 0.0)

    @property
    def elapsed_s(self) -> float:
        """Since the start, up to now or to the last event of a run that has ended."""
        return (
            max(0.0, (self.now if self.status.live else self.state.updated) - self.started)
            if self.started
            else math.nan
        )

    @property
    def phase_s(self) -> float:
        """Since the phase began; NaN unless the run is live."""
        return max(0.0, self.now - self.state.phase_t) if self.status.live and self.state.phase_t else math.nan

    @property
    def trouble(self) -> tuple[str, ...]:
        """What went wrong, the most telling line first; empty for a run that is well."""
        if self.gone:
            told = "the directory of this run was deleted; what is shown was read before"
            return told, words.clean(str(self.path))
        if self.status.state == "failed":
            detail = self.state.traceback.strip().splitlines()[-6:]
            return tuple(
                words.clean(line) for line in (self.state.error or "the run failed and left no message", *detail)
            )
        if self.status.state == "crashed":
            at = f" in phase {self.status.phase}" if self.status.phase else ""
            last = self.output[-6:] or ("(no output was captured)",)
            return f"the trainer died{at} without saying why; its last lines were:", *last
        return ()


@dataclass(frozen=True)
class Snapshot:
    """All runs at one moment, newest first."""

    runs: tuple[RunView, ...] = ()
    now: float = 0.0
    whole: bool = True
    """False while some logs have not been read to their end for the first time"""
    system: System | None = None

    @property
    def live(self) -> tuple[RunView, ...]:
        return tuple(run for run in self.runs if run.status.live)

    def find(self, path: Path | None) -> RunView | None:
        return next((run for run in self.runs if run.path == path), None)


@dataclass(frozen=True)
class Dot:
    """A run in the picture of accuracy against size."""

    path: Path
    bytes: float
    accuracy: float
    label: str
    dataset: str
    front: bool
    """no other run on this data set is both smaller and better"""


def dots(chosen: Sequence[RunView]) -> tuple[Dot, ...]:
    """The runs that have a size and an accuracy, smallest first."""
    points: dict[str, list[tuple[RunView, tuple[float, float]]]] = {}
    for run in chosen:
        if point := packed_point(run.state):
            points.setdefault(str(run.config.get("dataset")), []).append((run, point))
    found = []
    for dataset, here in points.items():
        # percent of one data set say nothing against those of another
        front = set(pareto([point for _, point in here]))
        found += [Dot(run.path, *point, run.name, dataset, front=point in front) for run, point in here]
    return tuple(sorted(found, key=lambda dot: (dot.bytes, -dot.accuracy)))


def select(chosen: Sequence[RunView], wanted: Query, sort: str, now: float) -> tuple[RunView, ...]:
    """The runs that a filter leaves, ordered (query.SORTS); "" keeps them newest first. Deleted ones are left out."""
    kept = [run for run in chosen if not run.gone and (not wanted.terms or wanted.match(run.facts, now))]
    return tuple(query.ordered(kept, sort, lambda run: run.facts) if sort else kept)


def why_not_stop(run: RunView | None) -> str:
    """Why this run cannot be stopped; "" if it can."""
    if run is None:
        return "there is no run to stop"
    return f"{run.name} is not running ({run.word})" if run.gone or not run.status.live else ""


def why_not_resume(run: RunView | None) -> str:
    """Why this run cannot be resumed; "" if it can."""
    if run is None:
        return "there is no run to resume"
    if run.status.live and not run.gone:
        return f"{run.name} is still running"
    return f"{run.name} cannot be resumed ({run.word})" if run.gone or not run.status.resumable else ""


def command(run: RunView) -> str:
    """What was run, on one line."""
    argv = run.manifest.get("argv")
    if not isinstance(argv, list) or not argv:
        return ""
    given = [str(word) for word in argv[1:]]
    # Where launch put the run is no part of what was asked for.
    if "--run-dir" in given:
        at = given.index("--run-dir")
        given[at : at + 2] = []
    return words.clean(" ".join(("tq", *given)))


def verdict(run: RunView) -> str:
    """One sentence on where the run stands, for the strip below the list."""
    state, word = run.state, run.status.state
    if run.gone:
        return run.trouble[0]
    if run.share < 1:
        return f"reading its log, {100 * run.share:.0f}%"
    if word == "starting":
        return "the trainer is starting"
    if word == "live":
        return (
            f"{run.word} for {words.span(run.phase_s)}, {words.span(run.elapsed_s)} in all"
            if state.phase_t
            else "the trainer is starting"
        )
    if word == "done":
        accuracy = words.packed_accuracy(state)
        measured = f", {words.percent(accuracy, 2)} measured from the packed file" if accuracy == accuracy else ""
        return f"finished after {words.span(run.elapsed_s)}{measured}"
    if word == "stopped":
        return f"stopped at step {state.step:,}; r resumes it" + (
            " from its checkpoint" if state.checkpoint_step else ""
        )
    if word == "remote":
        return f"runs on host {words.clean(run.status.host)}; its last event came {words.span(run.status.silent_s)} ago"
    return run.trouble[0]
