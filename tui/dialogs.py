"""Modal dialogs: a question with two answers, and the help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from tui.keys import Key, Keyed
from tui.state import ICONS

SIGNS = {
    "live": "at work: its phase",
    "starting": "not heard of yet",
    "done": "finished",
    "stopped": "stopped on request",
    "failed": "ended in an error",
    "crashed": "died silently",
    "remote": "on another host",
}


class Confirm(ModalScreen[bool]):
    """A question; enter or y answers yes, esc or n no. `q` is what the key q answers."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", show=False),
        Binding("n,escape", "answer(False)", show=False),
        Binding("q,ctrl+c", "quit_key", show=False, priority=True),
        Binding("left,right,up,down", "app.focus_next", show=False),
    ]

    def __init__(
        self, title: str, text: str, *, yes: str, no: str = "Cancel", danger: bool = False, q: bool = False
    ) -> None:
        super().__init__()
        self._title, self._text, self._yes, self._no, self._danger, self._q = title, text, yes, no, danger, q

    def compose(self) -> ComposeResult:
        """Title, text, two buttons; yes has the focus."""
        with Vertical(classes="dialog"):
            yield Static(self._title, classes="dialog-title", markup=False)
            yield Static(self._text, classes="dialog-text", markup=False)
            with Horizontal(classes="dialog-buttons"):
                yield Button(self._yes, variant="error" if self._danger else "primary", id="yes", compact=True)
                yield Button(self._no, id="no", compact=True)
            yield Static("enter or y: yes   esc or n: no", classes="dim")

    def on_mount(self) -> None:
        """Focus the answer that was asked for."""
        self.query_one("#yes").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer by the button."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        """Answer by key."""
        self.dismiss(yes)

    def action_quit_key(self) -> None:
        """The key that asked to quit confirms it; over any other question it cancels."""
        self.dismiss(self._q)


class Help(ModalScreen[None]):
    """The keys of the screen below, from the one table, and the signs. Any of esc, enter, q and ? closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,question_mark", "app.pop_screen", show=False, priority=True),
        Binding("down", "scroll(1)", show=False, priority=True),
        Binding("up", "scroll(-1)", show=False, priority=True),
    ]

    def __init__(self, rows: Sequence[tuple[Keyed, Key]]) -> None:
        super().__init__()
        self._rows = tuple(rows)

    def compose(self) -> ComposeResult:
        """Two columns: what this screen can do; what works everywhere, and the signs."""
        # The first owner is the screen; the app's keys work everywhere.
        screen = [(o, k) for o, k in self._rows if o is self._rows[0][0] and not isinstance(o, App)]
        with VerticalScroll(classes="dialog help"), Horizontal():
            yield Static(_columns(screen), classes="help-keys")
            yield Static(
                Content("\n\n").join(
                    [_columns([row for row in self._rows if row not in screen], "Everywhere"), _signs()]
                ),
                classes="help-signs",
            )

    def action_scroll(self, by: int) -> None:
        """Where it does not fit."""
        self.query_one(".help").scroll_relative(y=by, animate=False)


def _columns(rows: Sequence[tuple[Keyed, Key]], title: str = "") -> Content:
    """The keys under the headings of their groups; one that does not work now is dim."""
    blocks = []
    groups = [title] if title else dict.fromkeys(key.group for _, key in rows)
    for group in groups:
        lines = [Content.styled(group, "bold $primary")]
        for owner, key in rows:
            if title or key.group == group:
                dim = " $muted" if owner.why_not(key) else ""
                lines.append(Content.assemble((f"{key.name:>6}", f"bold{dim or ' $accent'}"), f"  {key.help}"))
                if dim:
                    lines[-1] = lines[-1].stylize("$muted")
        blocks.append(Content("\n").join(lines))
    return Content("\n\n").join(blocks)


def _signs() -> Content:
    lines = [
        Content.assemble((f"{ICONS[name][0]:>6}", f"bold ${ICONS[name][1]}"), f"  {name:<9}", (text, "$muted"))
        for name, text in SIGNS.items()
    ]
    return Content("\n").join([Content.styled("Signs", "bold $primary"), *lines])
