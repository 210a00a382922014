"""Pictures of every screen at the smallest and at a comfortable size, from fixed runs and a stopped clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from tui.app import TqApp

SMALL, LARGE = (80, 24), (120, 36)
SnapCompare = Callable[..., bool]
Build = Callable[..., TqApp]
Size = tuple[int, int]
both_sizes = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "120x36"])


def after(*keys: str) -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Wait for the disk to be read, press the keys, and for it to be read once more."""

    async def act(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, TqApp)
        await app.polled()
        await pilot.press(*keys)
        await app.polled()
        for box in app.screen.query(Input):
            box.cursor_blink = False
        await pilot.pause()

    return act


@both_sizes
def test_the_list(snap_compare: SnapCompare, demo: list[Path], dashboard: Build, size: Size) -> None:
    assert snap_compare(dashboard(), terminal_size=size, run_before=after("down"))


def test_an_empty_list(snap_compare: SnapCompare, dashboard: Build) -> None:
    assert snap_compare(dashboard(), terminal_size=SMALL, run_before=after())


@pytest.mark.parametrize("keys", [["down", "s"], ["q"], ["question_mark"]], ids=["stop", "quit", "help"])
def test_a_dialog(snap_compare: SnapCompare, demo: list[Path], dashboard: Build, keys: list[str]) -> None:
    assert snap_compare(dashboard(), terminal_size=SMALL, run_before=after(*keys))
