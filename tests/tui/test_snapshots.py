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
HUGE, NARROW = (200, 50), (60, 20)
all_sizes = pytest.mark.parametrize("size", [NARROW, SMALL, LARGE, HUGE], ids=["60x20", "80x24", "120x36", "200x50"])
both_sizes = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "120x36"])


def after(*keys: str) -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Wait for the disk to be read, press the keys, and for it to be read once more."""

    async def act(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, TqApp)
        await app.polled()
        await pilot.press(*keys)
        for _ in range(2):  # the picture is mounted after a frame, and drawn after its layout
            await app.polled()
            await pilot.pause()
        for box in app.screen.query(Input):
            box.cursor_blink = False
        await pilot.pause()

    return act


@all_sizes
def test_the_list(snap_compare: SnapCompare, demo: list[Path], dashboard: Build, size: Size) -> None:
    assert snap_compare(dashboard(), terminal_size=size, run_before=after("down"))


def test_an_empty_list(snap_compare: SnapCompare, dashboard: Build) -> None:
    assert snap_compare(dashboard(), terminal_size=SMALL, run_before=after())


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "120x36"])
def test_the_list_with_a_filter_an_order_and_marks(
    snap_compare: SnapCompare, demo: list[Path], dashboard: Build, size: Size
) -> None:
    keys = ("slash", *"w<=2", "enter", "o", "down", "space", "space")
    assert snap_compare(dashboard(), terminal_size=size, run_before=after(*keys))


def test_a_filter_that_is_wrong(snap_compare: SnapCompare, demo: list[Path], dashboard: Build) -> None:
    assert snap_compare(dashboard(), terminal_size=SMALL, run_before=after("slash", *"acc>x"))


@pytest.mark.parametrize("size", [NARROW, SMALL, LARGE, HUGE], ids=["60x20", "80x24", "120x36", "200x50"])
def test_a_comparison(snap_compare: SnapCompare, demo: list[Path], dashboard: Build, size: Size) -> None:
    keys = ("end", "space", "up", "space", "up", "up", "space", "c")
    assert snap_compare(dashboard(), terminal_size=size, run_before=after(*keys))


def test_too_small(snap_compare: SnapCompare, demo: list[Path], dashboard: Build) -> None:
    assert snap_compare(dashboard(), terminal_size=(58, 14), run_before=after())


@pytest.mark.parametrize(
    "options", [{"ascii": True}, {"readonly": "no", "note": "READ-ONLY"}], ids=["ascii", "readonly"]
)
def test_a_way_to_start(snap_compare: SnapCompare, demo: list[Path], dashboard: Build, options: dict[str, Any]) -> None:
    assert snap_compare(dashboard(**options), terminal_size=LARGE, run_before=after())


@pytest.mark.parametrize("keys", [["down", "s"], ["q"], ["question_mark"]], ids=["stop", "quit", "help"])
def test_a_dialog(snap_compare: SnapCompare, demo: list[Path], dashboard: Build, keys: list[str]) -> None:
    assert snap_compare(dashboard(), terminal_size=SMALL, run_before=after(*keys))
