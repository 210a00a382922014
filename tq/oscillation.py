"""Which weights change their code, which of them turn back and forth, and holding those that do.

Nagel, Fournarakis, Bondarenko and Blankevoort, "Overcoming Oscillations in Quantization-Aware Training" (2022,
arXiv 2203.11086), section 3.2 and algorithm 1. With c the integer code of a weight, at each observation

    turned = c changed, in the other direction than at its last change        f = (1 - m) f + m * turned
    mean   = (1 - m) mean + m * c                                             m = 0.01

f is how often a weight oscillates; one with f above a threshold is frozen at the code nearest to its mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tq.attach import quant_layers
from tq.layers import QuantLayer
from tq.quantizers import PowerOfTwo

MOMENTUM = 0.01
# "oscillating" in a report: the paper counts weights above this
OSCILLATES = 0.005
_STATE = ("codes", "direction", "often", "mean", "frozen", "held")


class Oscillation:
    """Observes the codes of every layer with integer weights.

    Call `hold()` after each step of the optimizer where `threshold` is above 0: it freezes weights whose f passes it.
    Otherwise `flips()`, when a report is due, is the only observation, and f is then per report.
    """

    def __init__(self, model: nn.Module, *, threshold: float = 0.0) -> None:
        self.threshold = threshold
        self.tracks = {
            name: _Track(layer, freezes=threshold > 0)
            for name, layer in quant_layers(model).items()
            if layer.weight_quantizer is not None and not isinstance(layer.weight_quantizer, PowerOfTwo)
        }
        self.total = sum(track.codes.numel() for track in self.tracks.values())

    @torch.no_grad()
    def hold(self) -> None:
        """Observe, freeze what oscillates, put frozen weights back."""
        for track in self.tracks.values():
            track.observe()
            track.freeze(self.threshold)

    @torch.no_grad()
    def flips(self) -> Tensor | None:
        """Share of all codes that differ from the last call, 0-dim float32 on the device; None without codes."""
        if not self.tracks:
            return None
        if not self.threshold:
            for track in self.tracks.values():
                track.observe()
        return torch.stack([track.flipped() for track in self.tracks.values()]).sum() / self.total

    @torch.no_grad()
    def layers(self) -> dict[str, dict[str, float]]:
        """Per layer: shares of codes changed since the last call, oscillating, frozen. Waits for the device."""
        if not self.threshold:
            for track in self.tracks.values():
                track.observe()
        return {name: track.account() for name, track in self.tracks.items()}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What a resumed run with a threshold needs."""
        return {name: {key: getattr(track, key) for key in _STATE} for name, track in self.tracks.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Take over `state_dict()`."""
        for name, saved in state.items():
            for key, value in saved.items():
                getattr(self.tracks[name], key).copy_(value)


class _Track:
    """The codes of one layer over time."""

    @torch.no_grad()
    def __init__(self, layer: QuantLayer, *, freezes: bool) -> None:
        self.layer = layer
        self.one_bit = layer.weight_quantizer is not None and layer.weight_quantizer.bits == 1
        self.codes = self._now()
        self.direction = torch.zeros_like(self.codes)
        self.often = torch.zeros_like(self.codes, dtype=torch.float32)
        kept = self.codes if freezes else self.codes.new_zeros(0)
        self.mean, self.frozen, self.held = kept.float(), torch.zeros_like(kept, dtype=torch.bool), kept.clone()
        self.reported, self.accounted = self.codes.clone(), self.codes.clone()

    def _now(self) -> Tensor:
        if self.one_bit:
            # by sign: with hysteresis the weights are not codes
            return torch.where(self.layer.weight >= 0, 1, -1).to(torch.int8)
        return self.layer.weight_codes()[0].round().to(torch.int8)

    def observe(self) -> None:
        codes = self._now()
        change = torch.sign(codes.to(torch.int16) - self.codes).to(torch.int8)
        turned = change * self.direction < 0
        self.often.lerp_(turned.float(), MOMENTUM)
        self.direction.copy_(torch.where(change != 0, change, self.direction))
        self.codes.copy_(codes)

    def freeze(self, threshold: float) -> None:
        self.mean.lerp_(self.codes.float(), MOMENTUM)
        nearest = torch.where(self.mean >= 0, 1.0, -1.0) if self.one_bit else self.mean.round()
        new = (self.often > threshold) & ~self.frozen
        self.held.copy_(torch.where(new, nearest.to(torch.int8), self.held))
        self.frozen |= new
        weight, scale = self.layer.weight, self.layer.weight_codes()[1]
        value = self.held * scale.view(-1, *[1] * (weight.ndim - 1))
        weight.copy_(torch.where(self.frozen, value, weight))

    def flipped(self) -> Tensor:
        count = (self.codes != self.reported).sum()
        self.reported.copy_(self.codes)
        return count

    def account(self) -> dict[str, float]:
        shares = [(self.codes != self.accounted).float().mean(), (self.often > OSCILLATES).float().mean()]
        self.accounted.copy_(self.codes)
        names = ["flips", "oscillating"]
        if self.frozen.numel():
            shares.append(self.frozen.float().mean())
            names.append("frozen")
        return dict(zip(names, torch.stack(shares).tolist(), strict=True))
