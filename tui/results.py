"""What a quantize, a bench or an inspect found, for a terminal: the important figure first, then bars.

The results are the objects that `tq quantize|bench|inspect --json` print. Readers trust no field: what is missing or
of another type shows as "-".
"""

from __future__ import annotations

import math
from typing import Any

from textual.content import Content

from tq.byte_size import size_text
from tui import words
from tui.bars import bar, columns, padded
from tui.jobs import Job
from tui.layers_text import short

NAME_MOST = 30


def result(job: Job, width: int) -> Content:
    """The result of a job that is done."""
    shown = {"bench": bench, "quantize": quantize, "inspect": inspect}.get(job.command)
    return shown(job.result, width) if shown else Content(words.clean(str(job.result)))


def bench(found: dict[str, Any], width: int) -> Content:
    """A bar of images a second for each contender, by batch size, and its speed relative to compiled float."""
    rows = rows_of(found)
    device = _word(found, "cpu") if found.get("device") == "cpu" else _word(found, "device")
    lines = [
        Content.assemble(("images a second, and how many times as fast as compiled float", "bold")),
        Content.styled(f"{device}, threads: {_word(found, 'threads')}; checked before they were timed", "$muted"),
    ]
    name_width = min(NAME_MOST, max((len(_word(row, "contender")) for row in rows), default=0))
    bar_width = columns(width - name_width - 28, 1, least=6, most=48)
    for size in dict.fromkeys(_word(row, "batch") for row in rows):
        same = [row for row in rows if _word(row, "batch") == size]
        most = max((v for row in same if math.isfinite(v := number(row, "images_per_s"))), default=math.nan)
        lines += [Content(""), Content.assemble((f"batch {size}", "bold $primary"))]
        lines += [_contender(row, most, name_width, bar_width) for row in same]
        best = max(same, key=lambda row: _or(number(row, "speedup"), 0.0))
        if (times := number(best, "speedup")) > 0:
            milliseconds = words.number(number(best, "latency_ms"))
            fastest = f"{_word(best, 'contender')} is fastest: {times:.2f}x, {milliseconds} ms a batch"
            lines.append(Content.styled(fastest, "$muted"))
    notes = {_note(row): None for row in rows if _note(row)}
    lines += [Content(""), *(Content.styled(note, "$muted") for note in notes)] if notes else []
    return Content("\n").join(lines)


def _contender(row: dict[str, Any], most: float, name_width: int, bar_width: int) -> Content:
    name = f"{short(_word(row, 'contender'), name_width):<{name_width}}  "
    if error := str(row.get("error") or ""):
        return Content.assemble(name, (words.clean(error), "$error"))
    speed, times = number(row, "images_per_s"), number(row, "speedup")
    packed = "packed" in _word(row, "contender")
    tone = "$success" if packed else "$secondary"
    ratio = "       -" if math.isnan(times) else f"{times:7.2f}x"
    return Content.assemble(
        name,
        (padded(speed / most, bar_width), tone),
        f" {words.number(speed):>9}",
        (ratio, "bold $success" if packed and times > 1 else "$muted"),
        ("  ✓" if row.get("checked") else "", "$success"),
    )


def _note(row: dict[str, Any]) -> str:
    """What is said once below the bars: what runs a contender, and how it was checked."""
    told = [words.clean(str(row[key])) for key in ("checked", "how") if row.get(key)]
    return f"{_word(row, 'contender')}: {'; '.join(told)}" if told else ""


def quantize(found: dict[str, Any], width: int) -> Content:
    """Accuracy and size before and after, then the layers."""
    before, after = number(found, "float_accuracy"), number(found, "accuracy")
    full, packed = number(found, "float_bytes"), number(found, "bytes")
    bar_width = columns(width - 40, 1, least=6, most=40)
    change = after - before
    lost = Content.styled(
        f"  {change:+.2f}" if math.isfinite(change) else "", "$success" if change >= 0 else "$warning"
    )
    lines = [
        Content.assemble((words.clean(str(found.get("file", "-"))), "bold"), ("  written and read back", "$muted")),
        Content(""),
        _compared("accuracy", "float", words.percent(before, 2), before / 100, bar_width, "$secondary"),
        _compared("", _word(found, "scheme"), words.percent(after, 2), after / 100, bar_width, "$success") + lost,
        _compared("size", "float", _size(full), 1.0, bar_width, "$secondary"),
        _compared("", "packed", _size(packed), packed / full if full else math.nan, bar_width, "$success")
        + Content.styled(f"  {full / packed:.1f}x smaller" if packed else "", "bold $success"),
        Content(""),
        *_layers(found, width),
    ]
    off, allowed = number(found, "largest_logit_difference"), number(found, "tolerance")
    said = f"largest difference of a logit between simulated and packed: {off:g} (allowed {allowed:g})"
    lines += [Content(""), Content.styled(said, "$muted")]
    kept = found.get("not_quantized")
    if isinstance(kept, list) and kept:
        lines.append(Content.styled("left float: " + ", ".join(words.clean(str(name)) for name in kept), "$muted"))
    return Content("\n").join(lines)


def _compared(what: str, who: str, figure: str, share: float, bar_width: int, tone: str) -> Content:
    return Content.assemble((f"{what:<10}", "$muted"), f"{who:<8}{figure:>9}  ", (bar(share, bar_width), tone))


def _layers(found: dict[str, Any], width: int) -> list[Content]:
    rows = rows_of(found, "layers")
    if not rows:
        return []
    name_width = min(NAME_MOST, max(5, *(len(_word(row, "name")) for row in rows)))
    why = any(row.get("why") for row in rows)
    bar_width = columns(width - name_width - 36 - (20 if why else 0), 2, least=4, most=20)
    most_bytes = max((_or(number(row, "bytes"), 0) for row in rows), default=0)
    most_snr = max((_or(number(row, "snr_db"), 0) for row in rows), default=0)
    heading = f"{'layer':<{name_width}}  {'bits':>6}  {'bytes':>8} {'':<{bar_width}}  {'SNR dB':>6} {'':<{bar_width}}"
    lines = [Content.styled(heading + ("  why these bits" if why else ""), "$muted")]
    for row in rows:
        weight, act, snr = number(row, "weight_bits"), number(row, "act_bits"), number(row, "snr_db")
        bits = "float" if weight == act == 16 else f"w{weight:g}a{act:g}"
        lines.append(
            Content.assemble(
                f"{short(_word(row, 'name'), name_width):<{name_width}}",
                (f"  {bits:>6}", "bold $primary" if bits != "float" else ""),
                f"  {_size(number(row, 'bytes')):>8} ",
                (padded(number(row, "bytes") / most_bytes if most_bytes else math.nan, bar_width), "$secondary"),
                f"  {'-' if math.isnan(snr) else f'{snr:.1f}':>6} ",
                (padded(snr / most_snr if most_snr > 0 else math.nan, bar_width), "$success"),
                (f"  {words.clean(str(row.get('why') or ''))}", "$muted"),
            )
        )
    return lines


def inspect(found: dict[str, Any], width: int) -> Content:
    """Where the bytes of a file go, the largest part first, with bars to one scale."""
    whole, full = number(found, "bytes"), number(found, "float_bytes")
    ratio = f", {full / whole:.1f}x smaller than float ({_size(full)})" if whole and full else ""
    model = found.get("model")
    name = words.clean(str(model.get("name"))) if isinstance(model, dict) else "a network of unknown architecture"
    header: dict[str, Any] = {"name": "header", "bits": "json", "shape": [], "bytes": found.get("header_bytes")}
    lines = [
        Content.assemble((f"{name}: {whole:,.0f} bytes", "bold"), (ratio, "$success")),
        Content.styled(
            f"predicted {number(found, 'predicted_bytes'):,.0f}; codes at their bits, the rest as stored: "
            f"{number(found, 'theoretical_bytes'):,.0f}",
            "$muted",
        ),
        Content.styled(_metrics(found), "$muted"),
        Content(""),
    ]
    rows = sorted([*rows_of(found), header], key=lambda row: -_or(number(row, "bytes"), 0.0))
    name_width = min(36, max((len(_word(row, "name")) for row in rows), default=0))
    shape_width = max((len(_shape(row)) for row in rows), default=0)
    shape_width = shape_width if width - name_width - shape_width >= 36 else 0
    bar_width = columns(width - name_width - shape_width - 28, 1, least=6, most=40)
    most = max((_or(number(row, "bytes"), 0) for row in rows), default=0)
    heading = f"{'tensor':<{name_width}}  {'bits':>5}  {'shape' if shape_width else '':<{shape_width}}  {'bytes':>8}"
    lines.append(Content.styled(heading, "$muted"))
    for row in rows:
        size, bits = number(row, "bytes"), _word(row, "bits")
        packed = _word(row, "name").endswith("weight_packed")
        lines.append(
            Content.assemble(
                f"{short(_word(row, 'name'), name_width):<{name_width}}",
                (f"  {bits:>5}", "bold $primary" if packed else "$muted"),
                (f"  {_shape(row) if shape_width else '':<{shape_width}}", "$muted"),
                f"  {_size(size):>8} ",
                (padded(size / most if most else math.nan, bar_width), "$success" if packed else "$secondary"),
                (f" {100 * size / whole:5.1f}%" if whole else "", "$muted"),
            )
        )
    return Content("\n").join(lines)


def _metrics(found: dict[str, Any]) -> str:
    """Accuracy that the file says was measured from it, and on what."""
    metrics, data = found.get("metrics"), found.get("data")
    accuracy = number(metrics, "accuracy") if isinstance(metrics, dict) else math.nan
    where = words.clean(str(data.get("name", "-"))) if isinstance(data, dict) else "-"
    return f"accuracy {words.percent(accuracy, 2)} on {where}, as measured from this file"


def _shape(row: dict[str, Any]) -> str:
    shape = row.get("shape")
    return "x".join(str(n) for n in shape) if isinstance(shape, list) else ""


def rows_of(found: dict[str, Any], key: str = "rows") -> list[dict[str, Any]]:
    """The objects of a list; none where there is no list."""
    rows = found.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def number(values: dict[str, Any], key: str) -> float:
    """A figure; NaN where there is none."""
    value = values.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _word(values: dict[str, Any], key: str) -> str:
    return words.clean(str(values.get(key, "-")))


def _size(value: float) -> str:
    return size_text(value) if math.isfinite(value) else "-"


def _or(value: float, default: float) -> float:
    return value if math.isfinite(value) else default
