"""What the dashboard knows of the runs: immutable snapshots, and their words and numbers for people.

No Textual here: this is plain data, made by the poller's thread and read by the screens.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tq import runs
from tq.history import RunState, binned
from tq.runs import Status

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
SPARK_WIDTH = 12
# ANSI escapes, then whatever control characters are left: a log must not be able to draw on the screen.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


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
    curve: str = ""
    """the training accuracy in one line"""
    asked_t: float | None = None
    """when this dashboard asked it to stop"""

    @property
    def name(self) -> str:
        """resnet20-w1a2: the manifest's name, or what the directory's name says."""
        parts = self.path.name.split("-")
        return clean(str(self.manifest.get("name") or "-".join(parts[2:-1]) or self.path.name))

    @property
    def tag(self) -> str:
        """The last four characters of the id: enough for `tq stop 3f2c`."""
        return self.path.name.rpartition("-")[2][-4:]

    @property
    def icon(self) -> str:
        return "▲" if self.word.startswith("stalled") else ICONS[self.status.state][0]

    @property
    def tone(self) -> str:
        """The theme variable of its colour."""
        return "warning" if self.word.startswith("stalled") else ICONS[self.status.state][1]

    @property
    def word(self) -> str:
        if self.asked_t is not None and self.status.live:
            return f"stopping {runs.duration(self.now - self.asked_t)}"
        return clean(self.status.word)

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
        if self.status.state == "failed":
            detail = self.state.traceback.strip().splitlines()[-6:]
            return tuple(clean(line) for line in (self.state.error or "the run failed and left no message", *detail))
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
    """False while some logs, of older runs, have not been read for the first time"""

    @property
    def live(self) -> tuple[RunView, ...]:
        return tuple(run for run in self.runs if run.status.live)

    def find(self, path: Path | None) -> RunView | None:
        return next((run for run in self.runs if run.path == path), None)


def clean(text: str) -> str:
    """Text of a user or a trainer without escape sequences and control characters; tabs become spaces."""
    return _ESCAPES.sub("", text.expandtabs(4))


def number(value: float, digits: int = 3) -> str:
    """A few significant digits; "-" for NaN."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{max(0, digits - 2)}e}"
    return f"{value:,.{max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))}f}"


def percent(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}%"


def size(value: float) -> str:
    """Bytes in decimal units: 78.4 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def span(seconds: float) -> str:
    """1m40; "-" for NaN."""
    return "-" if math.isnan(seconds) else runs.duration(seconds)


def sizes(state: RunState) -> str:
    """1.09 MB → 78.4 kB  13.9x; "" before they are known."""
    if not state.packed_bytes:
        return size(state.float_bytes) if state.float_bytes else ""
    return f"{size(state.float_bytes)} → {size(state.packed_bytes)}  {state.ratio:.1f}x"


def bits(state: RunState) -> str:
    """19 layers at 1 bit, 2 at 16; "" where the log does not say."""
    counts = Counter(value for value in state.layers.values() if isinstance(value, int | float))
    parts = [f"{n} at {b:g} bit{'s' if b != 1 else ''}" for b, n in sorted(counts.items())]
    return "layers: " + ", ".join(parts) if parts else ""


def spark(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """A curve in one line of text, from the lowest value to the highest."""
    _, means = binned(range(len(values)), values, width)
    finite = [y for y in means if math.isfinite(y)]
    if len(finite) < 2:
        return ""
    low, scale = min(finite), 7 / ((max(finite) - min(finite)) or 1.0)
    return "".join("▁▂▃▄▅▆▇█"[round((y - low) * scale)] if math.isfinite(y) else " " for y in means)


def epochs(state: RunState) -> str:
    return f"{state.epoch}/{state.epochs}" if state.epochs else "-"


def command(run: RunView) -> str:
    """What was run, on one line."""
    argv = run.manifest.get("argv")
    if not isinstance(argv, list) or not argv:
        return ""
    words = [str(word) for word in argv[1:]]
    # Where launch put the run is no part of what was asked for.
    if "--run-dir" in words:
        at = words.index("--run-dir")
        words[at : at + 2] = []
    return clean(" ".join(("tq", *words)))


def accuracy(state: RunState) -> float:
    """The accuracy to show for a run: its best evaluation, else what it trains at."""
    return state.acc if math.isnan(state.best_acc) else state.best_acc


def packed_accuracy(state: RunState) -> float:
    """Percent, measured from the file that the run has written; NaN before that."""
    value = state.summary.get("packed_accuracy")
    return float(value) if isinstance(value, int | float) else math.nan


def verdict(run: RunView) -> str:
    """One sentence on where the run stands, for the strip below the list."""
    state, word = run.state, run.status.state
    if word == "starting":
        return "the trainer is starting"
    if word == "live":
        return (
            f"{run.word} for {span(run.phase_s)}, {span(run.elapsed_s)} in all"
            if state.phase_t
            else "the trainer is starting"
        )
    if word == "done":
        accuracy = packed_accuracy(state)
        measured = f", {percent(accuracy, 2)} measured from the packed file" if accuracy == accuracy else ""
        return f"finished after {span(run.elapsed_s)}{measured}"
    if word == "stopped":
        return f"stopped at step {state.step:,}; r resumes it" + (
            " from its checkpoint" if state.checkpoint_step else ""
        )
    if word == "remote":
        return f"runs on host {clean(run.status.host)}; its last event came {span(run.status.silent_s)} ago"
    return run.trouble[0]
