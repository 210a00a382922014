"""The panel below a run's charts: one of log, alerts, layers, phases, settings, and the search in the log."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from tui import panels
from tui.panels import Search
from tui.state import RunView


class Panel(VerticalScroll):
    """Shows one of panels.NAMES; the names stand in its border. `draw` after every change."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.search = Search()
        self._at = 0
        self._drawn: tuple[str, Content] | None = None
        self._at_end = True

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static(id="panel-body")

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Whether it was left at its end: only scrolling says so, as growing text and a smaller panel move the end."""
        super().watch_scroll_y(old_value, new_value)
        self._at_end = new_value >= self.max_scroll_y

    def on_resize(self) -> None:
        """Stay at the end of a log that is followed."""
        if self._follows():
            self.scroll_end(animate=False)

    def turn(self, by: int) -> None:
        """The next or the previous panel."""
        self._at = (self._at + by) % len(panels.NAMES)

    def show_log(self) -> None:
        """What is searched in."""
        self._at = 0

    def draw(self, run: RunView) -> None:
        """Draw what has changed."""
        name = panels.NAMES[self._at]
        self.border_title = Content.assemble(*(_tab(run, n, chosen=n == name) for n in panels.NAMES))
        self.border_subtitle = self._found(run) if name == "log" else ""
        width = self.scrollable_content_region.width
        content = panels.log(run, self.search) if name == "log" else panels.PANELS[name](run, width)
        if (name, content) == self._drawn:
            return
        turned = self._drawn is None or name != self._drawn[0]
        self._drawn = name, content
        self.query_one("#panel-body", Static).update(content)
        if self._follows(turned=turned):
            self.scroll_end(animate=False)
        elif turned:
            self.scroll_home(animate=False)

    def scroll_to_match(self, run: RunView) -> None:
        """Bring the match that is looked at into the middle."""
        line = self.search.line(run.output)
        if line is not None:
            self.scroll_to(y=max(0, line - self.size.height // 2), animate=False)

    def _follows(self, *, turned: bool = False) -> bool:
        """A log is followed unless it was scrolled up or is searched; the other panels are read from their start."""
        return panels.NAMES[self._at] == "log" and not self.search.needle and (turned or self._at_end)

    def _found(self, run: RunView) -> Content:
        """How many lines match, for the lower border."""
        if not self.search.needle:
            return Content("")
        found = len(self.search.matches(run.output))
        words = f"{self.search.at % found + 1} of {found} lines" if found else "no line"
        return Content(f"{words} with {self.search.needle!r} · n and N walk · esc ends")


def _tab(run: RunView, name: str, *, chosen: bool) -> tuple[str, str]:
    count = f" {len(run.state.alerts)}" if name == "alerts" and run.state.alerts else ""
    if count and not chosen and any(alert.level != "info" for alert in run.state.alerts):
        return f" ▲{name}{count} ", "bold $warning"
    return f" {name}{count} ", "reverse bold" if chosen else "$muted"
