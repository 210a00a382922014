"""The command palette: the same keys as in the footer, found by typing a part of what they do."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.markup import escape

from tui.keys import Key, Keyed, rows

if TYPE_CHECKING:
    from tui.app import TqApp


class KeyCommands(Provider):
    """Every key of the screen below the palette and of the app."""

    async def discover(self) -> Hits:
        """All of them, before anything is typed."""
        for owner, key in self._rows():
            yield DiscoveryHit(_title(key), partial(owner.press, key), help=self._help(owner, key))

    async def search(self, query: str) -> Hits:
        """Those that fit what is typed."""
        matcher = self.matcher(query)
        for owner, key in self._rows():
            if (score := matcher.match(_title(key))) > 0:
                title = matcher.highlight(_title(key))
                yield Hit(score, title, partial(owner.press, key), help=self._help(owner, key))

    def _rows(self) -> list[tuple[Keyed, Key]]:
        return rows(self.screen, cast("TqApp", self.app))

    def _help(self, owner: Keyed, key: Key) -> str:
        reason = owner.why_not(key)
        # the palette takes help for markup, and a reason may have a run's name in it
        return escape(f"{key.name}   not now: {reason}" if reason else key.name)


def _title(key: Key) -> str:
    return f"{key.label}: {key.help}" if key.label else key.help
