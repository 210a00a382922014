"""A run's screen: every key of it, and each of its states."""

from __future__ import annotations

import math
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.widgets import Input

from tq import queue
from tq.events import number
from tq.runs import Status
from tui import panels, run_text
from tui.app import TqApp
from tui.chart import Chart
from tui.curves import Picture, Window
from tui.dialogs import Confirm
from tui.new_run import NewRunScreen
from tui.queue_screen import QueueScreen
from tui.run_screen import RunScreen
from tui.state import RunView

NOW = 1_800_000_000.0  # the clock of the runs in conftest.py
Append = Callable[..., None]
Build = Callable[..., TqApp]
MakeRun = Callable[..., Path]
Said = Callable[[TqApp], str]
Settle = Callable[..., Awaitable[None]]
TextOf = Callable[[TqApp, str], str]
LOG = "".join(f"step {i} loss {1 / i:.3f}{'  Error: [x]' if i % 50 == 0 else ''}\n" for i in range(1, 181))


def screen_of(app: TqApp) -> RunScreen:
    assert isinstance(app.screen, RunScreen)
    return app.screen


def charts(app: TqApp) -> list[str]:
    """Names of the charts that are in sight."""
    return [str(chart.id) for chart in app.screen.query(Chart) if chart.display and chart.size.height]


def picture(app: TqApp, name: str = "loss") -> Picture:
    drawn = app.screen.query_one(f"#{name}", Chart)._asked
    assert drawn is not None
    return drawn


def chosen(app: TqApp) -> str:
    (one,) = app.screen.query("Chart.chosen")
    return str(one.id)


def steps(n: int, **fields: object) -> list[dict[str, object]]:
    return [{"k": "step", "step": 111 + i, "loss": 0.5, "acc": 80.0, "lr": 0.1, **fields} for i in range(n)]


async def test_c_chooses_the_next_chart_and_turns_the_page(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        assert charts(app) == ["loss", "accuracy"]
        assert chosen(app) == "loss"
        await pilot.press("c")
        assert (chosen(app), charts(app)) == ("accuracy", ["loss", "accuracy"])
        await pilot.press("c")
        await pilot.pause()
        assert (chosen(app), charts(app)) == ("lr", ["lr", "speed"])
        assert picture(app, "lr").note == "3/5"
        await pilot.press("C", "C", "C")
        await pilot.pause()
        assert charts(app) == ["flips"], "around the end, where the last page has one"
        await pilot.press("c")
        assert chosen(app) == "loss"


async def test_wide_and_high_terminals_show_more_charts(
    demo: list[Path], dashboard: Build, settle: Callable[..., Awaitable[None]]
) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(200, 60)):
        await settle(app, lambda: charts(app) == ["loss", "accuracy", "lr", "speed", "flips"])


async def test_m_shows_the_chosen_chart_alone_and_esc_ends_it(
    demo: list[Path], dashboard: Build, text_of: TextOf
) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("c", "m")
        await pilot.pause()
        assert charts(app) == ["accuracy"]
        assert app.screen.query_one("#accuracy").size.height >= 17
        assert not app.screen.query_one("#panel").size.height
        assert text_of(app, "#status"), "how it stands is always in sight"
        await pilot.press("escape")
        await pilot.pause()
        assert charts(app) == ["loss", "accuracy"]
        await pilot.press("m", "m")
        await pilot.pause()
        assert charts(app) == ["loss", "accuracy"]


async def test_zoom_pan_and_whole_hold_for_all_charts(demo: list[Path], dashboard: Build, said: Said) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        for key in ("minus", "left", "right", "0"):
            await pilot.press(key)
        assert said(app).count("the whole run is in sight; + zooms in") == 4
        assert (picture(app).x_low, picture(app).x_high) == (0, 10)
        await pilot.press("plus")
        assert (picture(app).x_low, picture(app).x_high) == (0, 5.5), "first what there is, without what is to come"
        await pilot.press("plus")
        assert (picture(app).x_low, picture(app).x_high) == (2.75, 5.5)
        assert picture(app, "accuracy").x_low == 2.75
        await pilot.press("left")
        assert screen_of(app).charts.view.window == Window(0.375, 0.875)
        await pilot.press("right", "right", "right")
        assert screen_of(app).charts.view.window == Window(0.5, 1)
        await pilot.press("minus", "plus", "0")
        assert picture(app).x_high == 10


async def test_a_window_at_the_end_follows_a_live_run(demo: list[Path], dashboard: Build, append: Append) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("plus", "plus")
        before = picture(app)
        append(demo[4], *steps(10))
        await app.polled()
        assert picture(app).x_high == pytest.approx(before.x_high + 0.5)
        assert picture(app).x_high - picture(app).x_low > before.x_high - before.x_low


async def test_a_log_y_and_x_axes(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        seen = []
        for _ in range(3):
            seen.append(picture(app).x_label)
            await pilot.press("a")
        assert seen == ["epochs", "steps", "minutes"]
        await pilot.press("l")
        assert (picture(app).log, picture(app, "accuracy").log) == (True, False)
        await pilot.press("c", "l", "C", "l")
        assert (picture(app).log, picture(app, "accuracy").log) == (False, True)


async def test_w_smooths_the_training_curve_alone(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        raw = picture(app)
        await pilot.press("w", "w", "w")
        assert picture(app).note.endswith("smooth 20%")
        assert list(picture(app).curves[0].ys) != list(raw.curves[0].ys)
        assert list(picture(app).curves[1].ys) == list(raw.curves[1].ys)
        await pilot.press("w")
        assert list(picture(app).curves[0].ys) == list(raw.curves[0].ys)


async def test_charts_are_drawn_again_only_for_something_new(
    demo: list[Path], dashboard: Build, append: Append, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.pause()
        drawn: list[str] = []
        loss = app.screen.query_one("#loss", Chart)
        monkeypatch.setattr(loss.plt, "clear_figure", lambda: drawn.append("x"))
        await app.polled()
        await pilot.press("tab")
        assert drawn == []
        append(demo[4], *steps(1))
        await app.polled()
        assert drawn == ["x"]


async def test_the_mouse_chooses_maximises_and_zooms(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.pause()
        await pilot.click("#accuracy")
        assert chosen(app) == "accuracy"
        await pilot.click("#accuracy", times=2)
        await pilot.pause()
        assert charts(app) == ["accuracy"]
        app.screen.query_one("#accuracy", Chart).on_mouse_scroll_up()
        await pilot.pause()
        assert screen_of(app).charts.view.window == Window()
        app.screen.query_one("#accuracy", Chart).on_mouse_scroll_down()
        await pilot.pause()
        assert screen_of(app).charts.view.window is None


async def test_without_a_curve_the_chart_keys_say_so(demo: list[Path], dashboard: Build, said: Said) -> None:
    async with (app := dashboard(demo[5])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        for key in ("c", "C", "m", "plus", "a", "l", "w"):
            await pilot.press(key)
        assert said(app).count("there is no curve yet") == 7


async def test_tab_turns_the_panels(demo: list[Path], dashboard: Build, text_of: TextOf) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(100, 30)) as pilot:
        await app.polled()
        assert "epoch 1/10" in text_of(app, "#panel-body")
        words = ["loss spike", "layer1.0.conv1", "train", "tq train --model resnet32"]
        for word in words:
            await pilot.press("tab")
            assert word in text_of(app, "#panel-body")
        await pilot.press("tab")
        assert "epoch 1/10" in text_of(app, "#panel-body")
        await pilot.press("shift+tab", "shift+tab", "shift+tab")
        assert "layer1.0.conv1" in text_of(app, "#panel-body")


async def test_f_gives_the_panel_the_screen(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("tab", "tab", "f")
        await pilot.pause()
        assert charts(app) == []
        assert app.screen.query_one("#panel").size.height >= 17
        await pilot.press("escape")
        await pilot.pause()
        assert charts(app) == ["loss", "accuracy"]
        await pilot.press("m", "f", "f")
        await pilot.pause()
        assert charts(app) == ["loss", "accuracy"]


async def test_slash_searches_the_log_and_n_walks(
    make_run: MakeRun, dashboard: Build, text_of: TextOf, said: Said
) -> None:
    path = make_run("5ea0", output=LOG)
    async with (app := dashboard(path)).run_test(size=(80, 24)) as pilot:
        await app.polled()
        panel = app.screen.query_one("#panel")
        await pilot.press("N")
        assert "nothing is searched for" in said(app)
        await pilot.press("tab", "slash", *"error")
        assert isinstance(app.focused, Input)
        await pilot.pause()
        assert str(panel.border_subtitle).startswith("3 of 3 lines with 'error'")
        assert screen_of(app).panel.search.line(screen_of(app).run.output) == 149
        await pilot.press("enter", "N")
        await pilot.pause()
        assert str(panel.border_subtitle).startswith("2 of 3")
        assert panel.scroll_y <= 99 < panel.scroll_y + panel.size.height
        await pilot.press("n", "n")
        await pilot.pause()
        assert str(panel.border_subtitle).startswith("1 of 3"), "around the end"
        assert panel.scroll_y <= 49 < panel.scroll_y + panel.size.height
        await app.polled()
        assert panel.scroll_y <= 49, "the log does not run away from a match"
        await pilot.press("escape")
        await pilot.pause()
        assert screen_of(app).panel.search == panels.Search()
        assert "Error: [x]" in text_of(app, "#panel-body")


async def test_a_search_without_a_match_says_so_and_esc_closes_it(
    make_run: MakeRun, dashboard: Build, said: Said
) -> None:
    path = make_run("5ea1", output=LOG)
    async with (app := dashboard(path)).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("slash", *"zebra", "enter", "n")
        assert "no line has 'zebra'" in said(app)
        assert "no line" in str(app.screen.query_one("#panel").border_subtitle)
        await pilot.press("slash", "escape")
        assert screen_of(app).panel.search.needle == ""
        assert app.focused is app.screen.query_one("#panel")
        await pilot.press("n")
        assert isinstance(app.screen, NewRunScreen), "n without a search is what it is everywhere"


@pytest.mark.parametrize(("needle", "want"), [("ERR", [1, 3]), ("ß", [4]), ("", []), ("[x]", [3]), ("i̇", [5])])
def test_search_ignores_case_and_knows_no_markup(needle: str, want: list[int]) -> None:
    lines = ("fine", "error one", "", "Err [x]", "Straße", "İ i̇ x")
    assert panels.Search(needle).matches(lines) == want


async def test_log_is_followed_until_it_is_scrolled(make_run: MakeRun, dashboard: Build, settle: Settle) -> None:
    path = make_run("5ea2", output=LOG, end=None)

    def write(line: str) -> None:
        with (path / "out.log").open("a") as file:
            file.write(f"{line}\n")

    async with (app := dashboard(path)).run_test(size=(80, 24)) as pilot:
        panel = app.screen.query_one("#panel")

        def ends_with(line: str) -> bool:
            run = screen_of(app).run
            return run is not None and run.output[-1] == line and panel.scroll_y == panel.max_scroll_y > 0

        await settle(app, lambda: ends_with(LOG.splitlines()[-1]))
        write("one more")
        await settle(app, lambda: ends_with("one more"))
        # Two draws before the first is laid out: the end moves twice, and nobody has scrolled.
        for line in ("two more", "three more"):
            write(line)
            await app.polled()
        await settle(app, lambda: ends_with("three more"))
        # The panel gets smaller, and no new line comes.
        rows = panel.size.height
        await pilot.resize_terminal(80, 20)
        await settle(app, lambda: panel.size.height < rows and ends_with("three more"))
        await pilot.press("home")
        await settle(app, lambda: panel.scroll_y == 0)
        write("and another")
        rows = panel.virtual_size.height
        await settle(app, lambda: panel.virtual_size.height > rows)
        await pilot.pause()
        assert panel.scroll_y == 0
        await pilot.press("end")
        await settle(app, lambda: ends_with("and another"))


async def test_a_screen_that_was_left_is_not_drawn_any_more(demo: list[Path], dashboard: Build) -> None:
    async with (app := dashboard(demo[0])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        left = screen_of(app)
        await pilot.press("escape")
        assert left not in app.screen_stack
        left.redraw()  # as after a resize that came just before


# --- acting on it ---


@pytest.mark.parametrize(
    ("which", "key", "reason"),
    [
        (0, "s", "is not running (done)"),
        (0, "S", "is not running (done)"),
        (0, "r", "cannot be resumed (done)"),
        (4, "r", "is still running"),
        (4, "e", "is still running"),
        (4, "i", "writes its file at the end (train)"),
        (4, "b", "writes its file at the end (train)"),
        (0, "z", "is quantized already"),
    ],
)
async def test_a_key_that_cannot_be_used_says_why(
    demo: list[Path], dashboard: Build, said: Said, which: int, key: str, reason: str
) -> None:
    async with (app := dashboard(demo[which])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press(key)
        assert reason in said(app)
        assert isinstance(app.screen, RunScreen)


@pytest.mark.parametrize(("key", "title"), [("s", "Stop resnet32-w1a2 aa05?"), ("S", "Kill resnet32-w1a2 aa05?")])
async def test_stop_and_kill_ask_first(
    demo: list[Path], dashboard: Build, text_of: TextOf, key: str, title: str
) -> None:
    async with (app := dashboard(demo[4])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press(key)
        assert isinstance(app.screen, Confirm)
        assert text_of(app, ".dialog-title") == title
        await pilot.press("escape")
        assert isinstance(app.screen, RunScreen)


async def test_d_duplicates_and_b_opens_the_bench_of_it(demo: list[Path], dashboard: Build, text_of: TextOf) -> None:
    async with (app := dashboard(demo[0])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("d")
        assert text_of(app, "#command") == "$ tq train --model cnn --scheme w4a8 --lr 0.02"
        await pilot.press("escape", "b")
        assert text_of(app, "#command") == f"$ tq bench {demo[0].name}"
        assert app.focused is app.screen.query_one("#start"), "enter starts it"


# --- states ---


async def test_a_compile_says_so_and_for_how_long(demo: list[Path], dashboard: Build, text_of: TextOf) -> None:
    async with (app := dashboard(demo[5])).run_test(size=(80, 24)):
        await app.polled()
        assert text_of(app, "#waiting-text").startswith("compiling the training step; the first steps follow  1m10")
        assert "compile 1m10" in text_of(app, "#status")


async def test_the_phases_before_are_shown_with_their_time(
    make_run: MakeRun, dashboard: Build, append: Append, text_of: TextOf
) -> None:
    path = make_run("5ea3", end=None, epochs_done=0, ago_s=100)
    append(path, {"k": "phase", "name": "calibrate", "t": NOW - 30}, {"k": "phase", "name": "train", "t": NOW - 20})
    async with (app := dashboard(path)).run_test(size=(80, 24)) as pilot:
        await app.polled()
        lines = text_of(app, "#waiting-text").splitlines()
        assert lines == ["training; waiting for the first step  20s", "✓ compile 1m10", "✓ calibrate 10s"]
        await pilot.press("tab", "tab", "tab")
        body = text_of(app, "#panel-body").splitlines()
        assert [line.split()[:2] for line in body] == [["compile", "1m10"], ["calibrate", "10s"], ["●", "train"]]
        assert "20%" in body[2]


async def test_a_stalled_run_says_for_how_long_and_what_can_be_done(
    make_run: MakeRun, dashboard: Build, text_of: TextOf
) -> None:
    path = make_run("5ea4", end=None, epochs_done=5)
    async with (app := dashboard(path, clock=lambda: NOW + 100)).run_test(size=(80, 24)):
        await app.polled()
        assert "nothing was logged for 1m42 in phase train" in text_of(app, "#trouble")
        assert "s stops it" in text_of(app, "#trouble")
        assert app.screen.query_one("#trouble").has_class("warning")


async def test_a_crashed_run_shows_its_last_lines_and_offers_to_resume(
    demo: list[Path], dashboard: Build, text_of: TextOf
) -> None:
    async with (app := dashboard(demo[2])).run_test(size=(80, 24)):
        await app.polled()
        lines = text_of(app, "#trouble").splitlines()
        assert lines[0].startswith("the trainer died in phase train")
        assert lines[1:3] == ["terminate called after std::bad_alloc", "Aborted"]
        assert lines[3].startswith("r resumes it from the start")


async def test_a_failed_run_shows_the_exception_first(demo: list[Path], dashboard: Build, text_of: TextOf) -> None:
    async with (app := dashboard(demo[1])).run_test(size=(80, 24)):
        await app.polled()
        lines = text_of(app, "#trouble").splitlines()
        assert lines[0] == "out of memory: lower --batch-size"
        assert lines[2] == "RuntimeError: out of memory"


async def test_a_loss_that_is_no_number_is_told_and_draws_as_a_gap(
    make_run: MakeRun, dashboard: Build, append: Append, text_of: TextOf
) -> None:
    path = make_run("5ea5", end=None, epochs_done=5)
    append(path, *steps(3, loss="nan"))
    async with (app := dashboard(path)).run_test(size=(80, 24)):
        await app.polled()
        assert "the loss is no number since step 111" in text_of(app, "#trouble")
        assert all(math.isnan(y) for y in picture(app).curves[0].ys[-3:])


async def test_a_run_that_is_deleted_while_open_stays_on_the_screen(
    make_run: MakeRun, dashboard: Build, text_of: TextOf
) -> None:
    path = make_run("5ea6")
    async with (app := dashboard(path)).run_test(size=(80, 24)) as pilot:
        await app.polled()
        shutil.rmtree(path)
        await app.polled()
        assert "the directory of this run was deleted" in text_of(app, "#trouble")
        assert charts(app) == ["loss", "accuracy"]
        await pilot.press("c", "plus", "tab", "d", "escape", "escape")
        assert not isinstance(app.screen, RunScreen)


async def test_layers_have_bars_for_what_is_known(
    make_run: MakeRun, dashboard: Build, append: Append, text_of: TextOf
) -> None:
    path = make_run("5ea7", end=None, epochs_done=2)
    figures = {
        "layer1.0.conv1": {"bits": 1, "act_bits": 2, "bytes": 288, "scale": 0.031, "flips": 0.002, "sqnr_db": 12.3},
        "layer1.0.conv2": {"bits": 1, "act_bits": 2, "bytes": 576, "scale": 0.04, "flips": 0.001, "sqnr_db": "nan"},
        "evil [red]\x1b[2J": {"bits": 4, "oscillating": 0.5},
    }
    append(path, {"k": "layers", "step": 40, "layers": figures})
    async with (app := dashboard(path)).run_test(size=(120, 36)) as pilot:
        await app.polled()
        await pilot.press("tab", "tab")
        text = text_of(app, "#panel-body")
        rows = {line.split()[0]: line for line in text.splitlines()}
        assert rows["layer"].split() == ["layer", "bits", "bytes", "scale", "flips", "to", "and", "fro", "SNR", "dB"]
        assert {"w1a2", "288", "0.0310", "0.20%", "12.3"} <= set(rows["layer1.0.conv1"].split())
        assert rows["layer1.0.conv1"].count("█") > rows["layer1.0.conv2"].count("█") - 20
        assert "float" in rows["fc"], "known from the size event alone"
        assert "evil [red]" in text
        assert "\x1b" not in text
        assert "as of step 40" in text
        await pilot.resize_terminal(60, 24)
        await app.polled()
        assert "12.3" in text_of(app, "#panel-body"), "bars and figures of second rank go first"


async def test_tiles_show_the_resolution_or_the_portion(
    make_run: MakeRun, dashboard: Build, append: Append, text_of: TextOf
) -> None:
    path = make_run("5ea8", end=None, epochs_done=2)
    append(path, *steps(1, p_min=4, p_mean=4.6, p_max=6))
    async with (app := dashboard(path)).run_test(size=(120, 36)):
        await app.polled()
        assert "2^-P" in text_of(app, "#tiles")
        assert "4 to 6" in text_of(app, "#tiles")
        append(path, *steps(1, portion=0.75))
        await app.polled()
        assert "FROZEN" in text_of(app, "#tiles")
        assert "75%" in text_of(app, "#tiles")
        assert number(app.snapshot.runs[0].state.portion) == 0.75


# --- more of acting on it ---


async def test_e_queues_the_resumption(
    demo: list[Path], dashboard: Build, root: Path, settle: Settle, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "start_runner", lambda *_, **__: None)
    async with (app := dashboard(demo[3])).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("e")
        await settle(app, lambda: "waits for cpu; u shows the queue" in said(app))
        (entry,) = queue.entries(root)
        assert (entry.run, entry.name) == (demo[3].name, "resnet20-w1a2")
        await pilot.press("e")
        await settle(app, lambda: "is in the queue already" in said(app))
        await pilot.press("u")
        assert isinstance(app.screen, QueueScreen)


async def test_z_opens_the_form_that_quantizes_a_float_run(
    make_run: MakeRun, dashboard: Build, text_of: TextOf, said: Said
) -> None:
    path = make_run("f10a", "cnn", "float")
    async with (app := dashboard(path)).run_test(size=(80, 24)) as pilot:
        await app.polled()
        await pilot.press("b")
        assert "is a float network; z quantizes it" in said(app)
        await pilot.press("z")
        assert text_of(app, "#command") == f"$ tq quantize {path.name}"


async def test_nothing_is_started_or_stopped_where_the_dashboard_only_reads(
    demo: list[Path], dashboard: Build, said: Said
) -> None:
    async with (app := dashboard(demo[3], readonly="only reading")).run_test(size=(80, 24)) as pilot:
        await app.polled()
        for key in ("s", "S", "r", "e", "d", "i", "b", "z", "n"):
            await pilot.press(key)
            assert isinstance(app.screen, RunScreen)
        assert said(app).count("only reading") == 9


@pytest.mark.parametrize("share", [0.0, 0.43])
def test_a_log_that_is_being_read_says_how_far_it_is(share: float) -> None:
    run = RunView(Path("x"), Status("live", "train"), share=share)
    assert run_text.waiting(run).plain.splitlines()[0] == "reading the log"
    assert run_text.waiting(run).plain.endswith(f" {100 * share:.0f}%")
    assert f"reading the log {100 * share:.0f}%" in run_text.status_line(run, 78).plain


async def test_the_log_of_a_run_that_is_not_the_newest_is_read_where_the_dashboard_opens_on_it(
    demo: list[Path], dashboard: Build, text_of: TextOf
) -> None:
    async with (app := dashboard(demo[2])).run_test(size=(80, 24)):
        await app.polled()
        assert "std::bad_alloc" in text_of(app, "#panel-body")
