"""Write a packed file and prove it: reload it and compare its predictions with the network in training form."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tq import checkpoint
from tq.divergence import compare, first_divergence
from tq.evaluate import Evaluation, evaluate, largest_difference
from tq.file_info import Info
from tq.layers import channels_last

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Proof:
    """What was measured: the simulated network, the packed one as read back, and the file between them."""

    simulated: Evaluation
    packed: Evaluation
    bytes: int
    largest_difference: float


def save_verified(
    model: nn.Module,
    path: Path,
    info: Info,
    batches: Batches,
    *,
    tolerance: float = 0.0,
    own_model: nn.Module | None = None,
) -> Proof:
    """Save a network (training form or float), reload the file and compare logits on all of `batches`.

    own_model: a fresh float network to load into, where the file names no builder of tq.

    Raises:
        ValueError: some logit differs by more than `tolerance`; the file is then not left behind.
        OSError: the directory is read-only or full.
    """
    simulated = evaluate(model, batches())
    metrics: dict[str, Any] = {
        "accuracy": round(simulated.accuracy, 4),
        "correct": simulated.correct,
        "total": simulated.total,
    }
    partial = path.with_name(path.name + ".unverified")
    try:
        size = checkpoint.save(model, partial, replace(info, metrics={**info.metrics, **metrics}))
        device = next(model.parameters()).device
        loaded = checkpoint.load(partial, model=own_model, device=device)
        packed = evaluate(loaded, batches())
        difference = largest_difference(simulated.logits, packed.logits)
        if difference > tolerance or not torch.isfinite(torch.tensor(difference)):
            rows = compare(model.eval(), loaded, (channels_last(x) for x, _ in batches()))
            where = row.name if (row := first_divergence(rows)) else "no layer"
            raise ValueError(
                f"the file read back predicts differently: a logit is off by {difference:.3g}, allowed is "
                f"{tolerance:.3g}, first in layer {where}; {path} is not written, please report this"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return Proof(simulated, packed, size, difference)
