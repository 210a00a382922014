"""tq.progress: what a terminal, a file and nobody get to see; the tee in the place of the event log."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tq.events import EventLog, tail
from tq.progress import Progress, Stderr, Tee


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run_through(emit: Callable[..., Any], clock: Clock) -> None:
    """A run of two epochs, 60 steps each, a step a second."""
    emit("phase", name="data")
    emit("start", epochs=2, steps_per_epoch=60, resumed_from=None)
    emit("phase", name="compile")
    clock.now += 30
    for epoch in (1, 2):
        emit("phase", name="train")
        for step in range(60):
            clock.now += 1
            done = (epoch - 1) * 60 + step + 1
            emit("step", step=done, epoch=epoch, loss=2.0 / done, acc=10.0 + done, lr=0.1, img_s=512.0)
        emit("phase", name="eval")
        emit("eval", step=60 * epoch, epoch=epoch, split="test", loss=0.5, acc=92.5 - epoch)
    emit("alert", level="warning", title="odd", text="[red]fell[/red]")
    emit("alert", level="error", title="said by the command", text="itself")
    emit("end", status="ok", summary={})


def plain(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width)


def terminal(width: int = 100, **options: Any) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=width, **options)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_in_a_file_is_plain_lines() -> None:
    clock, console = Clock(), plain(width=40)
    with Progress(console=console, clock=clock) as progress:
        run_through(progress.emit, clock)
    lines = text_of(console).splitlines()
    assert [line for line in lines if " " not in line] == ["data", "compile", "train"]
    assert "epoch 1/2  test loss 0.5000  acc 91.50 % *" in lines
    assert "epoch 2/2  test loss 0.5000  acc 90.50 %  best 91.50" in lines
    # 120 seconds of steps, a line every ten
    assert sum("img/s" in line for line in lines) == 12
    assert any(line.startswith("epoch 2/2  loss 0.0") and line.endswith("left") for line in lines)
    assert lines[-1] == "warning: odd: [red]fell[/red]"
    assert "\x1b" not in text_of(console)
    assert "\r" not in text_of(console)


def test_progress_in_a_terminal_is_one_line_and_the_evals() -> None:
    clock, console = Clock(), terminal()
    progress = Progress(console=console, clock=clock)
    run_through(progress.emit, clock)
    shown = text_of(console)
    assert shown.count("acc 91.50 %") == 1
    assert "warning: odd: [red]fell[/red]" in shown
    # the cursor is given back
    assert shown.endswith(("\x1b[?25h", "\x1b[2K")) or "\x1b[?25h" in shown
    progress.close()
    progress.close()


def test_live_line_shows_the_phase() -> None:
    clock, progress = Clock(), Progress(console=terminal(), clock=Clock())
    progress._clock = clock
    shown = Console(file=io.StringIO(), width=100)
    with progress:
        progress.emit("start", epochs=2, steps_per_epoch=60)
        progress.emit("phase", name="compile")
        clock.now += 42
        shown.print(progress._line())
        assert "compile 42s" in text_of(shown)
        progress.emit("phase", name="train")
        clock.now += 1
        progress.emit("step", step=30, epoch=1, loss=1.25, acc=50.0, img_s=1234.0)
        shown.print(progress._line())
        assert "epoch 1/2  loss 1.250  acc 50.0  1,234 img/s" in text_of(shown)
        for width in (20, 40, 80):
            narrow = Console(file=io.StringIO(), width=width)
            narrow.print(progress._line())
            assert len(text_of(narrow).splitlines()) == 1


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    clock, console = Clock(), terminal(color_system="truecolor")
    with Progress(console=console, clock=clock) as progress:
        run_through(progress.emit, clock)
    assert "\x1b[3" not in text_of(console)


def test_quiet_shows_nothing() -> None:
    clock, console = Clock(), plain()
    run_through(Progress(quiet=True, console=console, clock=clock).emit, clock)
    assert text_of(console) == ""


def test_progress_outlives_its_reader() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    clock = Clock()
    run_through(Progress(console=Stderr(file=Gone(), force_terminal=False), clock=clock).emit, clock)


def test_tee_logs_everything_and_shows_it(tmp_path: Path) -> None:
    console = plain()
    log = EventLog(tmp_path / "events.jsonl")
    tee = Tee(log, Progress(console=console))
    assert tee.path == log.path
    tee.emit("phase", name="train")
    tee.step(step=1, epoch=1, loss=1.0, acc=50.0)
    tee.emit("eval", step=1, epoch=1, split="test", loss=1.0, acc=50.0)
    tee.sync()
    tee.close()
    assert [event["k"] for event in tail(log.path)[0]] == ["phase", "step", "eval"]
    assert text_of(console).splitlines()[-1].startswith("epoch 1  test loss 1.0000  acc 50.00 %")
