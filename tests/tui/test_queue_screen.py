"""The queue's screen and a result's: every key, and what is shown while it works, when it failed, when it is done."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from rich.text import Text
from textual.widgets import DataTable

from tq import queue, queue_entry
from tui import jobs
from tui.app import TqApp
from tui.dialogs import Confirm
from tui.job_screen import JobScreen
from tui.new_run import NewRunScreen
from tui.queue_screen import QueueScreen
from tui.queue_table import QueueTable
from tui.run_screen import RunScreen

Build = Callable[..., TqApp]
MakeRun = Callable[..., Path]
Said = Callable[[TqApp], str]
Settle = Callable[..., Awaitable[None]]
TextOf = Callable[[TqApp, str], str]
WORKER = [sys.executable, str(Path(__file__).with_name("worker.py"))]


@pytest.fixture(autouse=True)
def _stand_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Jobs are the stand-in's, and no runner works. None of the processes outlives the test."""
    monkeypatch.setattr(jobs, "start", partial(jobs.start, command=WORKER))
    yield
    for job in jobs.all_jobs(root.absolute()):
        if job.state == "working":
            jobs.stop(job)


def names(app: TqApp, table: str) -> list[str]:
    found = app.screen.query_one(table, DataTable)
    return [str(found.get_row_at(i)[2]) for i in range(found.row_count)]


def add(root: Path, *labels: str, device: str = "cpu") -> list[queue.Entry]:
    return [queue.add(root, ["train", "--model", name], name=name, device=device) for name in labels]


async def test_entries_are_moved_taken_out_and_paused(
    dashboard: Build, root: Path, settle: Settle, said: Said, text_of: TextOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(root, "a", "b", "c")
    asked: list[str] = []
    monkeypatch.setattr(queue, "start_runner", lambda root, device: asked.append(device))
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("u")
        await settle(app, lambda: names(app, "#entries") == ["a", "b", "c"])
        assert text_of(app, "#lanes").startswith("■ cpu paused, 3 wait; p goes on")
        await pilot.press("J")
        await settle(app, lambda: names(app, "#entries") == ["b", "a", "c"])
        await pilot.press("J")
        await settle(app, lambda: names(app, "#entries") == ["b", "c", "a"])
        await pilot.press("K")
        await settle(app, lambda: names(app, "#entries") == ["b", "a", "c"])
        assert app.screen.query_one("#entries", DataTable).cursor_row == 1, "the cursor stays on its entry"
        await pilot.press("c")
        await settle(app, lambda: names(app, "#entries") == ["b", "c"])
        await pilot.press("enter")
        assert "has not begun; there is no run to open" in said(app)
        await pilot.press("p")
        await settle(app, lambda: asked == ["cpu"])
        await pilot.press("n")
        assert isinstance(app.screen, NewRunScreen)
        await pilot.press("escape", "escape")
        assert not isinstance(app.screen, QueueScreen)


async def test_columns_are_as_wide_as_their_cells_from_the_first_frame_on(
    dashboard: Build, root: Path, settle: Settle
) -> None:
    name = "resnet20-w1a2-long"
    queue.add(root, ["train", "--model", "resnet20", "--data", "x" * 300], name=name, device="cpu")
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("u")
        table = app.screen.query_one("#entries", QueueTable)
        await settle(app, lambda: names(app, "#entries") == [name])
        for width in (80, 120):
            await pilot.resize_terminal(width, 24)
            await settle(app, lambda width=width: table.virtual_size.width == width - 1)
            assert [c.width for c in table.ordered_columns][:4] == [1, len("○ waits"), len(name), len("Device")]
        # Textual's own measuring waits for an idle moment; ours is done when the rows are there.
        table.fill({"a": [Text(t) for t in ("1", "o waits", "a longer name than before", "cuda:0", "tq")]}, 80)
        assert [c.get_render_width(table) - 2 for c in table.ordered_columns] == [1, 7, 25, 6, 30]


async def test_an_entry_at_work_cannot_be_moved_or_taken_out_but_opened(
    dashboard: Build, root: Path, make_run: MakeRun, settle: Settle, said: Said, text_of: TextOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = make_run("beef", end=None, epochs_done=1)
    entry = add(root, "at-work")[0]
    at_work = dataclasses.replace(entry, run=path.name, started=1.0)
    queue_entry.save(root, at_work)
    runner = queue.Runner("cpu", True, 1, at_work, 0)
    stopped: list[str] = []
    monkeypatch.setattr(queue, "runner_status", lambda root, device: runner)
    monkeypatch.setattr(queue, "stop_runner", lambda root, device: stopped.append(device))
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("u")
        await settle(app, lambda: names(app, "#entries") == ["at-work"])
        assert text_of(app, "#lanes").startswith("● cpu at work on at-work")
        await pilot.press("J", "K", "c")
        assert said(app).count("does not wait any more (live)") == 2
        assert "is at work; enter opens its run" in said(app)
        await pilot.press("p")
        await settle(app, lambda: stopped == ["cpu"])
        await pilot.press("enter")
        assert isinstance(app.screen, RunScreen)
        assert app.screen.path == path.absolute()


async def test_an_empty_queue_says_how_to_fill_it(dashboard: Build, text_of: TextOf, said: Said) -> None:
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("u", "enter", "J", "c", "p")
        assert "^l in a form queues a training" in text_of(app, "#no-entries")
        for reason in ("nothing to open", "choose an entry of the queue first", "nothing to take out", "no queue yet"):
            assert reason in said(app)


async def test_a_queue_that_cannot_be_read_says_so_once_and_keeps_what_was_read(
    dashboard: Build, root: Path, settle: Settle, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(root, "first")
    tries: list[Path] = []

    def broken(path: Path, *_: str) -> list[queue.Entry]:
        tries.append(path)
        raise OSError(5, "Input/output error")

    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await pilot.press("u")
        await settle(app, lambda: names(app, "#entries") == ["first"])
        monkeypatch.setattr(queue, "entries", broken)
        await settle(app, lambda: len(tries) > 2)
        assert said(app).count("cannot read the queue: [Errno 5] Input/output error") == 1
        assert names(app, "#entries") == ["first"]


async def test_a_result_is_shown_when_it_comes_and_kept_when_it_is_left(
    dashboard: Build, demo: list[Path], root: Path, settle: Settle, said: Said, text_of: TextOf
) -> None:
    async with (app := dashboard(demo[0])).run_test(size=(80, 30)) as pilot:
        await app.polled()
        await pilot.press("i")
        await settle(app, lambda: "17.5x smaller" in text_of(app, "#job-body"))
        assert text_of(app, "#job-command") == f"$ tq inspect {demo[0].absolute()}"
        await pilot.press("s")
        assert "it has ended already (done)" in said(app)
        await pilot.press("b")
        assert isinstance(app.screen, NewRunScreen)
        await pilot.press("escape", "i")
        await settle(
            app, lambda: len(jobs.all_jobs(root)) == 2 and text_of(app, "#job-command").endswith("safetensors")
        )
        await pilot.press("escape", "escape", "u")
        await settle(app, lambda: names(app, "#jobs") == ["cnn-w4a8 aa01"] * 2)
        await pilot.press("c")
        await settle(app, lambda: len(jobs.all_jobs(root)) == 1 and len(names(app, "#jobs")) == 1)
        await pilot.press("enter")
        assert isinstance(app.screen, JobScreen)
        assert "17.5x smaller" in text_of(app, "#job-body")
        await pilot.press("escape", "c")
        await settle(app, lambda: not jobs.all_jobs(root))


async def test_a_job_at_work_has_a_progress_line_and_escape_does_not_lose_it(
    dashboard: Build, root: Path, settle: Settle, said: Said, text_of: TextOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    (root).mkdir(exist_ok=True)
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        job = jobs.start(app.root, ["bench", "m.safetensors"], title="m [x]", ended=lambda _: None)
        app.push_screen(JobScreen(job))
        await pilot.pause()
        await settle(app, lambda: "float accuracy on 359" in text_of(app, "#job-state"))
        assert text_of(app, "#job-state").startswith("● working")
        monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
        await pilot.press("y", "g", "i", "b")
        assert copied == ["tq bench m.safetensors"]
        assert "it is still at work" in said(app)
        assert said(app).count("there is no file yet (it is working)") == 2
        await pilot.press("escape", "u", "tab")
        await settle(app, lambda: names(app, "#jobs") == ["m [x]"])
        await pilot.press("c")
        assert "it is still at work; enter opens it" in said(app)
        await pilot.press("enter", "s")
        assert isinstance(app.screen, Confirm)
        await pilot.press("y")
        await settle(app, lambda: "■ stopped" in text_of(app, "#job-state"))
        await pilot.press("g")
        await settle(app, lambda: isinstance(app.screen, JobScreen) and app.screen.job.state == "working")
        assert len(jobs.all_jobs(app.root)) == 2


async def test_a_job_that_fails_says_why_first(dashboard: Build, settle: Settle, text_of: TextOf, said: Said) -> None:
    from tui.job_screen import start_job

    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        start_job(app, ["quantize", "wrong"], title="w")
        await settle(app, lambda: "✗ failed" in text_of(app, "#job-state"))
        first = "tq: expected a model file, got [bold]wrong[/]"
        # what it printed is read by the poll after the one that saw it end
        await settle(app, lambda: text_of(app, "#job-body").splitlines()[:1] == [first])
        await pilot.press("escape")
        assert not isinstance(app.screen, JobScreen)


async def test_a_toast_tells_of_the_end_of_a_job_out_of_sight(dashboard: Build, settle: Settle, said: Said) -> None:
    from tui.job_screen import start_job

    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        start_job(app, ["bench", "m"], title="m")
        await settle(app, lambda: isinstance(app.screen, JobScreen))
        await pilot.press("escape")
        Path("m.go").touch()
        await settle(app, lambda: "bench m is done; u shows it" in said(app))
