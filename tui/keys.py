"""What a key does, said once: the bindings, the footer, the help (?) and the command palette all read it from here.

A screen declares its keys and gets its bindings from them:

    class RunScreen(TqScreen):
        KEYS = (
            Key("escape,backspace", "back", "Back", "back to the list"),
            Key("s", "stop", "Stop", "stop after a checkpoint", group="Act", acts=True, why_not=_why_not_stop),
        )

`action_stop` is then called on the screen by the key, by a click in the footer and by the palette. A key that cannot be
used now is dim in the footer and says why when it is pressed: `why_not(screen)` gives the sentence, "" while it works.
The same letter means the same on every screen: n new, d duplicate, s stop, r resume, x picture, t theme, q quit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding, BindingType

if TYPE_CHECKING:
    from tui.app import TqApp

# How keys are written for people; any other is written as Textual names it.
WRITTEN = {
    "escape": "esc",
    "question_mark": "?",
    "slash": "/",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "plus": "+",
    "minus": "-",
    "equals_sign": "=",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "full_stop": ".",
    "comma": ",",
}


def _always(screen: Any) -> str:
    return ""


@dataclass(frozen=True)
class Key:
    """One row of the table."""

    keys: str
    """Textual's names, separated by commas; the first is the one that is shown"""
    action: str
    """Textual's action on the screen (or the app): "stop", "panel(1)", "app.focus_next" """
    label: str
    """one word, for the footer; "" leaves it out there"""
    help: str
    """a few words, for the help and the palette"""
    group: str = "Go"
    """heading in the help"""
    shown: str = ""
    """how the key is written, where that is not its name"""
    acts: bool = False
    """it starts, stops or changes something: not with --readonly"""
    why_not: Callable[[Any], str] = _always
    """of the screen: why it cannot be used now; "" if it can"""
    priority: bool = False
    """it comes before the widget that has the focus"""

    @property
    def name(self) -> str:
        """As it is written for people: esc, ^s, ←."""
        first = self.keys.split(",")[0].strip()
        return self.shown or WRITTEN.get(first) or first.replace("ctrl+", "^")


def bindings(keys: Iterable[Key]) -> list[BindingType]:
    """Textual's bindings for `keys`; all lead to `press`, which asks first whether the key can be used."""
    return [
        Binding(key.keys, f"press({key.keys!r})", key.label, show=bool(key.label), priority=key.priority)
        for key in keys
    ]


class Keyed:
    """Mixin of the app and the screens, before Textual's class: bindings from `KEYS`, and reasons."""

    KEYS: ClassVar[tuple[Key, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "KEYS" in cls.__dict__:
            cls.BINDINGS = bindings(cls.KEYS)  # type: ignore[attr-defined]
        super().__init_subclass__(**kwargs)

    def why_not(self, key: Key) -> str:
        """Why `key` cannot be used now; "" if it can."""
        app: TqApp = self.app  # type: ignore[attr-defined]
        if key.acts and app.readonly:
            return app.readonly
        return key.why_not(self)

    async def press(self, key: Key) -> None:
        """Do what `key` does, or say why not."""
        app: TqApp = self.app  # type: ignore[attr-defined]
        if reason := self.why_not(key):
            app.notify(f"{key.name}: {reason}", severity="warning", markup=False)
        else:
            await app.run_action(key.action, self)  # type: ignore[arg-type]

    async def action_press(self, keys: str) -> None:
        """What a binding calls."""
        await self.press(next(key for key in self.KEYS if key.keys == keys))


def rows(screen: object, app: TqApp) -> list[tuple[Keyed, Key]]:
    """The table: the keys of a screen, then the app's own, each with whom it belongs to."""
    owners = [owner for owner in (screen, app) if isinstance(owner, Keyed)]
    return [(owner, key) for owner in owners for key in owner.KEYS]
