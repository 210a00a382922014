"""The checkpoint that a run is resumed from: tensors and a position, written whole or not at all."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tq.atomic import atomic


@dataclass
class Position:
    """Where a run stands; all that a checkpoint holds beside tensors."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    last: float = -1.0
    float_accuracy: float | None = None


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """tmp + fsync + rename. Raises OSError; the last checkpoint is then still there."""
    # through memory: torch.save would hide a full disk behind an error of its own
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic(path, otherwise="the last checkpoint is kept") as file:
        file.write(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents. Raises ValueError when it is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint {path} cannot be read ({reason}); start the run anew") from None
    wanted = {"version", "config", "position", "model", "optimizer"}
    if not isinstance(state, dict) or not wanted <= state.keys() or state["version"] != 1:
        raise ValueError(f"checkpoint {path} is not one of this program's (version 1); start the run anew")
    return state
