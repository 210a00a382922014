"""The panels below a run's charts: log with search, alerts, phases, layers, settings. Each is text for a width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.content import Content

from tui import layers_text, state, words
from tui.bars import columns, padded
from tui.run_text import phase_times
from tui.state import RunView


@dataclass(frozen=True)
class Search:
    """What is searched for in the log, and which of the matching lines is looked at."""

    needle: str = ""
    at: int = 0
    """index into the matches"""

    def matches(self, lines: Sequence[str]) -> list[int]:
        """Indices of the lines that have the needle, whatever its case."""
        needle = self.needle.casefold()
        return [i for i, line in enumerate(lines) if needle in line.casefold()] if needle else []

    def line(self, lines: Sequence[str]) -> int | None:
        """Index of the line that is looked at; None where nothing matches."""
        found = self.matches(lines)
        return found[self.at % len(found)] if found else None

    def step(self, by: int, lines: Sequence[str]) -> Search:
        """The next or the previous match, around the ends."""
        found = self.matches(lines)
        return Search(self.needle, (self.at + by) % len(found)) if found else self


def log(run: RunView, search: Search) -> Content:
    """The end of what the trainer printed, the matches of a search marked."""
    if not run.output:
        return Content.styled("no out.log: this run writes to the terminal it was started from", "$muted")
    current = search.line(run.output)
    return Content("\n").join(_marked(line, search.needle, i == current) for i, line in enumerate(run.output))


def _marked(line: str, needle: str, current: bool) -> Content:
    content = Content(line)
    if not needle:
        return content
    # Lower case may be longer than what it stands for (İ): then the line as a whole is marked.
    low, small = line.lower(), needle.lower()
    if len(low) != len(line):
        return content.stylize("reverse") if current else content
    at = low.find(small)
    while at >= 0:
        content = content.stylize("bold reverse $warning" if current else "underline $warning", at, at + len(small))
        at = low.find(small, at + len(small))
    return content


def alerts(run: RunView, width: int) -> Content:
    """The alerts, newest first."""
    if not run.state.alerts:
        return Content.styled("no alerts", "$muted")
    tones = {"error": ("✗", "$error"), "warning": ("▲", "$warning")}
    lines = []
    for alert in reversed(run.state.alerts):
        icon, tone = tones.get(alert.level, ("●", "$primary"))
        ago = f"{words.span(max(0.0, run.now - alert.t)):>5} ago  "
        lines.append(
            Content.assemble(
                (f"{icon} ", tone), (ago, "$muted"), (words.clean(alert.title), "bold"), f"  {words.clean(alert.text)}"
            )
        )
    return Content("\n").join(lines)


def phases(run: RunView, width: int) -> Content:
    """How long the run was busy with what, as bars."""
    times = phase_times(run)
    if not times:
        return Content.styled("the trainer has not said what it does", "$muted")
    whole = sum(times.values()) or 1.0
    name_width = max(len(words.clean(name)) for name in times)
    bar_width = columns(width - name_width - 18, 1, most=60)
    lines = []
    for name, seconds in times.items():
        now = run.status.live and name == run.state.phase and not run.state.end
        lines.append(
            Content.assemble(
                ("● " if now else "  ", f"${run.tone}"),
                (f"{words.clean(name):<{name_width}}", "bold" if now else ""),
                f"  {words.span(seconds):>6}  ",
                (padded(seconds / whole, bar_width), "$primary"),
                (f" {100 * seconds / whole:3.0f}%", "$muted"),
            )
        )
    return Content("\n").join(lines)


def layers(run: RunView, width: int) -> Content:
    """Figures by layer."""
    return layers_text.layers(run.state, width)


def settings(run: RunView, width: int) -> Content:
    """Command, settings, versions, and the summary of a run that has ended."""
    lines = [Content.styled(state.command(run) or "the manifest names no command", "bold")]
    versions = run.manifest.get("versions")
    about = {
        "device": run.manifest.get("device"),
        "git": run.manifest.get("git"),
        "parent": run.manifest.get("parent"),
        **(versions if isinstance(versions, dict) else {}),
    }
    about = {key: value for key, value in about.items() if value is not None}
    for key, value in {**run.config, **about, **run.state.summary}.items():
        lines.append(Content.assemble((f"{words.clean(str(key)):<24}", "$muted"), words.clean(str(value))))
    return Content("\n").join(lines)


# The log comes first and has an argument more.
PANELS: dict[str, Callable[[RunView, int], Content]] = {
    "alerts": alerts,
    "layers": layers,
    "phases": phases,
    "settings": settings,
}
NAMES = ("log", *PANELS)
