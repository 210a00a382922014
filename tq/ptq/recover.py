"""Win back the accuracy that post-training quantization lost: no labels, the calibration images only.

`fast` takes seconds: bias correction, batch normalization re-estimated, both or neither, whichever brings the outputs
of the network nearest to the float network's. `default` and `best` then learn the codes of the weights block by block;
they differ in the number of iterations. With a state file a stopped recovery goes on behind the last finished block,
and ends with the very tensors of an uninterrupted one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq.attach import quant_layers
from tq.layers import QuantLayer
from tq.ptq.calibrate import calibrate
from tq.ptq.capture import Unit, calls_of, collect, float_names, units
from tq.ptq.correct import correct_bias, reestimate_norms
from tq.ptq.equalize import equalize as equalize_float
from tq.ptq.reconstruct import Rates, SoftLayer, reconstruct
from tq.ptq.recovery_state import RecoveryState, UnitResult, fingerprint
from tq.scheme import did_you_mean

Progress = Callable[[str, int, int], None]
ROUNDINGS = ("adaround", "blocks")


MOST_VALUES = 2**25
"""of the images that corrections see: 10,922 of 3 x 32 x 32, 222 of 3 x 224 x 224"""


@dataclass(frozen=True)
class Effort:
    """Which parts run, and for how long. bias, norms: None measures with and without and keeps the better."""

    equalize: bool = False
    bias: bool | None = None
    norms: bool | None = None
    rounding: str | None = "blocks"
    iterations: int = 0


EFFORTS = {
    "fast": Effort(rounding=None),
    "default": Effort(iterations=150),
    "best": Effort(iterations=400),
}


@dataclass(frozen=True)
class Report:
    """What a recovery did. `equalized` names pairs of layers; `rows` are the units in the order of execution.

    `bias` and `norms` tell whether these corrections were kept; `resumed` is how many rows came from the state file.
    """

    effort: str
    settings: Effort
    bias: bool
    norms: bool
    equalized: tuple[str, ...]
    rows: tuple[UnitResult, ...]
    resumed: int
    seconds: float


def recover(
    model: nn.Module,
    float_model: nn.Module,
    batches: Iterable[Tensor],
    *,
    effort: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
    state: Path | None = None,
    equalize: bool | None = None,
    bias: bool | None = None,
    norms: bool | None = None,
    rounding: str | None = None,
    iterations: int | None = None,
    rates: Rates | None = None,
) -> Report:
    """Improve a calibrated network in training form in place, so that it comes nearer to its float twin.

    Args:
        model: made by `tq.attach` and `tq.ptq.calibrate`.
        float_model: a copy of the float network from before `attach`; it is not changed.
        batches: normalised images [B, C, H, W], without labels.
        effort: "fast" (seconds), "default" (a minute or two for ResNet-20 on one core) or "best" (twice that).
        progress: called with what is being done, steps done, steps in all.
        state: file that keeps finished units; an existing one is resumed.
        equalize, bias, norms, rounding, iterations: overrule the effort; rounding is "adaround" (layer by layer),
            "blocks" or "none". equalize also calibrates anew, by least squared error.

    Raises:
        ValueError: no image, NaN or infinity, not the float twin, an unknown word, a state file of another recovery.
    """
    began = time.perf_counter()
    settings = _settings(effort, equalize=equalize, bias=bias, norms=norms, rounding=rounding, iterations=iterations)
    rounder = "adaround" if settings.rounding == "adaround" else "straight-through"
    rates = replace(rates or Rates(), iterations=settings.iterations, rounder=rounder)
    images = _checked(batches)
    targets = float_names(model, float_model)
    _add_biases(model)
    # only learned rounding takes long enough to leave a state
    state = state if settings.rounding else None
    store = RecoveryState(state, fingerprint(model, float_model, images, (settings, rates, seed)))
    equalized: tuple[str, ...] = ()
    if settings.equalize:
        float_model, equalized = _equalize(model, float_model, targets, images)
    _tell(progress, "bias and batch normalization", 0, 1)
    bias, norms = _correct(model, float_model, images, targets, settings)
    rows: list[UnitResult] = []
    found = units(model, targets, images[0], blocks=settings.rounding == "blocks") if settings.rounding else []
    resumed = len(store)
    for number, unit in enumerate(found):
        _tell(progress, unit.name, number, len(found))
        if (row := store.restore(model, unit)) is None:
            row = _recover_unit(model, float_model, images, unit, rates, seed + 7919 * number)
            store.keep(model, unit, row)
        rows.append(row)
    _tell(progress, "done", len(found), len(found))
    return Report(effort, settings, bias, norms, equalized, tuple(rows), resumed, time.perf_counter() - began)


def _settings(effort: str, **overrules: bool | str | int | None) -> Effort:
    if effort not in EFFORTS:
        raise ValueError(
            f"unknown effort {effort!r}: expected one of {', '.join(EFFORTS)}{did_you_mean(effort, EFFORTS)}"
        )
    rounding = overrules.pop("rounding")
    if rounding not in (None, "none", *ROUNDINGS):
        raise ValueError(f"unknown rounding {rounding!r}: expected one of {', '.join(ROUNDINGS)}, none")
    base = EFFORTS[effort]
    chosen = asdict(base) | {name: value for name, value in overrules.items() if value is not None}
    chosen["rounding"] = base.rounding if rounding is None else None if rounding == "none" else rounding
    if chosen["rounding"] is not None and chosen["iterations"] < 1:
        if overrules["iterations"] is not None:
            raise ValueError(f"iterations must be at least 1 to learn the rounding, got {chosen['iterations']}")
        chosen["iterations"] = EFFORTS["default"].iterations
    return Effort(**chosen)


def _checked(batches: Iterable[Tensor]) -> list[Tensor]:
    images = list(batches)
    if not sum(map(len, images)):
        raise ValueError("recovery saw no images; give at least one batch [B, C, H, W]")
    if not all(bool(x.isfinite().all()) for x in images):
        raise ValueError("expected finite images, got NaN or infinity; check what normalises them")
    return images


def _add_biases(model: nn.Module) -> None:
    """A layer without normalization and bias gets a bias of zeros, for corrections to go to."""
    for layer in quant_layers(model).values():
        if layer.bn is None and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(layer.weight[:, 0].flatten(1)[:, 0]))


@torch.no_grad()
def _equalize(
    model: nn.Module, float_model: nn.Module, targets: dict[str, str], images: list[Tensor]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Equalize a copy of the float twin, give its parameters to the quantized network, calibrate that again."""
    twin = copy.deepcopy(float_model)
    found = equalize_float(twin)
    for name, layer in quant_layers(model).items():
        source = twin.get_submodule(name)
        assert isinstance(source.weight, Tensor)
        layer.weight.copy_(source.weight)
        if layer.bias is not None and isinstance(source.bias, Tensor):
            layer.bias.copy_(source.bias)
        if layer.bn is not None:
            layer.bn.load_state_dict(twin.get_submodule(targets[name]).state_dict())
    calibrate(model, images)
    return twin, tuple(f"{chain.first} -> {chain.second}" for chain in found)


def _correct(
    model: nn.Module, float_model: nn.Module, images: list[Tensor], targets: dict[str, str], settings: Effort
) -> tuple[bool, bool]:
    """Correct bias and norms as the settings say, or as brings the last layer's outputs nearest to the float ones."""
    last = list(calls_of(model, list(targets), images[0][:1]))[-1]
    wanted = collect(float_model, targets[last], images)[1]
    # corrections send all they are given through the network at once: as many images as that leaves room for
    few = [torch.cat(images)[: max(1, MOST_VALUES // images[0][0].numel())]]
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    best, least, kept = (False, False), float("inf"), start
    for norms in (False, True) if settings.norms is None else (settings.norms,):
        for bias in (False, True) if settings.bias is None else (settings.bias,):
            model.load_state_dict(start)
            if norms:
                reestimate_norms(model, few)
            if bias:
                correct_bias(model, float_model, few, targets)
            error = float(F.mse_loss(collect(model, last, images)[1], wanted))
            if error < least:
                best, least = (bias, norms), error
                kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)
    return best


def _recover_unit(
    model: nn.Module, float_model: nn.Module, images: list[Tensor], unit: Unit, rates: Rates, seed: int
) -> UnitResult:
    """Learn the rounding of one unit; what made it worse on the calibration images is undone."""
    began = time.perf_counter()
    x, y_now = collect(model, unit.name, images)
    y = collect(float_model, unit.target, images)[1]
    before = float(F.mse_loss(y_now, y))
    kept = {name: tensor.clone() for name, tensor in model.get_submodule(unit.name).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    layers = {name: _layer(model, name) for name in unit.layers}
    soft = {name: SoftLayer(layer, rates=rates, generator=generator) for name, layer in layers.items()}
    if before > 0:
        try:
            for name, module in soft.items():
                model.set_submodule(name, module)
            block = model.get_submodule(unit.name)
            block.eval()
            reconstruct(block, list(soft.values()), x, y, rates=rates, reference=before, generator=generator)
        finally:
            for name, layer in layers.items():
                model.set_submodule(name, layer)
        for module in soft.values():
            module.write_back()
    after = float(F.mse_loss(_apply(model.get_submodule(unit.name), x, images), y))
    if not after <= before:
        model.get_submodule(unit.name).load_state_dict(kept)
        after = before
    return UnitResult(unit.name, len(layers), before, after, time.perf_counter() - began)


@torch.no_grad()
def _apply(module: nn.Module, x: Tensor, images: list[Tensor]) -> Tensor:
    return torch.cat([module.eval()(part.to(images[0].device)).cpu() for part in x.split(len(images[0]))])


def _layer(model: nn.Module, name: str) -> QuantLayer:
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLayer)
    return layer


def _tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)
