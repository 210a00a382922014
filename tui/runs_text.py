"""The texts around the list of runs: the ends of the bar, the strip about the chosen run, and an empty list."""

from __future__ import annotations

from textual.content import Content

from tui import state, words
from tui.state import RunView, Snapshot

EMPTY = """No runs yet.

Press n to start one from a form, or in another terminal:

    tq train --model resnet20 --scheme w1a2

Runs appear here as soon as they start, whoever started them."""


def counts(snapshot: Snapshot, shown: int, marked: int) -> Content:
    """◆ 2 marked   ● 1 running   3 of 12 runs"""
    live, n = len(snapshot.live), len(snapshot.runs)
    count = f"{shown} of {n} runs" if shown != n else f"{n} run{'s' * (n != 1)}"
    parts: list[str | tuple[str, str]] = [(f"● {live} running", "$primary" if live else "$muted"), f"   {count} "]
    if marked:
        parts.insert(0, (f"◆ {marked} marked   ", "$accent"))
    return Content.assemble(*parts)


def nothing(snapshot: Snapshot, filtered: str) -> str:
    """What stands in the place of an empty list."""
    if not snapshot.runs:
        return EMPTY
    return f"None of {len(snapshot.runs)} runs fits the filter\n\n    {words.clean(filtered)}\n\nesc drops it."


def strip(run: RunView) -> Content:
    """Where the run stands, what was started, what it weighs; or what went wrong."""
    lines = [Content.assemble((f"{run.icon} ", f"bold ${run.tone}"), (run.path.name, "bold"))]
    lines.append(Content.assemble((state.verdict(run), f"${run.tone}" if run.trouble else "")))
    if run.trouble:
        # The last lines say more than the first of a long traceback.
        lines += [Content.styled(line, "$muted") for line in run.trouble[1:][-2:]]
        return Content("\n").join(lines)
    sizes = "  ".join(filter(None, (words.sizes(run.state), words.bits(run.state))))
    lines += [Content.styled(line, "$muted") for line in (state.command(run), sizes)]
    alert = run.state.alerts[-1] if run.state.alerts else None
    if alert and alert.level != "info":
        lines.append(Content.styled(words.clean(f"▲ {alert.title}: {alert.text}"), "$warning"))
    return Content("\n").join(lines)
