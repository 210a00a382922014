"""The texts at the top of a run's screen: status line, tiles, size, trouble, and what stands in for a curve."""

from __future__ import annotations

import math

from textual.content import Content

from tq.byte_size import size_text
from tq.history import RunState
from tui import words
from tui.bars import bar, padded
from tui.state import RunView

# What a phase is busy with, for a run that has no curve yet.
BUSY = {
    "data": "reading the data set",
    "compile": "compiling the training step; the first steps follow",
    "autotune": "choosing kernel sizes",
    "calibrate": "calibrating the activation ranges",
    "pack": "packing the network and checking the file",
    "eval": "evaluating",
    "bench": "timing",
    "float": "training in float; waiting for the first step",
    "train": "training; waiting for the first step",
}
TILE_WIDTH = 9


def status_line(run: RunView, width: int) -> Content:
    """● train 1m40 · 5m12 in all ━━━━━━━━━━╸━━━━━━━━━━ 38% · 8m20 left"""
    s = run.state
    left = Content.assemble((f"{run.icon} {run.word}", f"bold ${run.tone}"))
    if run.word.startswith("stalled"):
        left += Content(f" in {words.clean(s.phase)}")
    elif not math.isnan(run.phase_s):
        left += Content(f" {words.span(run.phase_s)}")
        if run.status.silent_s >= 10 and s.phase in ("train", "float"):
            left += Content.styled(f", silent {words.span(run.status.silent_s)}", "$warning")
    left += Content.styled(f"  {words.span(run.elapsed_s)} in all  ", "$muted")
    if run.share < 1:
        left += Content.styled(f"reading the log {100 * run.share:.0f}%  ", "$warning")
    accuracy = words.packed_accuracy(s)
    if run.status.state == "done" and accuracy == accuracy:
        left += Content.assemble(("packed file ", "$muted"), (words.percent(accuracy, 2), "bold $success"), "  ")
    right = Content("")
    if not math.isnan(s.progress):
        right = Content.assemble(f"  {100 * s.progress:.0f}%")
        if not math.isnan(s.eta_s) and run.status.live:
            right += Content.assemble(("  ETA ", "$muted"), words.span(s.eta_s))
    room = width - left.cell_length - right.cell_length
    if math.isnan(s.progress) or room < 10:
        return left + right
    filled = round(room * s.progress)
    return Content.assemble(left, ("━" * filled, f"${run.tone}"), ("━" * (room - filled), "$panel-lighten-2"), right)


def tiles(s: RunState, width: int) -> Content:
    """Labels above values, in equal columns; the most telling come first, and as many as fit."""
    tiles = [
        ("EPOCH", words.epochs(s)),
        ("STEP", f"{s.step:,}"),
        ("LOSS", words.number(s.loss)),
        ("TRAIN", words.percent(s.acc)),
        ("EVAL", words.percent(s.last_acc)),
        ("BEST", words.percent(s.best_acc)),
        ("IMG/S", words.number(s.img_s)),
        ("LR", words.number(s.lr)),
    ]
    # What only some methods have stands before what every run has.
    own = [("FLIPS", words.percent(100 * s.flip_rate, 2)), ("2^-P", _resolution(s)), ("FROZEN", _portion(s))]
    tiles[6:6] = [(label, value) for label, value in own if value != "-"]
    gpu = "gpu_util" in s.sys
    busy, memory = (_sys(s, "gpu_util"), _sys(s, "gpu_mem")) if gpu else (_sys(s, "cpu"), _sys(s, "rss"))
    tiles.append(("GPU" if gpu else "CPU", words.percent(busy, 0)))
    tiles.append(("GPU MEM" if gpu else "MEMORY", "-" if math.isnan(memory) else size_text(memory)))
    tiles = tiles[: max(1, width // TILE_WIDTH)]
    room = width // len(tiles)
    labels = Content.assemble(*((f"{label:<{room}}", "$muted") for label, _ in tiles))
    values = Content.assemble(*((f"{value:<{room}}", "bold" if value != "-" else "$muted") for _, value in tiles))
    return Content("\n").join([labels, values])


def _resolution(s: RunState) -> str:
    """The exponents p of the updates' resolution 2^-p, smallest to largest over the tensors."""
    if math.isnan(s.p_mean):
        return "-"
    return f"{s.p_mean:.0f}" if s.p_min == s.p_max or math.isnan(s.p_min) else f"{s.p_min:.0f} to {s.p_max:.0f}"


def _portion(s: RunState) -> str:
    return words.percent(100 * s.portion, 0)


def size(s: RunState, width: int) -> Content:
    """Float and packed size as numbers and as bars to the same scale."""
    full = min(28, width // 4)
    line = Content.assemble(
        ("SIZE  ", "$muted"),
        f"{size_text(s.float_bytes)} ",
        ("█" * full, "$secondary"),
        (f" → {size_text(s.packed_bytes)} ", "bold"),
        (bar(s.packed_bytes / s.float_bytes if s.float_bytes else math.nan, full), "$success"),
        (f"  {s.ratio:.1f}x smaller", "bold $success"),
    )
    detail = Content.styled("   " + words.bits(s), "$muted")
    return line + detail if line.cell_length + detail.cell_length <= width else line


def _sys(s: RunState, key: str) -> float:
    value = s.sys.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def trouble(run: RunView, rows: int) -> tuple[str, Content] | None:
    """Tone and text of the box above the charts, `rows` of detail at most: what is wrong and what can be done."""
    s = run.state
    if run.trouble:
        first, *rest = run.trouble
        # The last lines say more than the first of a long traceback.
        lines = [Content.styled(first, "bold"), *(Content.styled(line, "$muted") for line in rest[-rows:])]
        return "error", Content("\n").join([*lines, _way_on(run)])
    if run.word.startswith("stalled"):
        silent, phase = words.span(run.status.silent_s), words.clean(s.phase)
        text = f"nothing was logged for {silent} in phase {phase}, but its process ({run.status.pid or '?'}) is alive"
        return "warning", Content.assemble((text, "bold"), ("\nwait, or s stops it (S kills it)", "$muted"))
    if s.nan_step and run.status.live:
        text = f"the loss is no number since step {s.nan_step:,}"
        return "error", Content.assemble((text, "bold"), ("\ns stops it; a lower lr or more warmup may help", "$muted"))
    return None


def _way_on(run: RunView) -> Content:
    """What can be done now."""
    if run.gone:
        return Content.assemble(("esc", "bold $primary"), (" goes back to the list", "$muted"))
    if not run.status.resumable:
        return Content("")
    step = run.state.checkpoint_step
    since = f"from step {step:,}" if step else "from the start, there is no checkpoint"
    key, word = "bold $primary", "$muted"
    return Content.assemble(("r", key), (f" resumes it {since}   ", word), ("d", key), (" duplicates it", word))


def waiting(run: RunView) -> Content:
    """What to say while there is no curve: what it is busy with, and the phases so far with their time."""
    if run.share < 1:
        return Content.assemble(("reading the log", "bold"), f"\n{padded(run.share, 30)} {100 * run.share:.0f}%")
    if not run.status.live:
        return Content.styled("no step was logged", "$muted")
    doing = BUSY.get(run.state.phase, words.clean(run.state.phase) or "the trainer is starting")
    since = "" if math.isnan(run.phase_s) else f"  {words.span(run.phase_s)}"
    lines = [Content.assemble((doing, "bold"), since)]
    for name, seconds in run.state.phases.items():
        lines.append(Content.assemble(("✓ ", "$success"), (f"{words.clean(name)} {words.span(seconds)}", "$muted")))
    return Content("\n").join(lines)


def phase_times(run: RunView) -> dict[str, float]:
    """Seconds by phase, in the order of their first beginning, with the one under way up to now."""
    s = run.state
    times = dict(s.phases)
    if s.phase and not s.end:
        until = run.now if run.status.live else s.updated
        times[s.phase] = times.get(s.phase, 0.0) + max(0.0, until - s.phase_t)
    return times
