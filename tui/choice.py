"""A one-line choice: the words side by side, the chosen one in brackets and in sight, left and right move it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget


class Choice(Widget, can_focus=True):
    """One of a few words. Much lighter than a Select, and nothing is hidden behind a menu."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Previous", show=False),
        Binding("right,space", "move(1)", "Next", show=False),
    ]
    value: reactive[str] = reactive("", init=False)

    class Changed(Message):
        """Another word was chosen."""

        def __init__(self, choice: Choice, value: str) -> None:
            super().__init__()
            self.choice, self.value = choice, value

    def __init__(self, words: Sequence[str], value: str, *, id: str) -> None:
        super().__init__(id=id)
        self._words = tuple(words)
        self.set_reactive(Choice.value, value if value in words else words[0])

    def render(self) -> RenderResult:
        """[sgd]  adamw   hysteresis-sgd"""
        return Content(" ").join(
            Content.styled(f"[{word}]", "bold $primary")
            if word == self.value
            else Content.styled(f" {word} ", "$muted")
            for word in self._words[self._first() :]
        )

    def _first(self) -> int:
        """The first word that is drawn: words drop out on the left until the chosen one fits."""
        first, chosen = 0, self._words.index(self.value)
        while first < chosen and sum(len(word) + 3 for word in self._words[first : chosen + 1]) > self.size.width + 1:
            first += 1
        return first

    def watch_value(self, value: str) -> None:
        """Tell the form."""
        self.post_message(self.Changed(self, value))

    def action_move(self, by: int) -> None:
        """To the next or the previous word, around the ends."""
        self.value = self._words[(self._words.index(self.value) + by) % len(self._words)]

    def on_click(self, event: Click) -> None:
        """Choose the word under the mouse."""
        end = 0
        for word in self._words[self._first() :]:
            end += len(word) + 3
            if event.x < end:
                self.value = word
                return
