"""Stands in for `tq`: the same run directory, events and signals as a trainer, in 0.1 s and without torch.

python trainer.py train ... --run-dir PATH        python trainer.py train --resume PATH
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from tq import runs


def main() -> None:
    """Train until told to stop."""
    argv = sys.argv[1:]
    if "--resume" in argv:
        run, since = runs.reopen(Path(argv[argv.index("--resume") + 1])), 3
    else:
        path = Path(argv[argv.index("--run-dir") + 1])
        run, since = (
            runs.create(
                path.parent, name="cnn-w1a2", argv=sys.argv, config={}, seed=0, versions={}, device="cpu", path=path
            ),
            0,
        )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    run.log.emit("start", epochs=2, steps_per_epoch=10, resumed_from=since)
    run.log.emit("phase", name="train")
    for step in range(since + 1, since + 4):
        run.log.emit("step", step=step, epoch=1, loss=2.0 / step, acc=10.0 * step, lr=0.1, img_s=100.0)
    print("three steps done", flush=True)
    stop.wait()
    run.log.emit("checkpoint", step=3, path="checkpoint.pt", best=False)
    run.log.emit("end", status="stopped")
    run.close()


if __name__ == "__main__":
    main()
