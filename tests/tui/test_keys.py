"""One table of keys: bindings, footer, help and palette agree; a disabled key says why; the ways to start."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.command import CommandPalette, DiscoveryHit, Hit

from tq.cli import main as tq
from tui import settings
from tui.app import TqApp
from tui.compare_screen import CompareScreen
from tui.demo import READ_ONLY, Replay
from tui.dialogs import Help
from tui.footer import Footer
from tui.keys import rows
from tui.new_run import NewRunScreen
from tui.palette import KeyCommands
from tui.runs_screen import RunsScreen
from tui.settings import Settings
from tui.state import Snapshot

Build = Callable[..., TqApp]
LARGE = (120, 36)
NOW = 1_800_000_000.0


def text_of(app: TqApp) -> str:
    """All that is on the screen."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def notices(app: TqApp) -> str:
    return " | ".join(note.message for note in app._notifications)


@pytest.mark.parametrize("kind", [TqApp, RunsScreen, CompareScreen])
def test_every_key_has_one_meaning_and_an_action(kind: type) -> None:
    names = [name for key in kind.KEYS for name in key.keys.split(",")]
    assert len(names) == len(set(names))
    for key in kind.KEYS:
        assert key.help
        assert hasattr(kind, f"action_{key.action.partition('(')[0]}")
    bound = {binding.key for bindings in kind._merged_bindings.key_to_bindings.values() for binding in bindings}
    assert set(names) <= bound


async def test_help_lists_every_key_of_the_screen_and_of_the_app(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=(100, 50)) as pilot:
        await app.polled()
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        shown = text_of(app)
        for _, key in rows(app.screen_stack[-2], app):
            assert key.help in shown
            assert key.name in shown
        await pilot.press("down", "up", "question_mark")
        assert isinstance(app.screen, RunsScreen)


async def test_the_palette_lists_every_key_and_says_why_not(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=LARGE) as pilot:
        await app.polled()
        found = [hit async for hit in KeyCommands(app.screen).discover()]
        assert len(found) == len(rows(app.screen, app))
        assert all(isinstance(hit, DiscoveryHit) for hit in found)
        helps = {str(hit.display): hit.help for hit in found}
        assert helps["Resume: resume from its checkpoint"] == "r   not now: resnet56-w1a4 is still running"
        hits = [hit async for hit in KeyCommands(app.screen).search("filter")]
        assert all(isinstance(hit, Hit) for hit in hits)
        await pilot.press("ctrl+p")
        assert isinstance(app.screen, CommandPalette)
        await pilot.press("ctrl+p", "escape")
        assert isinstance(app.screen, RunsScreen)


async def test_a_command_of_the_palette_does_what_the_key_does(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=LARGE) as pilot:
        await app.polled()
        hits = [hit async for hit in KeyCommands(app.screen).search("start a run from a form")]
        await max(hits, key=lambda hit: hit.score).command()
        await pilot.pause()
        assert isinstance(app.screen, NewRunScreen)


@pytest.mark.parametrize("key", ["n", "s", "r", "d"])
async def test_readonly_disables_what_acts_and_says_why(demo: list[Path], dashboard: Build, key: str) -> None:
    async with (app := dashboard(readonly="opened with --readonly", note="READ-ONLY")).run_test(size=LARGE) as pilot:
        await app.polled()
        await pilot.press(key)
        assert isinstance(app.screen, RunsScreen)
        assert notices(app) == f"{key}: opened with --readonly"
        assert text_of(app).rstrip().endswith("READ-ONLY")
        run = app.snapshot.runs[0]
        for act in (app.open_form, lambda: app.trainers.stop(run), lambda: app.trainers.resume(run)):
            act()
            await pilot.pause()
            assert isinstance(app.screen, RunsScreen), "no other way leads there either"


async def test_the_footer_keeps_help_and_quit_where_not_all_fits(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=(60, 20)) as pilot:
        await app.polled()
        line = text_of(app).splitlines()[-1]
        assert line.split()[:2] == ["enter", "Open"]
        assert "? Help" in line
        assert "q Quit" in line
        place = next(place for place in app.screen.query_one(Footer)._places if place[3].label == "Help")
        await pilot.click(Footer, offset=(place[0], 0))
        assert isinstance(app.screen, Help)


async def test_t_chooses_a_theme_which_is_remembered(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=LARGE) as pilot:
        await app.polled()
        await pilot.press("t")
        assert isinstance(app.screen, CommandPalette)
        await pilot.press("escape")
        app.theme = "nord"
        await pilot.pause()
    assert json.loads(settings.path().read_text()) == {"theme": "nord"}
    async with (again := dashboard()).run_test():
        assert again.theme == "nord"


async def test_settings_that_cannot_be_read_are_told(dashboard: Build) -> None:
    settings.path().parent.mkdir(parents=True)
    settings.path().write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        settings.load()
    async with (app := dashboard()).run_test():
        await app.polled()
        assert app.theme == "tq"
        assert "the defaults are used" in notices(app)
    settings.save(Settings("no-such-theme"))
    assert dashboard().theme == "tq"


async def test_settings_that_cannot_be_written_are_told(dashboard: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/no")
    async with (app := dashboard()).run_test() as pilot:
        app.theme = "nord"
        await pilot.pause()
        assert "the theme cannot be remembered" in notices(app)


async def test_x_exports_the_screen_as_svg(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[4])).run_test(size=LARGE) as pilot:
        await app.polled()
        await pilot.press("x")
        (file,) = Path.cwd().glob("tq-*.svg")
        assert "resnet32-w1a2" in file.read_text()
        assert f"saved {file}" in notices(app)
        os.chdir("/proc/self")
        await pilot.press("x")
        assert "cannot write tq-" in notices(app)


@pytest.mark.parametrize("keys", [[], ["enter"], ["question_mark"], ["space", "space", "c"], ["ctrl+p"]])
async def test_ascii_draws_with_ascii_only(demo: list[Path], dashboard: Build, keys: list[str]) -> None:
    async with (app := dashboard(ascii=True)).run_test(size=LARGE) as pilot:
        await app.polled()
        await pilot.press("down")
        for key in keys:
            await pilot.press(key)
        await app.polled()
        await pilot.pause()
        assert text_of(app).isascii()
        assert len(text_of(app).split()) > 20


async def test_no_color_draws_in_grey(demo: list[Path], dashboard: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with (app := dashboard()).run_test(size=LARGE):
        await app.polled()
        colours = {
            tuple(colour.triplet)
            for strip in app.screen._compositor.render_strips()
            for segment in strip
            if segment.style
            for colour in (segment.style.color, segment.style.bgcolor)
            if colour is not None and colour.triplet
        }
        assert len(colours) > 3
        assert all(max(rgb) == min(rgb) for rgb in colours)


def test_the_demo_replays_what_was_recorded(tmp_path: Path) -> None:
    now = [NOW]
    replay = Replay(tmp_path, clock=lambda: now[0])
    app = TqApp(tmp_path, clock=lambda: now[0])

    def look() -> Snapshot:
        app.poller.poke()
        return app.poller.poll()

    first = look()
    assert [run.status.state for run in first.runs] == ["live"] + ["done"] * (len(first.runs) - 1)
    assert len(first.runs) >= 4
    assert 0 < first.runs[0].state.progress < 1
    assert all(run.state.packed_bytes and run.state.best_acc > 50 for run in first.runs[1:])
    step = first.runs[0].state.step
    now[0] += 60
    replay.advance()
    assert look().runs[0].state.step > step
    now[0] += 3600
    replay.advance()
    last = look()
    assert last.runs[0].status.state == "done"
    assert last.runs[0].state.progress == 1
    replay.close()


def test_tq_tui_once_prints_a_frame_and_demo_says_that_it_is_one(
    demo: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("LINES", "24")
    assert tq(["tui", "--once", "--ascii", "--readonly"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert len(out.splitlines()) == 24
    assert out.rstrip().endswith("READ-ONLY")
    assert tq(["tui", "--once", "--demo"]) == 0
    out = capsys.readouterr().out
    assert "a replay of recorded runs" in out
    assert out.rstrip().endswith("REPLAY")
    assert tq(["tui", "--demo", "--once", "--run", "last"]) == 2
    assert "choose one of them" in capsys.readouterr().err


async def test_nothing_acts_on_a_replay(tmp_path: Path) -> None:
    replay = Replay(tmp_path)
    app = TqApp(tmp_path, every_s=3600, readonly=READ_ONLY, note="REPLAY", beat=replay.advance)
    async with app.run_test() as pilot:
        await app.polled()
        await pilot.press("s")
        assert "this is a replay" in notices(app)
        await pilot.press("q")
        assert app._exit, "nothing goes on, so nothing is asked"
    replay.close()
