"""The last line of every screen: its keys, dim where they cannot be used now, and how the dashboard was started.

Textual's own footer is a widget a key; this is one line, which a list that is redrawn twice a second can afford. Keys
that do not fit are left out from the end (the app's help and quit stay): ? shows all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.app import RenderResult
from textual.content import Content
from textual.events import Click
from textual.widget import Widget

from tui.keys import Key, Keyed, rows

if TYPE_CHECKING:
    from tui.app import TqApp

ALWAYS = ("question_mark", "q")


class Footer(Widget, can_focus=False):
    """enter Open  / Filter  s Stop  ...  ? Help  q Quit"""

    DEFAULT_CSS = "Footer { height: 1; dock: bottom; background: $panel; text-wrap: nowrap; }"

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[object, ...] = ()
        self._places: list[tuple[int, int, Keyed, Key]] = []

    def check(self) -> None:
        """Draw again if a key's state has changed."""
        now = tuple((key, bool(owner.why_not(key))) for owner, key in self._keys())
        if now != self._shown:
            self._shown = now
            self.refresh()

    def render(self) -> RenderResult:
        """The keys that fit, then the note."""
        note = self._note()
        room = self.size.width - note.cell_length
        chosen, gap = self._fitting(room)
        self._places, at, line = [], 1, Content(" ")
        for owner, key in chosen:
            word = self._word(owner, key)
            self._places.append((at, at + word.cell_length, owner, key))
            line = Content.assemble(line, word, " " * gap)
            at += word.cell_length + gap
        return Content.assemble(line, " " * max(0, room - line.cell_length), note)

    async def on_click(self, event: Click) -> None:
        """Press the key under the mouse."""
        for first, end, owner, key in self._places:
            if first <= event.x < end:
                await owner.press(key)
                return

    def _keys(self) -> list[tuple[Keyed, Key]]:
        return [(owner, key) for owner, key in rows(self.screen, cast("TqApp", self.app)) if key.label]

    def _fitting(self, room: int) -> tuple[list[tuple[Keyed, Key]], int]:
        keys = self._keys()
        for gap in (2, 1):
            wide = [self._word(owner, key).cell_length + gap for owner, key in keys]
            if sum(wide) + 1 <= room:
                return keys, gap
        kept = [key.keys in ALWAYS for _, key in keys]
        left = room - 1 - sum(w for w, keep in zip(wide, kept, strict=True) if keep)
        for i, width in enumerate(wide):
            if not kept[i] and width <= left:
                kept[i] = True
                left -= width
        return [one for one, keep in zip(keys, kept, strict=True) if keep], 1

    def _word(self, owner: Keyed, key: Key) -> Content:
        if owner.why_not(key):
            return Content.styled(f"{key.name} {key.label}", "$muted 60%")
        return Content.assemble((key.name, "bold $primary"), " ", (key.label, "$foreground 80%"))

    def _note(self) -> Content:
        note = getattr(self.app, "note", "")
        return Content.styled(f" {note} ", "bold $background on $warning") if note else Content("")
