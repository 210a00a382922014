"""One training step: forward, loss, backward and update, compiled; and what it needs: optimizer, learning rate.

The learning rate lives in a tensor, so that a schedule changes it without a recompilation. Nothing here waits for the
device: loss and counts come back as tensors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from tq.attach import quant_layers
from tq.config import QUANTIZED_UPDATE, TrainConfig
from tq.distributed import World
from tq.objective import Objective
from tq.optim import QSGD, HysteresisSGD, QtAdam, QtAdamW, QuantizedUpdate, Resolution
from tq.quantizers import PACT, PowerOfTwo, ScaledSign


class TrainStep:
    """Call it with a batch; it updates the model and returns (loss, number correct) as 0-dim tensors.

    objective: default, the cross-entropy with the labels. after: called when the optimizer has done its step.
    world: the processes that share the batch and average their gradients; default, this one alone.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        compile: bool,
        amp: bool,
        objective: Objective | None = None,
        after: Callable[[], None] | None = None,
        world: World | None = None,
    ) -> None:
        self.model, self.optimizer, self.after = model, optimizer, after
        self.compiles = compile
        device = next(model.parameters()).device
        # one lr tensor for all groups: 0-dim, on the CPU for a CPU model
        self.lr = torch.zeros((), device=device)
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        loss: nn.Module = _Loss(model, objective or Objective(), amp=amp)
        self.update = _update(optimizer)
        if compile:
            loss.forward = torch.compile(_own_code(_Loss.forward), fullgraph=True, dynamic=False).__get__(loss)
            self.update = torch.compile(_own_code(self.update), fullgraph=True, dynamic=False)
        self.forward = (world or World()).averaging(loss)

    def __call__(self, x: Tensor, y: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W] float32 normalised, y [B] int64."""
        self.lr.fill_(lr)
        loss, correct = self.forward(x, y)
        loss.backward()
        self.update()
        if self.after is not None:
            self.after()
        self.compiles = False
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), correct


class _Loss(nn.Module):
    """(x, y) -> loss and number correct, 0-dim: the whole of what is differentiated, so that it compiles as one."""

    def __init__(self, model: nn.Module, objective: Objective, *, amp: bool) -> None:
        super().__init__()
        self.model, self.objective, self.amp = model, objective, amp

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            logits = self.model(x)
        logits = logits.float()
        return self.objective(x, logits, y), (logits.argmax(1) == y).sum()


def _own_code(function: Any) -> Any:
    """The same function with a code object of its own.

    Dynamo keeps its graphs by code object and gives up after eight, so that the fifth network that one process trains
    would fail: every optimizer takes two graphs, one for the step that makes its momentum buffers.
    """
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def _update(optimizer: Optimizer) -> Callable[[], None]:
    # torch wraps Optimizer.step in decorators that break the graph on purpose; the plain function compiles whole
    step = inspect.unwrap(type(optimizer).step)

    def update() -> None:
        with torch.no_grad():
            step(optimizer)

    return update


def make_optimizer(
    model: nn.Module,
    config: TrainConfig,
    *,
    lr: float = 0.05,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
) -> Optimizer:
    """The optimizer that `config` names, with weight decay on weights and PACT's alpha only.

    Weights that are to be powers of two get groups with a `weight_bits`, for the INQScheduler.
    With hysteresis-sgd the one-bit weights go to the hysteresis rule and their quantizers read the optimizer's result.
    The scheduled resolution counts time in epochs: it needs `steps_per_epoch`, and `epochs` (default: the config's).
    """
    binary = _binary_weights(model, held=config.optimizer == "hysteresis-sgd")
    powers = _power_of_two_groups(model)
    taken = {id(p) for p in binary} | {id(p) for group in powers for p in group["params"]}
    alphas = {id(m.alpha) for m in model.modules() if isinstance(m, PACT)}
    rest = [p for p in model.parameters() if id(p) not in taken]
    decayed = [p for p in rest if p.ndim > 1 or id(p) in alphas]
    plain = [p for p in rest if not (p.ndim > 1 or id(p) in alphas)]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}, *powers]
    rates: dict[str, Any] = {"lr": config.lr or lr, "weight_decay": config.weight_decay}
    if config.optimizer in ("adam", "adamw"):
        return (Adam if config.optimizer == "adam" else AdamW)(groups, **rates, foreach=False)
    if config.optimizer == "sgd":
        return SGD(groups, **rates, momentum=config.momentum, foreach=True)
    if config.optimizer in QUANTIZED_UPDATE:
        rule = _resolution(config, epochs=epochs or config.epochs, steps_per_epoch=steps_per_epoch)
        if config.optimizer == "qsgd":
            return QSGD(groups, **rates, momentum=config.momentum, rule=rule)
        return (QtAdam if config.optimizer == "qtadam" else QtAdamW)(groups, **rates, rule=rule)
    return HysteresisSGD(
        [*groups, {"params": binary, "binary": True}],
        **rates,
        momentum=config.momentum,
        threshold=config.hysteresis,
        relative=config.hysteresis_relative,
        mode=config.hysteresis_mode,
        per_channel=config.granularity == "channel",
    )


def _resolution(config: TrainConfig, *, epochs: int, steps_per_epoch: int | None) -> Resolution:
    return Resolution(
        config.resolution,
        start=config.qp,
        shared=config.shared_resolution,
        kappa=config.compensation_kappa,
        tau0=config.compensation_tau0 * epochs,
        steps_per_epoch=steps_per_epoch,
    )


def resolution_of(optimizer: Optimizer) -> Tensor | None:
    """[3]: smallest, mean and largest log2 of the resolution over the tensors; None for a plain optimizer."""
    return optimizer.resolution() if isinstance(optimizer, QuantizedUpdate) else None


def _binary_weights(model: nn.Module, *, held: bool) -> list[Tensor]:
    """The weights that the hysteresis rule takes, none unless `held`; their quantizers are told who holds them."""
    layers = [m for m in quant_layers(model).values() if isinstance(m.weight_quantizer, ScaledSign)]
    for layer in layers:
        assert isinstance(layer.weight_quantizer, ScaledSign)
        layer.weight_quantizer.held_by_optimizer = held
    return [layer.weight for layer in layers] if held else []


def _power_of_two_groups(model: nn.Module) -> list[dict[str, Any]]:
    groups: dict[int, list[Tensor]] = {}
    for layer in quant_layers(model).values():
        if isinstance(layer.weight_quantizer, PowerOfTwo):
            groups.setdefault(layer.weight_quantizer.bits, []).append(layer.weight)
    return [{"params": params, "weight_bits": bits} for bits, params in sorted(groups.items())]


def learning_rate(config: TrainConfig, done: float, *, peak: float, epochs: int) -> float:
    """The rate after a fraction `done` (0 to 1) of a stage of so many epochs."""
    warm = min(config.warmup / epochs, 1.0)
    if done < warm:
        return peak * max(done / warm, 1e-3)
    if config.schedule == "constant":
        return peak
    if config.schedule == "step":
        return peak * 0.1 ** sum(done >= m for m in config.milestones)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1 - warm, 1e-9)))
