"""Accuracy and loss of a network in evaluation form, and the comparison of two networks' logits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq.hooks import evaluating
from tq.layers import channels_last


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean cross-entropy in nats; `logits` [N, classes] float32 on the CPU."""

    loss: float
    correct: int
    total: int
    logits: Tensor

    @property
    def accuracy(self) -> float:
        """Top-1, in percent."""
        return 100.0 * self.correct / self.total


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Run `model` in evaluation mode over (x, y) batches; its mode is restored. Raises ValueError on no batch."""
    logits, labels = [], []
    with evaluating(model):
        for x, y in batches:
            logits.append(model(channels_last(x)).float())
            labels.append(y)
    if not logits:
        raise ValueError("there is no image to evaluate on")
    scores, truth = torch.cat(logits), torch.cat(labels)
    correct = int((scores.argmax(1) == truth).sum())
    return Evaluation(float(F.cross_entropy(scores, truth)), correct, len(truth), scores.cpu())


def differences(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|, float64; infinity where one has NaN and the other has not, 0 where both have, or the same infinity."""
    same = (a == b) | (a.isnan() & b.isnan())
    return (a.double() - b.double()).abs().masked_fill(same, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)


def largest_difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| over two sets of logits; infinity when one has NaN where the other has not."""
    return float(differences(a, b).max()) if a.numel() else 0.0
