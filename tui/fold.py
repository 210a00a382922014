"""The heading of a folded section of a form: what is in it, and how much of that was changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget


class Fold(Widget, can_focus=True):
    """▸ optimizer    hysteresis, hysteresis mode, qp, ..."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "turn", "Fold", show=False),
        Binding("right", "turn(True)", "Unfold", show=False),
        Binding("left", "turn(False)", "Fold", show=False),
    ]
    open: reactive[bool] = reactive(False, init=False)
    changed: reactive[int] = reactive(0)

    class Turned(Message):
        """It was folded or unfolded."""

        def __init__(self, fold: Fold) -> None:
            super().__init__()
            self.fold = fold

    def __init__(self, section: str, labels: Sequence[str]) -> None:
        super().__init__()
        self.section, self._labels = section, labels

    def render(self) -> RenderResult:
        """Name, how many are not at their default, and their labels while they are out of sight."""
        sign = "▾" if self.open else "▸"
        changed = f"{self.changed} changed  " if self.changed else ""
        inside = "" if self.open else ", ".join(self._labels)
        name = (f"{sign} {self.section:<20} ", "bold $secondary")
        return Content.assemble(name, (changed, "bold $accent"), (inside, "$muted"))

    def watch_open(self) -> None:
        """Tell the form."""
        self.post_message(self.Turned(self))

    def action_turn(self, open: bool | None = None) -> None:
        """Fold, unfold, or the other of both."""
        self.open = not self.open if open is None else open

    def on_click(self) -> None:
        """The same by mouse."""
        self.action_turn()
