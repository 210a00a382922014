"""`tq tui --demo`: recorded runs, written again as if they were under way, so that the dashboard can be tried at once.

`tui/demo/*.jsonl` were made by `tq train --dataset digits` and by `python -m tui.demo record RUN...`. The first line of
each is the manifest and what was printed; the others are its events. The runs are written into a directory as a trainer
would write them; of the last one the events come at their time. All that is not real is when they happened.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tq import events, runs
from tq.events import Event, EventLog

RECORDED = Path(__file__).with_name("demo")
READ_ONLY = "this is a replay of recorded runs: nothing can be started or stopped"
# So much of the running one has happened when the dashboard opens.
HEAD_START = 0.3
AGES_S = 3600.0
# A recording keeps no more steps than a chart can show.
STEPS = 240


@dataclass(frozen=True)
class Recording:
    """A run as it was recorded."""

    manifest: dict[str, Any]
    output: str
    events: tuple[Event, ...]

    @staticmethod
    def read(path: Path) -> Recording:
        """Of a file of tui/demo."""
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        found = json.loads(head)
        kept = tuple(event for line in lines if (event := events.decode(line.encode())))
        return Recording(found["manifest"], found["output"], kept)

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return float(self.events[-1]["t"] - self.events[0]["t"])


class Replay:
    """Writes the recordings into `root`; call `advance()` as often as you like, and `close()`."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        *over, last = [Recording.read(path) for path in sorted(RECORDED.glob("*.jsonl"))]
        now = clock()
        for i, one in enumerate(over):
            run = _begin(root, one, now - (len(over) - i) * AGES_S)
            _write(run, one.events, now - (len(over) - i) * AGES_S - one.events[0]["t"])
            run.close()
        # The recorded time of what happens now is the clock's minus this.
        self._shift = now - HEAD_START * last.seconds - last.events[0]["t"]
        self._run = _begin(root, last, now)
        self._left = list(last.events)
        self.advance()
        # A trainer that has just taken the run is believed from its first new event on: say the last one again.
        heard = [event for event in last.events if event["k"] == "sys"][-1]
        _write(self._run, [{**heard, "t": clock() - self._shift}], self._shift)

    def advance(self) -> None:
        """Write the events whose time has come; the last of them ends the run."""
        due = self._clock() - self._shift
        come = [event for event in self._left if event["t"] <= due]
        if come:
            self._left = self._left[len(come) :]
            _write(self._run, come, self._shift)
            if not self._left:
                self._run.close()

    def close(self) -> None:
        """Let go of the run."""
        self._run.close()


def _begin(root: Path, one: Recording, created: float) -> runs.Run:
    name = one.manifest["name"]
    tag = str(one.manifest["id"]).rpartition("-")[2]
    path = root / f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(created))}-{name}-{tag}"
    path.mkdir(parents=True)
    manifest = {**one.manifest, "id": path.name, "created": created}
    (path / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    (path / "out.log").write_text(one.output, encoding="utf-8")
    return runs.reopen(path)


def _write(run: runs.Run, recorded: tuple[Event, ...] | list[Event], shift: float) -> None:
    at = [0.0]
    log = EventLog(run.path / "events.jsonl", clock=lambda: at[0])
    for event in recorded:
        at[0] = event["t"] + shift
        log.emit(event["k"], **{key: value for key, value in event.items() if key not in ("t", "k")})
    log.close()


def record(run: Path, out: Path) -> None:
    """Keep a run of this machine as a recording: fewer steps, and nothing that says where it ran."""
    found, _ = events.tail(run / "events.jsonl")
    steps = [event for event in found if event["k"] == "step"]
    kept = {id(event) for event in steps[:: max(1, len(steps) // STEPS)]}
    manifest = {key: value for key, value in runs.manifest(run).items() if key not in ("cwd", "host", "git", "parent")}
    manifest["argv"] = ["tq", "train", *_without_paths(manifest["argv"])]
    output = (run / "out.log").read_text(encoding="utf-8") if (run / "out.log").exists() else ""
    lines = [json.dumps({"manifest": manifest, "output": output}).encode() + b"\n"]
    lines += [events.encode(_trimmed(event)) for event in found if event["k"] != "step" or id(event) in kept]
    out.write_bytes(b"".join(lines))


def _without_paths(argv: list[str]) -> list[str]:
    words = argv[argv.index("train") + 1 :]
    for flag in ("--runs", "--run-dir", "--show"):
        if flag in words:
            at = words.index(flag)
            words = words[:at] + words[at + 2 :]
    return words


def _trimmed(event: Event) -> Event:
    """Five digits are more than a chart shows; paths and hosts are nobody's business."""
    own = {key: round(v, 5) if isinstance(v, float) and key != "t" else v for key, v in event.items() if key != "host"}
    if isinstance(summary := own.get("summary"), dict):
        own["summary"] = {key: value for key, value in summary.items() if key not in ("run", "file")}
    return own


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    for number, name in enumerate(sys.argv[2:]):
        path = Path(name)
        record(path, RECORDED / f"{number}-{runs.manifest(path)['name']}.jsonl")
