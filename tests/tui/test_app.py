"""The dashboard's keys and what they do to real runs."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from textual.content import Content
from textual.widgets import DataTable, Static

from tq import history, runs
from tui import start
from tui.app import TqApp
from tui.dialogs import Confirm, Help
from tui.frame import print_once, screenshot
from tui.run_screen import RunScreen
from tui.runs_screen import RunsScreen

NOW = 1_800_000_000.0  # the clock of the runs in conftest.py
MakeRun = Callable[..., Path]
Build = Callable[..., TqApp]
Settle = Callable[..., Awaitable[None]]
TRAINER = [sys.executable, str(Path(__file__).with_name("trainer.py"))]


def shown(app: TqApp, selector: str) -> str:
    """The text of a static on the screen; "" while the screen has none of that name."""
    for static in app.screen.query(selector).results(Static):
        return static.content.plain if isinstance(static.content, Content) else str(static.content)
    return ""


def notices(app: TqApp) -> str:
    return " | ".join(note.message for note in app._notifications)


def word(app: TqApp, path: Path) -> str:
    run = app.snapshot.find(path.absolute())
    return run.word if run else ""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch the stand-in trainer instead of `python -m tq`."""
    monkeypatch.setattr(runs, "launch", partial(runs.launch, command=TRAINER))
    monkeypatch.setattr(runs, "resume", partial(runs.resume, command=TRAINER))


@pytest.mark.asyncio
async def test_arrows_enter_and_escape_walk_between_list_and_run(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await app.polled()
        assert app.screen.query_one(DataTable).row_count == 6
        await pilot.press("down", "down", "up", "enter")
        assert isinstance(app.screen, RunScreen)
        assert app.screen.path == demo[4].absolute()
        await pilot.press("escape")
        assert isinstance(app.screen, RunsScreen)
        assert app.screen.query_one(DataTable).cursor_row == 1


@pytest.mark.asyncio
async def test_the_cursor_stays_on_its_run_when_a_new_one_appears(make_run: MakeRun, dashboard: Build) -> None:
    first, second = make_run("aaaa"), make_run("bbbb")
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("down")
        make_run("cccc")
        await app.polled()
        assert app.screen.query_one(DataTable).cursor_row == 2
        assert first.name in shown(app, "#strip")
        assert second.name not in shown(app, "#strip")


@pytest.mark.asyncio
async def test_question_mark_shows_the_keys(dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        for close in ("escape", "q"):
            await pilot.press("question_mark")
            assert isinstance(app.screen, Help)
            await pilot.press(close)
            assert isinstance(app.screen, RunsScreen)
            assert app.is_running


@pytest.mark.asyncio
async def test_q_quits_at_once_when_nothing_runs(make_run: MakeRun, dashboard: Build) -> None:
    make_run()
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("q")
        assert not app.is_running or app._exit


@pytest.mark.asyncio
@pytest.mark.parametrize(("answer", "left"), [("escape", False), ("enter", True), ("q", True)])
async def test_q_says_how_many_runs_go_on(demo: list[Path], dashboard: Build, answer: str, left: bool) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("q")
        assert shown(app, ".dialog-title") == "2 runs go on without the dashboard"
        await pilot.press(answer)
        assert app._exit is left


@pytest.mark.asyncio
async def test_s_asks_and_says_no_for_a_run_that_is_over(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[0])).run_test() as pilot:
        await app.polled()
        await pilot.press("s")
        assert isinstance(app.screen, RunScreen)
        assert "is not running (done)" in notices(app)
        await pilot.press("r")
        assert "cannot be resumed (done)" in notices(app)


@pytest.mark.asyncio
async def test_q_over_the_question_whether_to_stop_only_cancels_it(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[4])).run_test() as pilot:
        await app.polled()
        await pilot.press("s")
        assert isinstance(app.screen, Confirm)
        await pilot.press("q")
        assert isinstance(app.screen, RunScreen)
        assert not app._exit


@pytest.mark.asyncio
async def test_text_of_users_is_not_markup_and_cannot_draw(make_run: MakeRun, dashboard: Build) -> None:
    nasty = "[bold red]x[/] \x1b[2J\x1b]0;title\x07[/nope] \x9b1m"
    path = make_run(
        "ffff", "net", end="error", epochs_done=1, error=nasty, output=nasty + "\n", alerts=(("warning", nasty, nasty),)
    )
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(
        json.dumps({**record, "name": nasty, "argv": ["tq", nasty], "config": {"dataset": nasty}, "device": nasty})
    )
    async with (app := dashboard()).run_test(size=(160, 30)) as pilot:
        await app.polled()
        assert "[bold red]x[/] [/nope]" in shown(app, "#strip")
        await pilot.press("enter")
        assert "\x1b" not in shown(app, "#trouble")
        assert "[/nope]" in shown(app, "#trouble")
        for _ in range(4):
            await pilot.press("right")
            await app.polled()
        with path.joinpath("events.jsonl").open("a") as file:
            file.write(json.dumps({"t": NOW, "k": "alert", "level": "error", "title": nasty, "text": nasty}) + "\n")
        await app.polled()
        await pilot.pause()
        assert "[bold red]x[/]" in notices(app)


@pytest.mark.asyncio
async def test_odd_runs_are_shown_not_fatal(root: Path, make_run: MakeRun, dashboard: Build) -> None:
    path = make_run("eeee", end=None, epochs_done=1)
    log = path / "events.jsonl"
    for values in (math.nan, math.inf, -1e30, 1e30):
        with log.open("a") as file:
            file.write(
                json.dumps({"t": NOW, "k": "step", "step": 21, "loss": str(values).strip(), "acc": values, "lr": "x"})
                + "\n"
            )
    for name, text in (
        ("broken", "{"),
        ("list", "[]"),
        ("null", '{"name": null, "argv": 3, "config": 4, "created": "x"}'),
    ):
        (root / name).mkdir()
        (root / name / "run.json").write_text(text)
        (root / name / "events.jsonl").write_text(
            '{"t":1,"k":"size","packed_bytes":1,"layers":{"a":"b"}}\n{"t":1,"k":"step","step":1}\n'
        )
    (root / "a-file").touch()
    async with (app := dashboard()).run_test(size=(90, 24)) as pilot:
        await app.polled()
        table = app.screen.query_one(DataTable)
        assert table.row_count == 4
        for _ in range(4):
            await pilot.press("enter")
            await app.polled()
            await pilot.press("tab", "tab", "tab", "escape", "down")
        assert app.is_running
        assert not notices(app)


@pytest.mark.asyncio
async def test_a_run_elsewhere_can_be_opened_by_path(tmp_path: Path, make_run: MakeRun, dashboard: Build) -> None:
    path = make_run("dddd")
    away = path.rename(tmp_path / path.name)
    async with (app := dashboard(Path(away.name))).run_test():
        await app.polled()
        assert "done" in shown(app, "#status")


@pytest.mark.asyncio
async def test_resizing_draws_again(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        for size in ((20, 5), (200, 60)):
            await pilot.resize_terminal(*size)
            await app.polled()
        assert "MEMORY" in shown(app, "#tiles")
        await pilot.press("escape")
        assert len(app.screen.query_one(DataTable).columns) > 9


@pytest.mark.asyncio
async def test_a_disk_that_cannot_be_read_is_told(dashboard: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (app := dashboard()).run_test():
        await app.polled()

        def fail() -> None:
            raise RuntimeError("stale [file] handle")

        monkeypatch.setattr(app.poller, "poll", fail)
        told: asyncio.Queue[str] = asyncio.Queue()
        monkeypatch.setattr(app, "notify", lambda text, **_: told.put_nowait(text))
        app.poller.poke()
        assert "stale [file] handle" in await asyncio.wait_for(told.get(), 20)


@pytest.mark.asyncio
async def test_d_duplicates_the_settings_of_a_run(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("down", "d")
        assert shown(app, "#command") == "$ tq train --model resnet32 --lr 0.02"


@pytest.mark.asyncio
@pytest.mark.usefixtures("stand_in")
async def test_start_stop_resume_of_a_real_run(root: Path, dashboard: Build, settle: Settle) -> None:
    async with (app := dashboard(clock=time.time)).run_test(size=(80, 24)) as pilot:
        await pilot.press("n", "ctrl+s")
        await settle(app, lambda: isinstance(app.screen, RunScreen))
        path = runs.list_runs(root)[0].absolute()
        await settle(app, lambda: word(app, path) == "train" and "three steps done" in shown(app, "#panel-body"))
        assert "3/20" not in shown(app, "#tiles")
        assert "1/2" in shown(app, "#tiles")
        await pilot.press("s")
        assert isinstance(app.screen, Confirm)
        await pilot.press("y")
        await settle(app, lambda: word(app, path) == "stopped")
        await pilot.press("r")
        await settle(app, lambda: word(app, path) == "train" and history.read(path).step == 6)
        assert history.read(path).resumed_from == 3
        assert app.snapshot.live
        assert runs.kill(path)
        await settle(app, lambda: word(app, path) == "crashed")


@pytest.mark.asyncio
async def test_a_killed_trainer_shows_as_crashed_with_its_last_lines(
    root: Path, dashboard: Build, settle: Settle
) -> None:
    path = runs.launch(["train"], root=root.absolute(), command=TRAINER)
    async with (app := dashboard(path, clock=time.time)).run_test(size=(80, 24)) as pilot:
        await settle(app, lambda: word(app, path) == "train" and bool(runs.output_tail(path)))
        runs.kill(path)
        await settle(app, lambda: word(app, path) == "crashed")
        await pilot.pause()
        assert "▲ crashed" in shown(app, "#status")
        assert "died in phase train" in shown(app, "#trouble")
        assert "three steps done" in shown(app, "#trouble")
        await pilot.press("escape")
        assert "crashed" in str(app.screen.query_one(DataTable).get_row_at(0)[1])


@pytest.mark.asyncio
async def test_a_run_that_does_not_stop_can_be_killed(root: Path, dashboard: Build, settle: Settle) -> None:
    path = runs.launch(["train"], root=root.absolute(), command=TRAINER)
    now = time.time()
    async with (app := dashboard(path, clock=lambda: now)).run_test(size=(80, 24)) as pilot:
        await settle(app, lambda: word(app, path) == "train")
        app.trainers._stopping[path] = now - 60
        await app.polled()
        assert word(app, path) == "stopping 1m00"
        await pilot.press("s")
        assert shown(app, ".dialog-title").startswith("Kill cnn-w1a2 ")
        await pilot.press("enter")
        await settle(app, lambda: word(app, path) == "crashed")


def test_runs_outlive_the_dashboard(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = runs.launch(["train"], root=root.absolute(), command=TRAINER)

    async def drive(app: TqApp) -> None:
        async with app.run_test() as pilot:
            await app.polled()
            await pilot.press("q", "enter")

    monkeypatch.setattr(TqApp, "run", lambda app: asyncio.run(drive(app)))
    start.main(root)
    assert capsys.readouterr().out == f"1 run goes on: {path.name}\n"
    assert runs.status(path).live
    runs.kill(path)


def test_once_prints_the_real_screen_as_text(
    demo: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dashboard: Build
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "20")
    print_once(dashboard())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in "".join(lines)
    assert "accuracy % against size" in lines[1]
    assert lines[-1].split()[:4] == ["enter", "Open", "/", "Filter"]
    assert any(line.split()[:3] == ["✓", "done", "cnn-w4a8"] for line in lines)


def test_screenshot_writes_an_svg(demo: list[Path], tmp_path: Path, dashboard: Build) -> None:
    screenshot(dashboard(demo[4]), tmp_path / "run.svg")
    svg = (tmp_path / "run.svg").read_text()
    assert svg.startswith("<svg")
    assert "resnet32-w1a2" in svg
    assert "13.9x" in svg


FIRST_FRAME = """
import asyncio, sys, time
from pathlib import Path
began = time.perf_counter()
from tui.app import TqApp
from tui.poll import Poller
# which loads the charts, and that after the first frame
Poller.start = lambda self: None
async def draw():
    async with (app := TqApp(Path("runs"), every_s=3600)).run_test(size=(80, 24)):
        print(time.perf_counter() - began)
asyncio.run(draw())
print([name for name in ("torch", "numpy", "torchvision", "plotext") if name in sys.modules])
"""


def test_the_first_frame_is_quick_and_loads_no_torch(demo: list[Path]) -> None:
    said = subprocess.run(
        [sys.executable, "-c", FIRST_FRAME], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said[1] == "[]"
    # About 0.5 s on an idle machine; the bound only catches an import that does not belong there.
    assert float(said[0]) < 10


def test_no_import_of_the_run_screen_loads_torch() -> None:
    heavy = "[m for m in ('torch', 'triton_kernels') if m in sys.modules]"
    ask = f"import sys, tui.app, tui.run_screen, tui.new_run; print({heavy})"
    assert (
        subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
