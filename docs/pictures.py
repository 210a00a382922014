"""Record the dashboard: the README's two pictures, and with --frames DIR a picture for every so many seconds of a run.

    python docs/pictures.py
    python docs/pictures.py --frames frames --every 2

Drawn without a terminal from the recorded runs of `tq tui --demo`, so that anybody gets the same ones.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tq import runs
from tui.app import TqApp
from tui.demo import RECORDED, Recording, Replay
from tui.frame import screenshot
from tui.system import System

DOCS = Path(__file__).parent
# In the middle of a working day, 60 % into the run that is under way.
NOON = 1_795_176_000.0
SHARE = 0.6


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, help="directory for a series of pictures of the run under way")
    parser.add_argument("--every", type=float, default=2.0, help="seconds of the run between two of them")
    flags = parser.parse_args()
    seconds = Recording.read(sorted(RECORDED.glob("*.jsonl"))[-1]).seconds
    now = [NOON]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        root.mkdir()
        replay = Replay(root, clock=lambda: now[0])
        last = runs.list_runs(root)[0]

        def draw(path: Path, run: Path | None) -> None:
            app = TqApp(root, run, clock=lambda: now[0], every_s=3600, system=lambda: System(97.0, 2.1e9, 25.3e9))
            screenshot(app, path)
            print(path)

        if flags.frames:
            flags.frames.mkdir(parents=True, exist_ok=True)
            number = 0
            while now[0] < NOON + seconds:
                replay.advance()
                draw(flags.frames / f"{number:04}.svg", last)
                now[0], number = now[0] + flags.every, number + 1
        else:
            now[0] = NOON + SHARE * seconds
            replay.advance()
            draw(DOCS / "runs.svg", None)
            draw(DOCS / "dashboard.svg", last)
        replay.close()


if __name__ == "__main__":
    main()
