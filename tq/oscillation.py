"""Which weights change their code, which of them turn back and forth, and holding those that do.

Nagel, Fournarakis, Bondarenko and Blankevoort, "Overcoming Oscillations in Quantization-Aware Training" (2022,
arXiv 2203.11086), section 3.2 and algorithm 1. With c the integer code of a weight, after each step of the optimizer

    turned = c changed, in the other direction than at its last change        f = (1 - m) f + m * turned
    mean   = (1 - m) mean + m * c                                             m = 0.01

f is how often a weight oscillates; one with f above a threshold is frozen at the code nearest to its mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tq.attach import quant_layers
from tq.layers import QuantLayer
from tq.quantizers import PowerOfTwo, per_weight

MOMENTUM = 0.01
# "oscillating" in a report: the paper counts weights above this
OSCILLATES = 0.005
_STATE = ("codes", "direction", "often", "changed", "mean", "frozen", "held")


class Oscillation:
    """Observes the codes of every layer with integer weights: call `observe()` after each step of the optimizer.

    With a `threshold` above 0, `observe()` also freezes the weights whose f passes it.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None, *, threshold: float = 0.0) -> None:
        """optimizer: needed where it holds latent weights (HysteresisSGD), which are then what is frozen."""
        self.threshold = threshold
        self.tracks = {
            name: _Track(layer, optimizer, freezes=threshold > 0)
            for name, layer in quant_layers(model).items()
            if layer.weight_quantizer is not None and not isinstance(layer.weight_quantizer, PowerOfTwo)
        }
        self.total = sum(track.codes.numel() for track in self.tracks.values())
        self.steps = 0
        """since the last `layers()`"""
        self._told: Tensor | int = 0

    @torch.no_grad()
    def observe(self) -> None:
        """Count what has changed, freeze what oscillates, put frozen weights back."""
        self.steps += 1
        for track in self.tracks.values():
            track.observe()
            if self.threshold:
                track.freeze(self.threshold)

    @torch.no_grad()
    def flips(self) -> Tensor | None:
        """Changes of codes since the last call, as a share of all codes: 0-dim, on the device; None without codes."""
        if not self.tracks:
            return None
        changed = self._changed()
        share = (changed - self._told) / self.total
        self._told = changed
        return share

    @torch.no_grad()
    def layers(self) -> dict[str, dict[str, float]]:
        """Per layer the shares of its codes that changed in a step (mean since the last call), that oscillate, that are
        frozen. Waits for the device."""
        if not self.tracks:
            return {}
        # flips() goes on from what it has told
        self._told = self._told - self._changed()
        found = {name: track.account(max(1, self.steps)) for name, track in self.tracks.items()}
        self.steps = 0
        return found

    def _changed(self) -> Tensor:
        return torch.stack([track.changed for track in self.tracks.values()]).sum()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        tracks = {name: {key: getattr(track, key) for key in _STATE} for name, track in self.tracks.items()}
        return {"steps": self.steps, "tracks": tracks}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over `state_dict()`."""
        for name, saved in state["tracks"].items():
            for key, value in saved.items():
                getattr(self.tracks[name], key).copy_(value)
        self.steps = state["steps"]
        self._told = self._changed() if self.tracks else 0


class _Track:
    """The codes of one layer over time."""

    @torch.no_grad()
    def __init__(self, layer: QuantLayer, optimizer: Optimizer | None, *, freezes: bool) -> None:
        self.layer, self.optimizer = layer, optimizer
        self.one_bit = layer.weight_quantizer is not None and layer.weight_quantizer.bits == 1
        self.codes = self._now()
        self.direction = torch.zeros_like(self.codes)
        self.often = torch.zeros_like(self.codes, dtype=torch.float32)
        kept = self.codes if freezes else self.codes.new_zeros(0)
        self.mean, self.frozen, self.held = kept.float(), torch.zeros_like(kept, dtype=torch.bool), kept.clone()
        self.changed = torch.zeros((), dtype=torch.int64, device=self.codes.device)

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
        self.changed += change.count_nonzero()

    def freeze(self, threshold: float) -> None:
        self.mean.lerp_(self.codes.float(), MOMENTUM)
        nearest = torch.where(self.mean >= 0, 1.0, -1.0) if self.one_bit else self.mean.round()
        new = (self.often > threshold) & ~self.frozen
        self.held.copy_(torch.where(new, nearest.to(torch.int8), self.held))
        self.frozen |= new
        # looked up anew: an optimizer that takes over a state_dict has new tensors
        state = self.optimizer.state.get(self.layer.weight, {}) if self.optimizer is not None else {}
        if "latent" in state:
            self._freeze_latent(state["latent"], state["old_sign"])
            return
        weight, scale = self.layer.weight, self.layer.weight_codes()[1]
        value = self.held * per_weight(scale, weight)
        weight.copy_(torch.where(self.frozen, value, weight))

    def _freeze_latent(self, latent: Tensor, old_sign: Tensor) -> None:
        """Weights that an optimizer makes of latent ones: those keep their size and get the held sign."""
        for tensor in (latent, self.layer.weight, old_sign):
            tensor.copy_(torch.where(self.frozen, self.held * tensor.abs(), tensor))

    def account(self, steps: int) -> dict[str, float]:
        shares = [self.changed / (self.codes.numel() * steps), (self.often > OSCILLATES).float().mean()]
        self.changed.zero_()
        names = ["flips", "oscillating"]
        if self.frozen.numel():
            shares.append(self.frozen.float().mean())
            names.append("frozen")
        return dict(zip(names, torch.stack(shares).tolist(), strict=True))
