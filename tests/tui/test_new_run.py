"""The forms: every key, validation as it is typed, sections, what they start."""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from textual.events import Key
from textual.widgets import Button, Input, Static

from tq import queue, runs
from tui import jobs
from tui.app import TqApp
from tui.choice import Choice
from tui.fold import Fold
from tui.job_screen import JobScreen
from tui.new_run import NewRunScreen
from tui.runs_screen import RunsScreen

Build = Callable[..., TqApp]
Said = Callable[[TqApp], str]
Settle = Callable[..., Awaitable[None]]
TextOf = Callable[[TqApp, str], str]
WORKER = [sys.executable, str(Path(__file__).with_name("worker.py"))]


def wrong(app: TqApp, name: str) -> str:
    """The sentence below a field; "" while there is none in sight."""
    row = app.screen.query_one(f"#row-{name}")
    return str(row.query_one(".wrong", Static).content) if row.has_class("bad") else ""


def fold(app: TqApp, section: str) -> Fold:
    return next(one for one in app.screen.query(Fold) if one.section == section)


async def test_a_form_is_judged_as_it_is_typed(dashboard: Build, text_of: TextOf, said: Said) -> None:
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("n")
        assert text_of(app, "#command") == "$ tq train"
        app.screen.query_one("#field-scheme", Input).value = "w3a2"
        app.screen.query_one("#field-epochs", Input).value = "three [x]"
        await pilot.pause()
        assert "weight bits must be one of 1, 2, 4, 8, 16, got 3" in wrong(app, "scheme")
        assert wrong(app, "epochs") == "epochs must be a whole number, got 'three [x]'"
        assert wrong(app, "lr") == ""
        assert text_of(app, "#error") == "✗ 2 fields are not right yet"
        assert all(button.disabled for button in app.screen.query(Button))
        await pilot.press("ctrl+s", "ctrl+l", "ctrl+y")
        assert said(app).count("the form is not right yet") == 3
        app.screen.query_one("#field-scheme", Input).value = "w2a4"
        app.screen.query_one("#field-epochs", Input).value = "3"
        await pilot.pause()
        assert "ready" in text_of(app, "#error")
        assert text_of(app, "#command") == "$ tq train --scheme w2a4 --epochs 3"
        await pilot.press("escape")
        assert not isinstance(app.screen, NewRunScreen)


async def test_arrows_walk_and_turn_and_the_field_is_explained(dashboard: Build, text_of: TextOf) -> None:
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("n")
        assert text_of(app, "#help").startswith("model: cnn, lenet")
        await pilot.press(*["down"] * 5)
        assert text_of(app, "#help").startswith("lr: peak learning rate"), "a choice does not swallow the arrow"
        await pilot.press("up", "right")
        assert text_of(app, "#command").endswith("--optimizer adam")
        await pilot.press("up", "up", "down", "end", *["backspace"] * 4, *"w1a4", "enter")
        assert "--scheme w1a4" in text_of(app, "#command")
        assert app.focused is app.screen.query_one("#field-optimizer"), "enter goes on"


async def test_sections_unfold_by_key_and_mouse_and_count_what_was_changed(dashboard: Build, text_of: TextOf) -> None:
    async with (app := dashboard()).run_test(size=(80, 40)) as pilot:
        await pilot.press("n", *["down"] * 12)
        heading = app.focused
        assert isinstance(heading, Fold)
        assert heading.section == "learning rate" or heading.section == "optimizer"
        heading = fold(app, "learning rate")
        heading.focus()
        await pilot.pause()
        assert not app.screen.query("#field-momentum")
        await pilot.press("enter")
        await pilot.pause()
        app.screen.query_one("#field-momentum", Input).value = "0.8"
        await pilot.pause()
        assert "--momentum 0.8" in text_of(app, "#command")
        assert str(heading.render()).startswith("▾ learning rate        1 changed")
        await pilot.press("left")
        await pilot.pause()
        assert not app.screen.query("#field-momentum")
        assert "--momentum 0.8" in text_of(app, "#command"), "folded away is not taken back"
        await pilot.press("right")
        await pilot.pause()
        assert app.screen.query_one("#field-momentum", Input).value == "0.8"
        await pilot.click(heading)
        await pilot.pause()
        assert not app.screen.query("#field-momentum")


@pytest.mark.parametrize("presses", [2, 3, 4, 5])
async def test_a_heading_that_is_turned_fast_ends_as_it_was_turned_last(dashboard: Build, presses: int) -> None:
    async with (app := dashboard()).run_test(size=(80, 40)) as pilot:
        await pilot.press("n")
        heading = fold(app, "learning rate")
        heading.focus()
        for _ in range(presses):
            app.post_message(Key("space", " "))
        await pilot.pause(0.3)
        assert heading.open == (presses % 2 == 1)
        assert len(app.screen.query("#field-momentum")) == presses % 2


async def test_a_section_with_a_change_opens_unfolded(dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=(80, 40)) as pilot:
        app.open_form({"model": "cnn", "warmup": 2.0, "gone": 3})
        await pilot.pause()
        assert fold(app, "learning rate").open
        assert app.screen.query_one("#field-warmup", Input).value == "2.0"
        assert not fold(app, "optimizer").open


async def test_the_chosen_word_is_in_sight(dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("n", *["down"] * 4, "left")
        choice = app.screen.query_one("#field-optimizer", Choice)
        assert str(choice.render()).endswith(f"[{choice.value}]")
        assert len(str(choice.render())) <= choice.size.width
        await pilot.press("right")
        assert choice.value == "sgd", "around the end"
        await pilot.click(choice, offset=(9, 0))
        assert choice.value == "adam"


async def test_the_command_is_chosen_and_each_form_keeps_what_was_typed(
    dashboard: Build, demo: list[Path], text_of: TextOf, said: Said
) -> None:
    async with (app := dashboard()).run_test(size=(80, 30)) as pilot:
        await app.polled()
        await pilot.press("n", "end", "2", "up", "right")
        await pilot.pause()
        assert wrong(app, "file") == "a file is needed: a model file, or a run such as last"
        app.screen.query_one("#field-file", Input).value = demo[4].name
        await pilot.pause()
        assert wrong(app, "file") == f"{demo[4].name} has no file yet (train)"
        for text, sentence in (
            ("zebra", "there is no file or run 'zebra'"),
            ("x.pt", "x.pt does not exist"),
            ("aa0", "fits 6"),
        ):
            app.screen.query_one("#field-file", Input).value = text
            await pilot.pause()
            assert sentence in wrong(app, "file")
        app.screen.query_one("#field-file", Input).value = "aa01"
        await pilot.pause()
        assert text_of(app, "#command") == "$ tq quantize aa01"
        await pilot.press("ctrl+l")
        assert "only trainings wait in the queue" in said(app)
        await pilot.press("right")
        await pilot.pause()
        assert app.screen.query_one("#field-batch", Input).value == "1 256"
        await pilot.press("right")
        await pilot.pause()
        assert app.screen.query_one("#field-model", Input).value == "resnet202"
        await pilot.press("left", "left")
        await pilot.pause()
        assert app.screen.query_one("#field-file", Input).value == "aa01"


async def test_the_command_line_is_copied(dashboard: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
        app.open_form({"data": "/a b"})
        await pilot.pause()
        await pilot.press("ctrl+y")
        await pilot.click("#copy")
        assert copied == ["tq train --data '/a b'"] * 2


async def test_a_training_is_queued_and_the_form_stays(
    dashboard: Build, root: Path, settle: Settle, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "start_runner", lambda *_, **__: None)
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("n", "ctrl+l")
        await settle(app, lambda: "1 in all" in said(app))
        app.screen.query_one("#field-scheme", Input).value = "w4a4"
        await pilot.click("#enqueue")
        await settle(app, lambda: "2 in all" in said(app))
        assert isinstance(app.screen, NewRunScreen)
    entries = queue.entries(root)
    assert [e.name for e in entries] == ["resnet20-w1a2", "resnet20-w4a4"]
    assert entries[1].argv == ("train", "--scheme", "w4a4")


async def test_a_trainer_that_does_not_start_is_told_in_the_form(
    dashboard: Build, text_of: TextOf, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = [sys.executable, "-c", "import sys; sys.exit('tq: no [such] file')"]
    monkeypatch.setattr(runs, "launch", partial(runs.launch, command=refuse))
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("n", "ctrl+s")
        await settle(app, lambda: "did not start: tq: no [such] file" in text_of(app, "#error"))
        assert isinstance(app.screen, NewRunScreen)


@pytest.mark.parametrize("fails", [True, False])
async def test_a_form_that_was_left_while_the_trainer_starts_tells_how_that_ended(
    fails: bool, dashboard: Build, demo: list[Path], said: Said, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def launch(*_: object, **__: object) -> Path:
        assert go.wait(60)
        if fails:
            raise ValueError("the trainer did not start: no [such] file")
        return demo[0]

    monkeypatch.setattr(runs, "launch", launch)
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("n", "ctrl+s", "escape")
        assert not isinstance(app.screen, NewRunScreen)
        go.set()
        told = "did not start: no [such] file" if fails else f"{demo[0].name} has started"
        await settle(app, lambda: told in said(app))
        assert isinstance(app.screen, RunsScreen), "who has gone on to something else is left there"


async def test_a_bench_warns_of_runs_at_work_and_is_started(
    dashboard: Build, demo: list[Path], text_of: TextOf, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "start", partial(jobs.start, command=WORKER))
    async with (app := dashboard(demo[0])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("b")
        assert text_of(app, "#error") == "▲ 2 runs are at work: the times will suffer from it"
        await pilot.press("enter")
        await settle(app, lambda: isinstance(app.screen, JobScreen))
        job = app.screen.job  # type: ignore[attr-defined]
        assert (job.argv, job.state) == (("bench", demo[0].name), "working")
        jobs.stop(job)
        await settle(app, lambda: "stopped" in text_of(app, "#job-state"))
