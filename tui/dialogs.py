"""Modal dialogs: a question with two answers, and the help."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from tui.state import ICONS

KEYS = (
    ("↑ ↓", "choose a run"),
    ("enter", "open it"),
    ("n", "new run: a form; ctrl+s there starts it"),
    ("c", "new run with the settings of this one"),
    ("s", "stop after a checkpoint; once more 10 s later: kill"),
    ("r", "resume a run that stopped, failed or crashed"),
    ("← →", "in a run: log, alerts, settings, layers"),
    ("esc", "back"),
    ("q", "quit; runs go on without the dashboard"),
)
SIGNS = {
    "live": "running, with its phase",
    "starting": "started, not yet heard of",
    "done": "finished",
    "stopped": "stopped on request",
    "failed": "ended with an error",
    "crashed": "died without a word",
    "remote": "on another host, silent for so long",
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
    """Keys and signs. Any of esc, enter, q and ? closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,question_mark", "app.pop_screen", show=False, priority=True)
    ]

    def compose(self) -> ComposeResult:
        """Two short tables."""
        keys = [Content.assemble((f"{key:>6}", "bold $primary"), "  ", text) for key, text in KEYS]
        signs = [
            Content.assemble((f"{ICONS[name][0]:>6}", f"bold ${ICONS[name][1]}"), f"  {name:<9} ", (text, "$muted"))
            for name, text in SIGNS.items()
        ]
        with Vertical(classes="dialog help"):
            yield Static("Keys", classes="dialog-title")
            yield Static(Content("\n").join(keys))
            yield Static("Signs", classes="dialog-title", id="signs")
            yield Static(Content("\n").join(signs))
