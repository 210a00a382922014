"""What a training step minimises.

    loss = (1 - d) cross_entropy(student, labels) + d T^2 KL(teacher || student at temperature T)
           + r / 2 * sum over one-bit weights of (|w| - s)^2,     s = the weight's scale, held fixed

Distillation: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015, arXiv 1503.02531),
section 2; the factor T^2 keeps its gradients as large as those of the labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq.attach import quant_layers
from tq.quantizers import ScaledSign


class Objective:
    """Call it with (x, logits, labels).

    Args:
        teacher: a float network in evaluation mode; None: labels only.
        share: d, 0 to 1.
        temperature: T.
        pulled: the network whose one-bit weights are pulled to +-s with strength `pull`; None: none.
        amp: bfloat16 autocast for the teacher.
    """

    def __init__(
        self,
        *,
        teacher: nn.Module | None = None,
        share: float = 0.0,
        temperature: float = 1.0,
        pulled: nn.Module | None = None,
        pull: float = 0.0,
        amp: bool = False,
    ) -> None:
        self.teacher, self.share, self.temperature, self.pull, self.amp = teacher, share, temperature, pull, amp
        layers = quant_layers(pulled).values() if pulled is not None and pull else ()
        # weights that an optimizer holds as +-s are pulled there, in its latent ones
        self.pulled = [m for m in layers if (q := m.weight_quantizer) and q.bits == 1 and not _held(q)]

    def __call__(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """x [B, C, H, W], logits [B, classes] float32, y [B] int64 -> 0-dim float32."""
        loss = F.cross_entropy(logits, y)
        if self.teacher is not None:
            loss = (1 - self.share) * loss + self.share * self._distance(x, logits)
        for layer in self.pulled:
            size = layer.weight.abs()
            scale = layer.weight_codes()[1].detach().view(-1, *[1] * (size.ndim - 1))
            loss = loss + 0.5 * self.pull * (size - scale).square().sum()
        return loss

    def _distance(self, x: Tensor, logits: Tensor) -> Tensor:
        assert self.teacher is not None
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            wanted = self.teacher(x)
        soft = (wanted.float() / self.temperature).log_softmax(1)
        own = (logits / self.temperature).log_softmax(1)
        return self.temperature**2 * F.kl_div(own, soft, reduction="batchmean", log_target=True)


def _held(quantizer: nn.Module) -> bool:
    return isinstance(quantizer, ScaledSign) and quantizer.held_by_optimizer
