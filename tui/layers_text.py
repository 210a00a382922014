"""What is known of a run's layers, a line each: bits, bytes, scale, flips, oscillation, signal-to-noise, with bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.content import Content

from tq.byte_size import size_text
from tq.run_state import LayerFigures, RunState
from tui import words
from tui.bars import columns, padded

NAME_MOST = 28


@dataclass(frozen=True)
class Column:
    """A figure of every layer; `bar` is what its bar stands for, None for none."""

    title: str
    text: Callable[[LayerFigures], str]
    value: Callable[[LayerFigures], float]
    width: int
    tone: str = ""
    bar: bool = False


def _bits(one: LayerFigures) -> str:
    def word(bits: float) -> str:
        return "float" if bits >= 16 else f"{bits:g}"

    if math.isnan(one.bits):
        return "-"
    if math.isnan(one.act_bits) or (one.bits >= 16 and one.act_bits >= 16):
        return word(one.bits)
    return f"w{one.bits:g}a{one.act_bits:g}"


COLUMNS = (
    Column("bits", _bits, lambda x: x.bits, 6, "primary"),
    Column("bytes", lambda x: _or_dash(x.bytes, size_text), lambda x: x.bytes, 8, "secondary", bar=True),
    Column("scale", lambda x: words.number(x.scale), lambda x: x.scale, 8),
    Column("flips", lambda x: words.percent(100 * x.flips, 2), lambda x: x.flips, 7, "accent", bar=True),
    Column("to and fro", lambda x: words.percent(100 * x.oscillating, 2), lambda x: x.oscillating, 10),
    Column("SNR dB", lambda x: _or_dash(x.sqnr_db, "{:.1f}".format), lambda x: x.sqnr_db, 7, "success", bar=True),
)


def layers(s: RunState, width: int) -> Content:
    """The table, in the network's order; a column without a number is left out, bars take what room there is."""
    figures = merged(s)
    if not figures:
        return Content.styled("the sizes of the layers come before the first step", "$muted")
    kept = [c for c in COLUMNS if any(math.isfinite(c.value(one)) for one in figures.values())]
    name_width = min(NAME_MOST, max(5, *(len(words.clean(name)) for name in figures)))
    kept = _fitting(kept, width - name_width)
    bars = [c for c in kept if c.bar]
    room = width - name_width - sum(c.width + 2 for c in kept)
    bar_width = columns(room, len(bars)) - 1
    lines = [_heading(kept, name_width, bar_width)]
    most = {c.title: max((v for one in figures.values() if math.isfinite(v := c.value(one))), default=0) for c in bars}
    for name, one in figures.items():
        lines.append(_line(words.clean(name), one, kept, most, name_width, bar_width))
    if s.figures_step:
        lines.append(Content.styled(f"flips and noise as of step {s.figures_step:,}", "$muted"))
    return Content("\n").join(lines)


def merged(s: RunState) -> dict[str, LayerFigures]:
    """The figures by name, with the bits of the `size` event where a `layers` event has not given them."""
    names = dict.fromkeys([*s.layers, *s.layer_figures])
    found = {}
    for name in names:
        one, bits = s.layer_figures.get(name, LayerFigures()), s.layers.get(name)
        if math.isnan(one.bits) and isinstance(bits, int | float):
            one = one._replace(bits=float(bits))
        found[name] = one
    return found


def _fitting(kept: Sequence[Column], room: int) -> list[Column]:
    """The columns that fit; those without a bar go first, from the right."""
    fitting = list(kept)
    for column in [c for c in reversed(kept) if not c.bar and c.title != "bits"]:
        if sum(c.width + 2 for c in fitting) + 6 * sum(c.bar for c in fitting) <= room:
            break
        fitting.remove(column)
    return fitting


def _heading(kept: Sequence[Column], name_width: int, bar_width: int) -> Content:
    words = [f"{'layer':<{name_width}}"]
    for c in kept:
        words.append(f"  {c.title:>{c.width}}" + (" " * (bar_width + 1) if c.bar and bar_width > 0 else ""))
    return Content.styled("".join(words), "$muted")


def _line(
    name: str, one: LayerFigures, kept: Sequence[Column], most: dict[str, float], name_width: int, bar_width: int
) -> Content:
    parts: list[str | tuple[str, str]] = [f"{short(name, name_width):<{name_width}}"]
    for c in kept:
        words = c.text(one)
        style = "$muted" if words == "-" else "" if c.title != "bits" or words == "float" else f"bold ${c.tone}"
        parts.append((f"  {words:>{c.width}}", style))
        if c.bar and bar_width > 0:
            share = c.value(one) / most[c.title] if most[c.title] > 0 else math.nan
            parts.append((f" {padded(share, bar_width)}", f"${c.tone}"))
    return Content.assemble(*parts)


def short(name: str, width: int) -> str:
    """A long name by its end, which tells layers apart."""
    return name if len(name) <= width else "…" + name[1 - width :]


def _or_dash(value: float, write: Callable[[float], str]) -> str:
    return write(value) if math.isfinite(value) else "-"
