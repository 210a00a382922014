"""What `tq train` shows where there is no dashboard: one live line in a terminal, plain lines in a file. On stderr.

`Tee` stands in for a run's event log and passes every event on, so that the display needs no word from the trainer;
`Progress` reduces the events exactly as `tq runs` and the dashboard do (tq.history).
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from tq.events import EventLog, number
from tq.history import History
from tq.liveness import duration
from tq.run_state import Eval, RunState

REFRESH_PER_S = 4
LINE_EVERY_S = 10.0


class Stderr(Console):
    """Standard error; a reader that has gone away is an OSError here, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the error."""
        raise BrokenPipeError


class Progress:
    """Shows the events that it is given. A context manager; `close` takes the live line away.

    quiet shows nothing. console is for tests; by default stderr, which is live only where it is a terminal.
    NO_COLOR and TERM=dumb are respected (rich).
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._console = console or Stderr(stderr=True, force_interactive=_terminal())
        self._quiet, self._clock = quiet, clock
        self._history, self._state = History(), RunState()
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        self._line_t = -math.inf
        self._snapshot_t = -math.inf
        self._phase = ""

    def emit(self, kind: str, /, **fields: Any) -> None:
        """Take one event, of the kinds and fields of tq.events."""
        if self._quiet:
            return
        now = self._clock()
        self._history.feed([{"t": now, "k": kind, **fields}])
        # A snapshot copies the whole history, which a fast step need not pay for.
        if kind != "step" or not 0 <= now - self._snapshot_t < 1 / REFRESH_PER_S:
            self._state, self._snapshot_t = self._history.snapshot(), now
        try:
            self._show(kind, fields, now)
        except OSError:
            # The reader of a pipe has gone: training goes on without a display.
            self._quiet = True

    def close(self) -> None:
        """Take the live line away. Harmless when repeated; later events start it anew."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _show(self, kind: str, fields: dict[str, Any], now: float) -> None:
        if kind == "end":
            self.close()
            return
        if self._console.is_interactive and self._live is None:
            self._live = Live(
                get_renderable=self._line, console=self._console, refresh_per_second=REFRESH_PER_S, transient=True
            )
            self._live.start()
        if kind == "eval" and self._state.evals:
            self._print(_eval_line(self._state))
        elif kind == "alert" and fields.get("level") != "error":
            # An error ends the run, and the command then says it itself.
            self._print(f"{fields.get('level')}: {fields.get('title')}: {fields.get('text')}")
        elif kind == "phase" and self._live is None and fields.get("name") not in (self._phase, "eval"):
            self._phase = str(fields.get("name"))
            self._print(self._phase)
        elif kind == "step" and self._live is None and not 0 <= now - self._line_t < LINE_EVERY_S:
            self._line_t = now
            self._print("  ".join(_facts(self._state)))

    def _print(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=self._live is None)

    def _line(self) -> Table:
        """The live line; drawn anew by rich's own thread, so it may only read."""
        state = self._state
        line = Table.grid(padding=(0, 1))
        for _ in range(3):
            line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis")
        if state.phase not in ("train", "float", "eval"):
            # No step ends in these phases, so the seconds that they have taken are the only sign of life.
            waited = duration(max(0.0, self._clock() - state.phase_t)) if state.phase_t else ""
            line.add_row(self._spinner, state.phase, waited, "")
            return line
        width = max(6, min(30, self._console.width - 66))
        bar = ProgressBar(total=max(1, state.total_steps), completed=state.step, width=width)
        line.add_row(self._spinner, state.phase, bar, "  ".join(_facts(state)))
        return line


class Tee:
    """An event log that also shows: hand it to the trainer in the place of `run.log`, whose methods it has."""

    def __init__(self, log: EventLog, display: Progress) -> None:
        self.path = log.path
        self._log, self._display = log, display

    def emit(self, kind: str, /, **fields: Any) -> None:
        """Log, then show."""
        self._log.emit(kind, **fields)
        self._display.emit(kind, **fields)

    def step(self, **fields: Any) -> None:
        """Log, then show, a step."""
        self._log.step(**fields)
        self._display.emit("step", **fields)

    def sync(self) -> None:
        """Flush the log to the disk."""
        self._log.sync()

    def close(self) -> None:
        """Close the log and the display."""
        self._display.close()
        self._log.close()


def _terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _facts(state: RunState) -> list[str]:
    """epoch 3/10, loss, accuracy, speed and time to go, as far as they are known."""
    # Before the first step of an epoch ends, the last one counts: a run of one epoch must not read 0/1.
    facts = [f"epoch {max(1, state.epoch)}/{state.epochs}" if state.epochs else f"step {state.step}"]
    for label, value, form in (("loss", state.loss, ".3f"), ("acc", state.acc, ".1f")):
        if not math.isnan(value):
            facts.append(f"{label} {value:{form}}")
    if state.img_s > 0:
        facts.append(f"{state.img_s:,.0f} img/s")
    if not math.isnan(state.eta_s):
        facts.append(f"{duration(state.eta_s)} left")
    return facts


def _eval_line(state: RunState) -> str:
    last: Eval = state.evals[-1]
    accuracy, best = number(last.acc), state.best_acc
    of = f"/{state.epochs}" if state.epochs else ""
    mark = " *" if accuracy == best else f"  best {best:.2f}"
    return f"epoch {last.epoch:.0f}{of}  {last.split} loss {last.loss:.4f}  acc {accuracy:.2f} %{mark}"
