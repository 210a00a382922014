"""The keys of the list, its filter, order, marks, picture and comparison."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.content import Content
from textual.widgets import DataTable, Input, Static

from tui.app import TqApp
from tui.compare_screen import CompareScreen
from tui.dialogs import Confirm
from tui.filter_bar import FilterBar
from tui.footer import Footer
from tui.new_run import NewRunScreen
from tui.pareto import Pareto
from tui.run_screen import RunScreen
from tui.runs_screen import RunsScreen
from tui.system import Gpu, System

MakeRun = Callable[..., Path]
Build = Callable[..., TqApp]
Settle = Callable[..., Awaitable[None]]
LARGE = (120, 36)


def shown(app: TqApp, selector: str) -> str:
    """The text of a static."""
    content = app.screen.query_one(selector, Static).content
    return content.plain if isinstance(content, Content) else str(content)


def names(app: TqApp) -> list[str]:
    """The names in the list, top down."""
    table = app.screen.query_one(DataTable)
    return [str(table.get_row_at(row)[2]).split()[-1] for row in range(table.row_count)]


def notices(app: TqApp) -> str:
    return " | ".join(note.message for note in app._notifications)


def home(app: TqApp) -> RunsScreen:
    assert isinstance(app.screen, RunsScreen)
    return app.screen


async def test_enter_opens_the_chosen_run(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("down", "enter")
        assert isinstance(app.screen, RunScreen)
        assert app.screen.path == demo[4].absolute()


async def test_slash_filters_as_it_is_typed_and_escape_drops_it(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("slash", *"w=1 -resnet56")
        assert names(app) == ["aa05", "aa04", "aa02"]
        assert "3 of 6 runs" in shown(app, "#bar")
        await pilot.press("enter")
        assert isinstance(app.focused, DataTable)
        assert app.screen.query_one(FilterBar).display
        await pilot.press("escape")
        assert len(names(app)) == 6
        assert not app.screen.query_one(FilterBar).display


async def test_a_wrong_filter_says_what_is_allowed_and_leaves_the_list(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("slash")
        app.screen.query_one("#filter", Input).value = "wight<4"
        await pilot.press("enter")
        assert "unknown term 'wight<4': expected numbers w, a, acc" in shown(app, "#filter-note")
        assert isinstance(app.focused, Input)
        assert len(names(app)) == 6
        await pilot.press("escape")
        assert not app.screen.query_one("#filter-note").display


async def test_a_filter_that_nothing_fits_says_so(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("slash", *"[nope]", "enter")
        assert app.screen.query_one(DataTable).display is False
        assert "None of 6 runs fits the filter\n\n    [nope]" in shown(app, "#empty-text")
        await pilot.press("enter")
        assert isinstance(app.screen, RunsScreen)
        assert "there is no run" in notices(app)


async def test_o_orders_by_the_next_column_and_O_turns_it_around(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("o")
        best = names(app)
        assert best[0] == "aa01", "ten epochs reach most"
        assert best[-1] == "aa06", "no accuracy yet"
        assert any("▾" in str(column.label) for column in app.screen.query_one(DataTable).columns.values())
        await pilot.press("O")
        assert (names(app)[-2], names(app)[-1]) == ("aa01", "aa06"), "what is not known stays at the end"
        assert home(app).run.path == demo[5].absolute(), "the cursor stays on its run"


async def test_a_click_on_a_header_orders_and_a_second_one_turns_it(
    demo: list[Path], dashboard: Build, settle: Callable[..., Awaitable[None]]
) -> None:
    async with (app := dashboard()).run_test() as pilot:
        table = app.screen.query_one(DataTable)
        # a click before the columns are laid out hits none of them
        await settle(app, lambda: table.row_count == len(demo) and table.virtual_size.width > 60)
        await pilot.pause()
        # the mark takes two columns, the status fifteen
        await pilot.click(DataTable, offset=(20, 0))
        # by name: cnn, ..., resnet56
        await settle(app, lambda: (names(app)[0], names(app)[-1]) == ("aa01", "aa06"))
        await pilot.click(DataTable, offset=(20, 0))
        await settle(app, lambda: (names(app)[0], names(app)[-1]) == ("aa06", "aa01"))


async def test_space_marks_and_goes_on_and_escape_drops_the_marks(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("space", "space")
        table = app.screen.query_one(DataTable)
        assert [str(table.get_row_at(row)[0]).strip() for row in range(3)] == ["◆", "◆", ""]
        assert table.cursor_row == 2
        assert "2 marked" in shown(app, "#bar")
        await pilot.press("up", "space")
        assert "1 marked" in shown(app, "#bar")
        await pilot.press("escape")
        assert "marked" not in shown(app, "#bar")
        await pilot.press("escape")
        assert "there is no filter and no mark to drop" in notices(app)


async def test_keys_that_come_quickly_mean_the_run_under_the_cursor(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        for key in ("end", "space", "up", "space", "up", "up", "space", "up"):
            app.simulate_key(key)
        await pilot.pause()
        assert "3 marked" in shown(app, "#bar")
        assert home(app).run.path == demo[2].absolute()


async def test_c_compares_the_marked_runs(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=LARGE) as pilot:
        await app.polled()
        await pilot.press("c")
        assert "mark 2 to 6 runs with space; 0 are marked" in notices(app)
        await pilot.press("end", "space", "up", "space", "c")
        await app.polled()
        assert isinstance(app.screen, CompareScreen)
        table = shown(app, "#table")
        assert "━ aa02" in table
        assert "━ aa01" in table
        accuracy = next(line for line in table.splitlines() if line.startswith("best accuracy"))
        assert accuracy.rstrip().endswith("★"), "cnn-w4a8 reached more"
        differs = table.partition("what differs")[2]
        assert "scheme" in differs
        assert "w1a1" in differs
        assert "dataset" not in differs
        await pilot.press("down", "up", "escape")
        assert isinstance(app.screen, RunsScreen)


async def test_a_compared_run_that_is_deleted_drops_out(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=LARGE) as pilot:
        await app.polled()
        await pilot.press("end", "space", "up", "space", "c")
        shutil.rmtree(demo[0])
        await app.polled()
        assert "aa01" not in shown(app, "#table")
        shutil.rmtree(demo[1])
        await app.polled()
        assert "have been deleted" in shown(app, "#table")


@pytest.mark.parametrize(("key", "screen"), [("n", NewRunScreen), ("d", NewRunScreen)])
async def test_n_and_d_open_the_form(demo: list[Path], dashboard: Build, key: str, screen: type) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press(key)
        assert isinstance(app.screen, screen)


async def test_s_and_r_act_on_the_chosen_run_or_say_why_not(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("r")
        assert "resnet56-w1a4 is still running" in notices(app)
        await pilot.press("s")
        assert isinstance(app.screen, Confirm)
        await pilot.press("escape", "end", "s")
        assert "cnn-w4a8 is not running (done)" in notices(app)
        assert isinstance(app.screen, RunsScreen)


async def test_p_goes_through_all_runs_marked_runs_and_no_picture(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=LARGE) as pilot:
        await app.polled()
        await pilot.pause()
        picture = app.screen.query_one(Pareto)
        assert picture.border_subtitle.startswith("5 runs, ")
        await pilot.press("down", "space", "p")
        assert picture.border_subtitle.startswith("1 run, ")
        await pilot.press("escape")
        assert "no run is marked" in str(picture.render())
        await pilot.press("p")
        assert app.screen.query_one("#side").display is False
        await pilot.press("p")
        assert picture.border_subtitle.startswith("5 runs, ")


async def test_a_click_on_a_dot_chooses_its_run(demo: list[Path], dashboard: Build, settle: Settle) -> None:
    async with (app := dashboard()).run_test(size=LARGE) as pilot:
        await app.polled()
        await pilot.pause()
        # On a busy machine its size is known later than the runs.
        await settle(app, lambda: any(one._cells for one in app.screen.query(Pareto)))
        picture = app.screen.query_one(Pareto)
        x, y, dot = picture._cells[0]
        assert dot.path != home(app).run.path
        await pilot.click(Pareto, offset=(x + 1, y + 1))
        await pilot.pause()
        assert home(app).run.path == dot.path


async def test_without_room_p_says_what_it_needs(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("p")
        assert "the picture needs 100 columns; there are 80" in notices(app)
        assert not app.screen.query(Pareto)


async def test_the_footer_is_clicked_and_dims_what_does_not_work(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test(size=LARGE) as pilot:
        await app.polled()
        footer = app.screen.query_one(Footer)
        first, _, _, key = next(place for place in footer._places if place[3].label == "Filter")
        assert key.action == "filter"
        await pilot.click(Footer, offset=(first, 0))
        assert isinstance(app.focused, Input)


async def test_a_run_that_is_deleted_leaves_the_list(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard()).run_test() as pilot:
        await app.polled()
        await pilot.press("down", "down")
        assert home(app).run.path == demo[3].absolute()
        shutil.rmtree(demo[3])
        await app.polled()
        assert names(app) == ["aa06", "aa05", "aa03", "aa02", "aa01"]
        assert home(app).run.path == demo[2].absolute(), "the next one down"


async def test_a_run_that_is_deleted_while_it_is_open_stays_and_says_so(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[0])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        shutil.rmtree(demo[0])
        await app.polled()
        assert "deleted" in shown(app, "#status")
        assert "the directory of this run was deleted" in shown(app, "#trouble")
        await pilot.press("r")
        assert "cannot be resumed (deleted)" in notices(app)
        await pilot.press("escape")
        await app.polled()
        assert "aa01" not in names(app)


async def test_a_log_grows_while_the_list_is_open(make_run: MakeRun, dashboard: Build) -> None:
    path = make_run("aaaa", end=None, epochs_done=2)
    log = path / "events.jsonl"
    async with (app := dashboard()).run_test():
        await app.polled()
        assert home(app).run.state.step == 40
        whole = b'{"t":1800000000,"k":"step","step":41,"epoch":3,"loss":0.5,"acc":90.0}\n'
        with log.open("ab") as file:
            file.write(whole[:30])
        await app.polled()
        assert home(app).run.state.step == 40, "half a line is nothing yet"
        with log.open("ab") as file:
            file.write(whole[30:])
        await app.polled()
        assert home(app).run.state.step == 41


async def test_a_log_torn_in_its_last_line_is_whole(make_run: MakeRun, dashboard: Build) -> None:
    path = make_run("aaaa", end="", epochs_done=2)
    with (path / "events.jsonl").open("ab") as file:
        file.write(b'{"t":1800000000,"k":"st')
    async with (app := dashboard()).run_test():
        await app.polled()
        assert app.snapshot.whole
        assert home(app).run.word == "crashed"


async def test_two_dashboards_at_once_see_the_same(demo: list[Path], dashboard: Build) -> None:
    one, two = dashboard(), dashboard()
    async with one.run_test(), two.run_test():
        await one.polled()
        await two.polled()
        assert [run.path for run in one.snapshot.runs] == [run.path for run in two.snapshot.runs]
        assert [run.word for run in one.snapshot.runs] == [run.word for run in two.snapshot.runs]
        assert [run.state for run in one.snapshot.runs] == [run.state for run in two.snapshot.runs]


async def test_five_hundred_runs_are_listed(root: Path, dashboard: Build) -> None:
    for i in range(500):
        path = root / f"20270101-000000-net-{i:04d}"
        path.mkdir(parents=True)
        (path / "run.json").write_text("{}")
    async with (app := dashboard()).run_test(size=LARGE) as pilot:
        await app.polled()
        assert len(names(app)) == 500
        views = app.snapshot.runs
        await pilot.press("end")
        assert names(app)[499] == home(app).run.tag == "0000"
        await app.polled()
        same = sum(a is b for a, b in zip(views, app.snapshot.runs, strict=True))
        assert same >= 498, "what has not changed is the same object, so that nothing is drawn again"


@pytest.mark.parametrize("size", [(59, 24), (80, 15)])
async def test_a_terminal_that_is_too_small_says_what_is_needed(
    demo: list[Path], dashboard: Build, settle: Settle, size: tuple[int, int]
) -> None:
    sentence = f"tq needs a terminal of 60x16; this one is {size[0]}x{size[1]}"
    async with (app := dashboard()).run_test(size=size) as pilot:
        await settle(app, lambda: shown(app, "#too-small") == sentence)
        assert app.screen.query_one("#too-small").display
        await pilot.resize_terminal(60, 16)
        await settle(app, lambda: not app.screen.query_one("#too-small").display)
        await settle(app, lambda: len(names(app)) == 6)


@pytest.mark.parametrize(
    ("system", "line"),
    [
        (System(41, 9.84e9, 33.5e9), "CPU 41%   RAM 9.8 of 33.5 GB   no GPU"),
        (System(1, 1e9, 2e9, (), "GPU not read: pip install 'tq[gpu]'"), "GPU not read: pip install 'tq[gpu]'"),
        (
            System(5, 1e9, 2e9, (Gpu("NVIDIA H100", 87.0, 12.1e9, 85e9, 310.4, 61.0),)),
            "GPU H100 87% 12.1 of 85.0 GB 310 W 61 °C",
        ),
        (System(5, 1e9, 2e9, (Gpu("[x]\x1b[2J", None, 0, 1e9),)), "GPU [x] 0.0 of 1.0 GB"),
    ],
)
async def test_the_system_line(dashboard: Build, system: System, line: str) -> None:
    async with (app := dashboard(system=lambda: system)).run_test():
        await app.polled()
        assert line in shown(app, "#system")
