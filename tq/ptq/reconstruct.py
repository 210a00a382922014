"""AdaRound and block reconstruction: learn which way each weight is rounded, so that a unit's outputs stay the same.

AdaRound (Nagel et al., arXiv 2004.10568): w = s clip(floor(W / s) + h(V), n, p) with the rectified sigmoid

    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), zeta = 1.1, gamma = -0.1          (eq. 23)
    f(V) = sum 1 - |2 h(V) - 1|^beta, beta annealed from 20 to 2 after a warm start of 20 %  (eq. 24)

A unit is a layer, or a residual block as a whole (BRECQ, arXiv 2102.05426). Its inputs come from the network as it is
quantized so far, its targets from the float network. While it learns, each input element skips its quantization with
probability 0.5 (QDrop, arXiv 2203.05740, eq. 8), and input steps learn with LSQ's gradient (arXiv 1902.08153).
Here a folded bias and a gain per channel learn as well; both end in the batch normalization, or in the bias.

Blocks learn by straight-through rounding instead of h(V): with a few hundred iterations in place of 20,000 it ends at a
quarter of AdaRound's error (LOG.md), and a code may move by more than one.

Loss: mse / (mse before) + strength * mean f, free of the scale of a unit's outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq.layers import QuantConv2d, QuantLayer
from tq.quantizers import PACT, LearnedStep, LearnedWeight, per_weight

_GAMMA, _ZETA = -0.1, 1.1
_BETAS = (20.0, 2.0)
_WARM = 0.2


@dataclass(frozen=True)
class Rates:
    """Settings of one unit's optimization; the rates are those of Adam at the start of a cosine.

    rounding None: the rounder's own rate; affine: of gain and bias; steps: of input steps, relative to them.
    """

    iterations: int = 150
    rounder: str = "straight-through"
    batch: int = 16
    rounding: float | None = None
    affine: float = 3e-3
    steps: float = 1e-3
    strength: float = 1.0
    drop: float = 0.5


class _FakeQuantize(torch.autograd.Function):
    """clip(round(x / s), low, high) s with LSQ's gradients; elements where `keep` stay as they are."""

    @staticmethod
    def forward(ctx, x, step, low, high, binary, keep):  # type: ignore[no-untyped-def]
        scaled = x * step.reciprocal()
        codes = torch.where(scaled >= 0, 1.0, -1.0) if binary else scaled.round().clamp_(low, high)
        ctx.save_for_backward(scaled, codes, keep)
        ctx.bounds = (low, high)
        values = codes * step
        return values if keep is None else torch.where(keep, x, values)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        scaled, codes, keep = ctx.saved_tensors
        inside = (scaled >= ctx.bounds[0]) & (scaled <= ctx.bounds[1])
        slope = codes - scaled * inside
        if keep is not None:
            slope.masked_fill_(keep, 0.0)
            inside |= keep
        return grad * inside, torch.dot(grad.flatten(), slope.flatten()).view(()), None, None, None, None


class Rectified(nn.Module):
    """AdaRound's choice between floor and ceiling of W / s, eqs. 23 and 24."""

    # ten times the paper's, for a tenth of its iterations and less
    rate = 0.1

    def __init__(self, scaled: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.floor = scaled.floor()
        # at 0 and 1 the logits would be infinite
        rest = (scaled - self.floor).clamp(0.01, 0.99)
        self.logits = nn.Parameter(-torch.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1))

    def up(self) -> Tensor:
        """h(V), in [0, 1]."""
        return (torch.sigmoid(self.logits) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def codes(self, *, hard: bool = False) -> Tensor:
        """Codes [O, ...], between two integers while it learns, or rounded."""
        up = self.up()
        return (self.floor + ((up >= 0.5).float() if hard else up)).clamp(self.low, self.high)

    def settle(self) -> None:
        """After a step of the optimizer: nothing."""

    def penalty(self, beta: float) -> Tensor:
        """f(V) as a mean over the weights."""
        return 1 - (2 * self.up() - 1).abs().pow(beta).mean()


class StraightThrough(nn.Module):
    """Codes round(P) of trained values P that start at W / s; any code may become any other."""

    rate = 2e-2

    def __init__(self, scaled: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.logits = nn.Parameter(scaled.clone())
        self.settle()

    def codes(self, *, hard: bool = False) -> Tensor:
        """Codes [O, ...]; the gradient passes the rounding unchanged."""
        codes = self.logits.detach().round().clamp(self.low, self.high)
        return codes if hard else codes + (self.logits - self.logits.detach())

    @torch.no_grad()
    def settle(self) -> None:
        """After a step of the optimizer: nothing runs away beyond the outermost codes."""
        self.logits.clamp_(self.low - 0.5, self.high + 0.5)

    def penalty(self, beta: float) -> Tensor:
        """Nothing: these codes are integers all the time."""
        return torch.zeros((), device=self.logits.device)


ROUNDERS: dict[str, type[Rectified] | type[StraightThrough]] = {
    "adaround": Rectified,
    "straight-through": StraightThrough,
}


class SoftLayer(nn.Module):
    """A quantized layer with rounding, steps and folded affine map to learn; stands in its place for a while."""

    def __init__(self, layer: QuantLayer, *, rates: Rates, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = [layer]  # in a list, as its parameters are not this module's
        self.drop, self.generator = rates.drop, generator
        scale, bias = layer.folded()
        self.scale = scale.detach()
        # without a batch normalization there is no place for a gain
        self.gain = nn.Parameter(torch.ones_like(bias), requires_grad=layer.bn is not None)
        self.bias = nn.Parameter(bias.detach().clone())
        self.in_step = nn.Parameter(torch.ones((), device=scale.device))
        self.learns_step = isinstance(layer.input_quantizer, LearnedStep | PACT)
        self.fixed = layer.weight_codes()[0].detach()
        self.rounder: Rectified | StraightThrough | None = None
        weights = layer.weight_quantizer
        if isinstance(weights, LearnedWeight) and weights.bits > 1:
            step = per_weight(weights(layer.weight)[1].detach(), layer.weight)
            self.rounder = ROUNDERS[rates.rounder](layer.weight.detach() / step, weights.qmin, weights.qmax)

    def codes(self, *, hard: bool = False) -> Tensor:
        """Weight codes [O, ...], as they learn or rounded; weights of 16 bits and of one bit have nothing to learn."""
        return self.fixed if self.rounder is None else self.rounder.codes(hard=hard)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.codes() * (per_weight(self.scale, self.fixed) * per_weight(self.gain, self.fixed))
        layer, x = self.layer[0], self._inputs(x)
        if isinstance(layer, QuantConv2d):
            return F.conv2d(x, weight, self.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, weight, self.bias)

    def _inputs(self, x: Tensor) -> Tensor:
        q = self.layer[0].input_quantizer
        if q is None:
            return x
        keep = None
        if self.drop > 0:
            # drawn where the generator lives; bytes are cheaper than floats
            draws = torch.empty_like(x, dtype=torch.uint8, device="cpu").random_(generator=self.generator)
            keep = (draws < round(self.drop * 256)).to(x.device)
        low, high = q.qmin - q.zero_point, q.qmax - q.zero_point
        values: Tensor = _FakeQuantize.apply(x, q.scale().to(x) * self.in_step, low, high, q.binary, keep)
        return values

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the layer what was learned; plain evaluation then computes the same."""
        layer = self.layer[0]
        if self.rounder is not None:
            weights, codes = layer.weight_quantizer, self.codes(hard=True)
            assert isinstance(weights, LearnedWeight)
            layer.weight.data.copy_(codes * per_weight(weights(layer.weight)[1], codes))
            assert torch.equal(weights(layer.weight)[0], codes)
        if layer.bn is not None:
            layer.bn.weight.mul_(self.gain)
            layer.bn.bias.add_(self.bias - layer.folded()[1])
        else:
            layer.bias = nn.Parameter(self.bias.detach().clone())
        if (q := layer.input_quantizer) is not None and self.learns_step:
            q.set_range(float(q.scale().to(self.in_step) * self.in_step), q.zero_point)


@torch.enable_grad()
def reconstruct(
    unit: nn.Module,
    soft: list[SoftLayer],
    x: Tensor,
    y: Tensor,
    *,
    rates: Rates,
    reference: float,
    generator: torch.Generator,
) -> None:
    """Learn the soft layers of a unit (already in their places) so that unit(x) comes near y.

    x, y: float32 [N, ...]; reference: the mse before, which the loss is divided by.
    """
    device = soft[0].scale.device
    rounders = [s.rounder for s in soft if s.rounder is not None]
    groups = [
        ([r.logits for r in rounders], rates.rounding or ROUNDERS[rates.rounder].rate),
        ([p for s in soft for p in (s.gain, s.bias) if p.requires_grad], rates.affine),
        ([s.in_step for s in soft if s.learns_step], rates.steps),
    ]
    parameters = [p for group, _ in groups for p in group]
    optimizer = torch.optim.Adam([{"params": group, "lr": rate} for group, rate in groups if group])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rates.iterations)
    for i in range(rates.iterations):
        index = torch.randint(len(x), (min(rates.batch, len(x)),), generator=generator)
        loss = F.mse_loss(unit(x[index].to(device)), y[index].to(device)) / reference
        if i >= _WARM * rates.iterations:
            progress = (i / rates.iterations - _WARM) / (1 - _WARM)
            beta = _BETAS[1] + (_BETAS[0] - _BETAS[1]) * (1 - progress)
            loss = loss + rates.strength * sum(rounder.penalty(beta) for rounder in rounders) / max(len(rounders), 1)
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        optimizer.step()
        schedule.step()
        for rounder in rounders:
            rounder.settle()
