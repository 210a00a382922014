"""Numbers and texts as the dashboard writes them. No Textual here."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from tq import runs
from tq.byte_size import size_text
from tq.history import RunState, binned
from tui.system import System

SPARK_WIDTH = 12
# ANSI escapes, then whatever control characters are left: a log must not be able to draw on the screen.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


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


def span(seconds: float) -> str:
    """1m40; "-" for NaN."""
    return "-" if math.isnan(seconds) else runs.duration(seconds)


def age(seconds: float) -> str:
    """How long ago, in one unit, so that a list of runs does not change all the time: <1m, 12m, 5h, 3d."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return "<1m"


def age_lasts(seconds: float) -> float:
    """For how many seconds more `age` says the same."""
    unit = 60 if seconds < 3600 else 3600 if seconds < 86_400 else 86_400
    return unit - seconds % unit


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


def accuracy(state: RunState) -> float:
    """The accuracy to show for a run: its best evaluation, else what it trains at."""
    return state.acc if math.isnan(state.best_acc) else state.best_acc


def packed_accuracy(state: RunState) -> float:
    """Percent, measured from the file that the run has written; NaN before that."""
    value = state.summary.get("packed_accuracy")
    return float(value) if isinstance(value, int | float) else math.nan


def sizes(state: RunState) -> str:
    """1.09 MB → 78.4 kB  13.9x; "" before they are known."""
    if not state.packed_bytes:
        return size_text(state.float_bytes) if state.float_bytes else ""
    return f"{size_text(state.float_bytes)} → {size_text(state.packed_bytes)}  {state.ratio:.1f}x"


def bits(state: RunState) -> str:
    """19 layers at 1 bit, 2 at 16; "" where the log does not say."""
    counts = Counter(value for value in state.layers.values() if isinstance(value, int | float))
    parts = [f"{n} at {b:g} bit{'s' if b != 1 else ''}" for b, n in sorted(counts.items())]
    return "layers: " + ", ".join(parts) if parts else ""


def system_line(system: System | None) -> str:
    """CPU 41%   RAM 9.8 of 33.5 GB   GPU H100 87% 12.1 of 85.0 GB 310 W 61 °C"""
    if system is None:
        return ""
    parts = [f"CPU {system.cpu:.0f}%", f"RAM {_of(system.used_bytes, system.total_bytes)}"]
    for gpu in system.gpus:
        name = clean(gpu.name).removeprefix("NVIDIA ")
        busy = "" if gpu.busy is None else f" {gpu.busy:.0f}%"
        watt = "" if gpu.power_w is None else f" {gpu.power_w:.0f} W"
        heat = "" if gpu.celsius is None else f" {gpu.celsius:.0f} °C"
        parts.append(f"GPU {name}{busy} {_of(gpu.used_bytes, gpu.total_bytes)}{watt}{heat}")
    return "   ".join(parts if system.gpus else [*parts, system.no_gpu])


def _of(used: float, total: float) -> str:
    return f"{used / 1e9:.1f} of {total / 1e9:.1f} GB"
