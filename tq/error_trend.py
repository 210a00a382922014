"""The error trend of runs as a table: a row for each epoch of each run, for spreadsheets and for other plots.

Errors are 100 - accuracy, in percent; the train columns are means over the epoch's steps, augmented as they were;
lr, p_min, p_mean, p_max (quantized updates) and portion (INQ) are those of the epoch's last logged step. A cell is
empty where the log does not say. Standard library only.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tq.atomic import atomic
from tq.run_state import STATES, RunState
from tq.runs import manifest

COLUMNS = (
    *("run", "name", "scheme", "optimizer", "seed", "epoch", "step"),
    *("train_error", "test_error", "train_loss", "test_loss", *STATES),
)


def rows(path: Path, state: RunState) -> Iterator[dict[str, Any]]:
    """The epochs of the run at `path`, whose log says `state`; a key a column."""
    record = manifest(path)
    config = record.get("config", {})
    run = {
        "run": path.resolve().name,
        "name": record.get("name"),
        "scheme": config.get("scheme"),
        "optimizer": config.get("optimizer"),
        "seed": record.get("seed"),
    }
    # of two evaluations behind one step the last holds: it has the norms that were estimated anew
    for one in {e.step: e for e in state.held_out}.values():
        yield run | {
            "epoch": one.epoch,
            "step": one.step,
            "train_error": 100 - one.train_acc,
            "test_error": 100 - one.acc,
            "train_loss": one.train_loss,
            "test_loss": one.loss,
            **{name: getattr(one, name) for name in STATES},
        }


def write_csv(paths: list[Path], states: list[RunState], out: Path) -> Path:
    """Write the rows of the runs into `out` and return it. Raises OSError with a sentence where it cannot."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for path, state in zip(paths, states, strict=True):
        table.writerows({key: _cell(value) for key, value in row.items()} for row in rows(path, state))
    with atomic(out) as file:
        file.write(text.getvalue().encode())
    return out


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    # six digits: errors are counts of images, losses are no more exact; a whole number, such as a step, stays whole
    return "" if math.isnan(value) else int(value) if value.is_integer() else f"{value:.6g}"
