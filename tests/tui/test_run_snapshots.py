"""Pictures of a run, the forms, the queue and the results at three sizes, from fixed files and a stopped clock."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from tq import queue
from tui import form
from tui.app import TqApp
from tui.job_screen import JobScreen
from tui.jobs import Job

SIZES = {"80x24": (80, 24), "120x36": (120, 36), "200x50": (200, 50)}
NOW = 1_800_000_000.0  # the clock of the runs in conftest.py
RESULTS = json.loads(Path(__file__).with_name("results.json").read_text())
SnapCompare = Callable[..., bool]
Build = Callable[..., TqApp]
MakeRun = Callable[..., Path]
Size = tuple[int, int]
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
small_and_large = pytest.mark.parametrize("size", list(SIZES.values())[:2], ids=list(SIZES)[:2])


def after(*keys: str, show: Callable[[TqApp], object] = lambda app: None) -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Wait for the disk to be read, press the keys, and for it to be read once more."""

    async def act(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, TqApp)
        await app.polled()
        show(app)
        await pilot.pause()
        for key in keys:
            await pilot.press(key)
            await app.workers.wait_for_complete()
        await app.polled()
        for box in app.screen.query(Input):
            box.cursor_blink = False
        await pilot.pause()

    return act


@pytest.fixture
def detailed(make_run: MakeRun, append: Callable[..., None]) -> Path:
    """A live run of QSGD with figures of its layers."""
    path = make_run("de7a", "resnet20", "w1a2", end=None, epochs_done=5.5)
    names = ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1"]
    layers = {
        name: {"bits": 1, "act_bits": 2, "bytes": 288 * 2**i, "scale": 0.05 / (i + 1), "flips": 0.002 / (i + 1),
               "oscillating": 0.0004 * i, "sqnr_db": 6.0 + 2 * i}
        for i, name in enumerate(names)
    }  # fmt: skip
    append(
        path,
        {"k": "layers", "step": 100, "layers": layers},
        {"k": "step", "step": 111, "epoch": 6, "loss": 0.4, "acc": 88.0, "lr": 0.02, "img_s": 512.0, "flip_rate": 0.001,
         "p_min": 4, "p_mean": 4.6, "p_max": 6},
    )  # fmt: skip
    return path


@every_size
def test_a_live_run(snap_compare: SnapCompare, detailed: Path, dashboard: Build, size: Size) -> None:
    assert snap_compare(dashboard(detailed), terminal_size=size, run_before=after("tab", "tab"))


@small_and_large
@pytest.mark.parametrize("which", [1, 2], ids=["failed", "crashed"])
def test_a_run_in_trouble(
    snap_compare: SnapCompare, demo: list[Path], dashboard: Build, size: Size, which: int
) -> None:
    assert snap_compare(dashboard(demo[which]), terminal_size=size, run_before=after())


@pytest.mark.parametrize(("which", "keys"), [(0, []), (5, []), (4, ["tab"]), (4, ["tab"] * 3), (4, ["tab"] * 4)],
    ids=["done", "compiling", "alerts", "phases", "settings"])  # fmt: skip
def test_another_run(
    snap_compare: SnapCompare, demo: list[Path], dashboard: Build, which: int, keys: list[str]
) -> None:
    assert snap_compare(dashboard(demo[which]), terminal_size=SIZES["80x24"], run_before=after(*keys))


@pytest.mark.parametrize(("name", "keys"), [("chart", ["plus", "plus", "w", "w", "a", "l", "m"]),
    ("panel", ["tab", "tab", "f"]), ("search", ["slash", *"epoch"])], ids=["chart", "panel", "search"])  # fmt: skip
def test_a_part_of_a_run(
    snap_compare: SnapCompare, detailed: Path, dashboard: Build, name: str, keys: list[str]
) -> None:
    assert snap_compare(dashboard(detailed), terminal_size=SIZES["80x24"], run_before=after(*keys))


def test_a_run_in_too_small_a_terminal(snap_compare: SnapCompare, detailed: Path, dashboard: Build) -> None:
    assert snap_compare(dashboard(detailed), terminal_size=(50, 12), run_before=after())


@dataclass(frozen=True)
class SmallConfig:
    """Stands in for TrainConfig, so that its next setting does not change the picture."""

    model: str = "resnet20"
    """which network, e.g. resnet20"""
    compile: bool = True
    """compile the step"""
    optimizer: Literal["sgd", "adamw", "hysteresis-sgd"] = "sgd"
    """what moves the weights; too long a text for the line beside the field, where it is cut off"""
    image_size: int | None = None
    """height and width in pixels"""
    lr: float = 0.05
    """peak learning rate"""
    milestones: tuple[float, ...] = (0.3, 0.6)
    """where the rate falls"""

    def __post_init__(self) -> None:
        if self.model != "resnet20":
            raise ValueError(f"unknown model {self.model!r}: expected resnet20")


@every_size
def test_the_form(snap_compare: SnapCompare, dashboard: Build, size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(form.FORMS, "train", form.Form("train", SmallConfig))
    assert snap_compare(dashboard(), terminal_size=size, run_before=after("n", "x"))


@small_and_large
def test_the_queue(snap_compare: SnapCompare, dashboard: Build, root: Path, size: Size) -> None:
    for name, device in (("resnet20-w1a2", "cpu"), ("resnet32-w2a4", "cpu"), ("resnet20-w4a4", "cuda:0")):
        queue.add(root, ["train", "--model", name.split("-")[0]], name=name, device=device)
    assert snap_compare(dashboard(), terminal_size=size, run_before=after("u", "J"))


@small_and_large
@pytest.mark.parametrize("command", RESULTS)
def test_a_result(snap_compare: SnapCompare, dashboard: Build, size: Size, command: str) -> None:
    job = Job(Path("runs/jobs/20270115-080000-3f2c"), command, (command, "last"), "resnet20-w1a2 3f2c",
              started=NOW - 90, ended=NOW - 10, state="done", result=RESULTS[command])  # fmt: skip
    show = after(show=lambda app: app.push_screen(JobScreen(job)))
    assert snap_compare(dashboard(), terminal_size=size, run_before=show)
