"""The texts of a run's screen: status line, tiles, size, and the panels below the charts."""

from __future__ import annotations

import math

from textual.content import Content

from tq.history import RunState
from tui import state
from tui.state import RunView

# What a phase is busy with, for a run that has no curve yet.
BUSY = {
    "data": "reading the data set",
    "compile": "compiling the training step; the first steps follow",
    "autotune": "choosing kernel sizes",
    "calibrate": "calibrating",
    "pack": "packing",
    "bench": "timing",
}


def status_line(run: RunView, width: int) -> Content:
    """● train 1m40 · 5m12 in all ━━━━━━━━━━╸━━━━━━━━━━ 38% · 8m20 left"""
    s = run.state
    left = Content.assemble((f"{run.icon} {run.word}", f"bold ${run.tone}"))
    if run.word.startswith("stalled"):
        left += Content(f" in {state.clean(s.phase)}")
    elif not math.isnan(run.phase_s):
        left += Content(f" {state.span(run.phase_s)}")
        if run.status.silent_s >= 10 and s.phase in ("train", "float"):
            left += Content.styled(f", silent {state.span(run.status.silent_s)}", "$warning")
    left += Content.styled(f"  {state.span(run.elapsed_s)} in all  ", "$muted")
    accuracy = state.packed_accuracy(s)
    if run.status.state == "done" and accuracy == accuracy:
        left += Content.assemble(("packed file ", "$muted"), (state.percent(accuracy, 2), "bold $success"), "  ")
    right = Content("")
    if not math.isnan(s.progress):
        right = Content.assemble(f"  {100 * s.progress:.0f}%")
        if not math.isnan(s.eta_s) and run.status.live:
            right += Content.assemble(("  ETA ", "$muted"), state.span(s.eta_s))
    room = width - left.cell_length - right.cell_length
    if math.isnan(s.progress) or room < 10:
        return left + right
    filled = round(room * s.progress)
    return Content.assemble(left, ("━" * filled, f"${run.tone}"), ("━" * (room - filled), "$panel-lighten-2"), right)


def tiles(s: RunState, width: int) -> Content:
    """Labels above values, in equal columns."""
    tiles = [
        ("EPOCH", state.epochs(s)),
        ("STEP", f"{s.step:,}"),
        ("ACCURACY", state.percent(s.last_acc)),
        ("BEST", state.percent(s.best_acc)),
        ("LOSS", state.number(s.loss)),
        ("IMG/S", state.number(s.img_s)),
        ("LR", state.number(s.lr)),
        ("FLIPS", state.percent(100 * s.flip_rate, 2)),
    ]
    if width >= 108:
        gpu = "gpu_util" in s.sys
        busy, memory = (_sys(s, "gpu_util"), _sys(s, "gpu_mem")) if gpu else (_sys(s, "cpu"), _sys(s, "rss"))
        tiles.append(("GPU" if gpu else "CPU", state.percent(busy, 0)))
        tiles.append(("GPU MEM" if gpu else "MEMORY", "-" if math.isnan(memory) else state.size(memory)))
    room = width // len(tiles)
    labels = Content.assemble(*((f"{label:<{room}}", "$muted") for label, _ in tiles))
    values = Content.assemble(*((f"{value:<{room}}", "bold" if value != "-" else "$muted") for _, value in tiles))
    return Content("\n").join([labels, values])


def size(s: RunState, width: int) -> Content:
    """Float and packed size as numbers and as bars to the same scale."""
    full = min(28, width // 4)
    small = max(1, round(full * s.packed_bytes / s.float_bytes)) if s.float_bytes else 1
    line = Content.assemble(
        ("SIZE  ", "$muted"),
        f"{state.size(s.float_bytes)} ",
        ("█" * full, "$secondary"),
        (f" → {state.size(s.packed_bytes)} ", "bold"),
        ("█" * min(full, small), "$success"),
        (f"  {s.ratio:.1f}x smaller", "bold $success"),
    )
    detail = Content.styled("   " + state.bits(s), "$muted")
    return line + detail if line.cell_length + detail.cell_length <= width else line


def _sys(s: RunState, key: str) -> float:
    value = s.sys.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def waiting(run: RunView) -> Content:
    """What to say while there is no curve."""
    if run.share < 1:
        return Content.assemble(("reading the log", "bold"), "\n", (f"{100 * run.share:.0f}%", "$muted"))
    if not run.status.live:
        return Content.styled("no step was logged", "$muted")
    doing = BUSY.get(run.state.phase, run.state.phase or "starting")
    return Content.assemble(
        (doing, "bold"), "\n", (f"for {state.span(run.phase_s)}", "$muted") if run.phase_s == run.phase_s else ""
    )


def log(run: RunView) -> Content:
    """The end of what the trainer printed."""
    if not run.output:
        return Content.styled("no out.log: this run writes to the terminal it was started from", "$muted")
    return Content("\n").join(map(Content, run.output))


def alerts(run: RunView) -> Content:
    """The alerts, newest first."""
    if not run.state.alerts:
        return Content.styled("no alerts", "$muted")
    tones = {"error": ("✗", "$error"), "warning": ("▲", "$warning")}
    lines = []
    for alert in reversed(run.state.alerts):
        icon, tone = tones.get(alert.level, ("●", "$primary"))
        ago = f"{state.span(max(0.0, run.now - alert.t)):>5} ago  "
        lines.append(
            Content.assemble(
                (f"{icon} ", tone), (ago, "$muted"), (state.clean(alert.title), "bold"), f"  {state.clean(alert.text)}"
            )
        )
    return Content("\n").join(lines)


def settings(run: RunView) -> Content:
    """Command, settings, versions, and the summary of a run that has ended."""
    lines = [Content.styled(state.command(run) or "the manifest names no command", "bold")]
    versions = run.manifest.get("versions")
    about = {
        "device": run.manifest.get("device"),
        "git": run.manifest.get("git"),
        **(versions if isinstance(versions, dict) else {}),
    }
    for key, value in {**run.config, **about, **run.state.summary}.items():
        lines.append(Content.assemble((f"{state.clean(str(key)):<22}", "$muted"), state.clean(str(value))))
    return Content("\n").join(lines)


def layers(run: RunView) -> Content:
    """Bits by layer."""
    if not run.state.layers:
        return Content.styled("the sizes of the layers come with the first evaluation", "$muted")
    rows = [(state.clean(name), value) for name, value in run.state.layers.items() if isinstance(value, int | float)]
    wide = max((len(name) for name, _ in rows), default=0)
    lines = [
        Content.assemble(f"{name:<{wide}}  ", (f"{bits:>2g} bit ", "bold"), ("█" * math.ceil(bits), "$primary"))
        for name, bits in rows
    ]
    return Content("\n").join(lines)
