"""What the dashboard's screens share."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.content import Content
from textual.screen import Screen

from tui.keys import Keyed
from tui.state import Snapshot

if TYPE_CHECKING:
    from tui.app import TqApp


# Columns from which there is room for explanations beside things.
WIDE = 110


class TqScreen(Keyed, Screen[None]):
    """A full screen that draws snapshots."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (34, "-tall")]  # noqa: RUF012

    @property
    def tq(self) -> TqApp:
        """The app, typed."""
        return cast("TqApp", self.app)

    def redraw(self) -> None:
        """Draw the app's snapshot, unless this screen is not complete yet or is being taken down."""
        if self.is_mounted and self.tq.is_running:
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
