"""What the dashboard's screens share: keys from one table, snapshots to draw, and a least size."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual import on
from textual.content import Content
from textual.events import Mount, Resize
from textual.screen import Screen
from textual.widgets import Static

from tui.keys import Keyed
from tui.state import Snapshot

if TYPE_CHECKING:
    from tui.app import TqApp


# Columns from which there is room for explanations beside things.
WIDE = 110
# Columns and lines below which nothing is legible.
LEAST = (60, 16)


class TqScreen(Keyed, Screen[None]):
    """A full screen that draws snapshots. It declares its keys in KEYS (see tui/keys.py)."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (34, "-tall")]  # noqa: RUF012

    @property
    def tq(self) -> TqApp:
        """The app, typed."""
        return cast("TqApp", self.app)

    @on(Mount)
    def _prepare(self) -> None:
        """Beside what the screen itself mounts."""
        self.mount(Static(id="too-small"))

    @on(Resize)
    def _check_size(self, event: Resize) -> None:
        """Say so where the terminal is too small."""
        width, height = event.size
        small = width < LEAST[0] or height < LEAST[1]
        self.set_class(small, "-cramped")
        if small and self.is_mounted:
            sentence = f"tq needs a terminal of {LEAST[0]}x{LEAST[1]}; this one is {width}x{height}"
            self.query_one("#too-small", Static).update(sentence)

    def put(self, selector: str, content: Content | str, *, layout: bool = True) -> None:
        """Change the text of a Static, if it is another: Textual would lay out the whole screen again for the same.

        layout: False where its size cannot change; a layout twice a second is what would keep an idle dashboard busy.
        """
        static = self.query_one(selector, Static)
        if static.content != content:
            static.update(content, layout=layout)

    def redraw(self) -> None:
        """Draw the app's snapshot, unless this screen is not complete yet or is being taken down."""
        if self.is_mounted and self.tq.is_running and self in self.tq.screen_stack:
            self.show(self.tq.snapshot)

    def show(self, snapshot: Snapshot) -> None:
        """Draw this snapshot."""
        raise NotImplementedError


def spread(left: Content, right: Content, width: int) -> Content:
    """`left` and `right` at the two ends of a line."""
    return Content.assemble(left, " " * max(1, width - left.cell_length - right.cell_length), right)


def logo(title: str) -> Content:
    """The left end of every screen's top bar."""
    return Content.assemble((" tq ", "bold $background on $primary"), "  ", (title, "bold"))
