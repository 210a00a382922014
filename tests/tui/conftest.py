"""Run directories with fixed times, and a dashboard that polls only when told."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.content import Content
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Static

from tq import runs
from tq.events import EventLog, encode
from tui.app import TqApp
from tui.system import System

REPOSITORY = Path(__file__).parents[2]
NOW = 1_800_000_000.0
SYSTEM = System(cpu=41.0, used_bytes=9.8e9, total_bytes=33.5e9)
MakeRun = Callable[..., Path]


@pytest.fixture(autouse=True)
def _same_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Children find the packages; colours, commit and version do not depend on where the tests run."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.setattr(runs, "_git_commit", lambda: "0123abc")
    monkeypatch.setattr("platform.python_version", lambda: "3.11.0")


@pytest.fixture(autouse=True)
def _patient_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pilot's `pause` ends when every message has been handled, and `press` waits so after every key.

    Textual's own waits for the processor to be idle, which a process that gets no processor is.
    """
    wait = Pilot._wait_for_screen

    async def wait_until_quiet(pilot: Pilot[object], timeout: float = 60) -> bool:
        done = await wait(pilot, timeout)
        async with asyncio.timeout(timeout):
            calm = 0
            while done and calm < 3 and not (pilot.app._exit or pilot.app._exception):
                await asyncio.sleep(0.001)
                calm = 0 if any(_is_busy(pump) for pump in _pumps(pilot.app)) else calm + 1
        return done

    async def press(pilot: Pilot[object], *keys: str) -> None:
        for key in keys:
            await pilot.app._press_keys([key])
            await pilot._wait_for_screen()

    monkeypatch.setattr(Pilot, "_wait_for_screen", wait_until_quiet)
    monkeypatch.setattr(Pilot, "press", press)


def _pumps(app: App[object]) -> list[App[object] | Widget]:
    return [app, *(node for screen in app.screen_stack for node in screen.walk_children(with_self=True))]


def _is_busy(pump: App[object] | Widget) -> bool:
    """Whether a message waits or is being handled, or a layout is due."""
    if pump._closing:
        return False
    if (isinstance(pump, Widget) and not pump.is_mounted) or pump._next_callbacks:
        return True
    if pump is pump.app.screen and (pump._callbacks or pump._layout_required or pump._dirty_widgets):
        return True
    queue = pump._message_queue
    return not queue.empty() or not queue.ready_event._waiters  # a pump at rest waits for its queue


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty root that the screens show as "runs". No trainer that was started in it outlives the test."""
    monkeypatch.chdir(tmp_path)
    yield Path("runs")
    for path in runs.list_runs(tmp_path / "runs"):
        if runs.status(path).pid not in (None, os.getpid()):
            with contextlib.suppress(ValueError):
                runs.kill(path)


@pytest.fixture
def make_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRun]:
    """Writes a run of `epochs_done` of ten epochs; `end=None` keeps it held by this process, "" leaves it crashed."""
    held: list[runs.Run] = []

    def make(
        tag: str = "3f2c",
        model: str = "resnet20",
        scheme: str = "w1a2",
        *,
        end: str | None = "ok",
        epochs_done: float = 10,
        ago_s: float = 600,
        phase: str = "train",
        output: str = "epoch 1/10  loss 1.234\n",
        error: str | None = None,
        traceback: str | None = None,
        alerts: tuple[tuple[str, str, str], ...] = (),
    ) -> Path:
        t = NOW - ago_s
        path = root / f"20270115-0{len(list(root.glob('*')))}0000-{model}-{scheme}-{tag}"
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda: t)
            run = runs.create(
                root,
                name=f"{model}-{scheme}",
                argv=["/usr/bin/tq", "train", "--model", model, "--scheme", scheme, "--run-dir", str(path)],
                config={"model": model, "scheme": scheme, "dataset": "digits", "lr": 0.02},
                seed=0,
                versions={"torch": "2.13.0"},
                device="cpu",
                path=path,
            )
        run.log.close()
        run.log = EventLog(path / "events.jsonl", clock=lambda: t)
        run.log.emit("start", v=1, pid=1, host="testhost", epochs=10, steps_per_epoch=20, metrics={}, resumed_from=None)
        run.log.emit("phase", name="compile" if not epochs_done else phase)
        if epochs_done:
            layers = {
                "conv1": 16,
                **{f"layer{i}.{j}.conv{k}": 1 for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)},
                "fc": 16,
            }
            run.log.emit("size", float_bytes=1_090_000, packed_bytes=78_432, layers=layers)
        steps = int(epochs_done * 20)
        for step in range(1, steps + 1):
            x, t = step / 20, NOW - ago_s + (ago_s - 2) * step / steps
            loss, accuracy = 2.3 * math.exp(-x / 3), 100 - 88 * math.exp(-x / 2.5)
            wave = math.sin(step) / 20
            run.log.emit(
                "step",
                step=step,
                epoch=1 + (step - 1) // 20,
                loss=loss + wave,
                acc=accuracy - 5 * wave,
                lr=0.05,
                img_s=512.0,
                flip_rate=0.0012,
            )
            if step % 20 == 0:
                run.log.emit("eval", step=step, epoch=step // 20, split="test", loss=loss + 0.05, acc=accuracy - 3)
                run.log.emit("sys", cpu=187.0, rss=812e6)
        for level, title, text in alerts:
            run.log.emit("alert", level=level, title=title, text=text)
        (path / "out.log").write_text(output)
        if end:
            summary = {"packed_accuracy": 95.28, "file": "model.safetensors"} if end == "ok" else {}
            run.log.emit("end", status=end, error=error, traceback=traceback, summary=summary)
        held.append(run)
        if end is not None:
            run.close()
        return path

    yield make
    for run in held:
        run.close()


@pytest.fixture
def demo(make_run: MakeRun) -> list[Path]:
    """One run in each state that a file can be in, oldest first."""
    trace = (
        "Traceback (most recent call last):\n  File step.py, line 3\n    loss.backward()\nRuntimeError: out of memory"
    )
    return [
        make_run("aa01", "cnn", "w4a8"),
        make_run(
            "aa02",
            "resnet20",
            "w1a1",
            end="error",
            epochs_done=3,
            error="out of memory: lower --batch-size",
            traceback=trace,
        ),
        make_run(
            "aa03",
            "resnet20",
            "w2a2",
            end="",
            epochs_done=5,
            output="epoch 5/10\nterminate called after std::bad_alloc\nAborted\n",
        ),
        make_run("aa04", "resnet20", "w1a2", end="stopped", epochs_done=6),
        make_run(
            "aa05",
            "resnet32",
            "w1a2",
            end=None,
            epochs_done=5.5,
            alerts=(("warning", "loss spike", "loss rose from 0.3 to 2.9"),),
        ),
        make_run("aa06", "resnet56", "w1a4", end=None, epochs_done=0, ago_s=70),
    ]


@pytest.fixture
def dashboard(root: Path) -> Callable[..., TqApp]:
    """A dashboard with a stopped clock that reads the disk only on `await app.polled()`."""

    def build(run: Path | None = None, *, clock: Callable[[], float] = lambda: NOW, **options: Any) -> TqApp:
        return TqApp(root, run, clock=clock, **{"every_s": 3600, "system": lambda: SYSTEM, **options})

    return build


@pytest.fixture
def append() -> Callable[..., None]:
    """append(path, {"k": "step", ...}, ...): more events for a run, a second apart and up to now."""

    def write(path: Path, *events: dict[str, object]) -> None:
        with (path / "events.jsonl").open("ab") as file:
            for i, event in enumerate(events):
                file.write(encode({"t": NOW - len(events) + 1 + i, **event}))

    return write


@pytest.fixture
def text_of() -> Callable[[TqApp, str], str]:
    """text_of(app, "#status"): the text of a static on the screen; "" while the screen has none of that name."""

    def read(app: TqApp, selector: str) -> str:
        for static in app.screen.query(selector).results(Static):
            return static.content.plain if isinstance(static.content, Content) else str(static.content)
        return ""

    return read


@pytest.fixture
def said() -> Callable[[TqApp], str]:
    """said(app): the toasts that were shown."""
    return lambda app: " | ".join(note.message for note in app._notifications)


@pytest.fixture
def settle() -> Callable[..., Awaitable[None]]:
    """await settle(app, lambda: ...): poll until something is so."""

    async def until(app: TqApp, done: Callable[[], bool], *, within_s: float = 60) -> None:
        async with asyncio.timeout(within_s):
            while not done():
                await app.polled()
                await asyncio.sleep(0.01)

    return until
