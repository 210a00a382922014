"""Post-training quantization in one call: bits, attach, calibrate, recover. No training, no labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tq.attach import attach, coverage
from tq.file_info import Info
from tq.mixed_precision import Choice, choose_bits
from tq.ptq.calibrate import calibrate
from tq.ptq.images import checked
from tq.ptq.recover import Report, recover
from tq.scheme import Scheme

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """The network in simulated form, what choosing its bits found, and what recovery did; None where not asked for."""

    model: nn.Module
    choice: Choice | None
    recovery: Report | None


def quantize(model: nn.Module, loader: Iterable[Any], scheme: str | Scheme = "w8a8", **settings: Any) -> nn.Module:
    """Quantize a trained float network in place, in simulated form; `tq.save` or `tq.convert` packs it.

    The settings are those of `run`; effort is "fast" unless it is given.
    """
    return run(model, loader, scheme, **settings).model


def run(
    model: nn.Module,
    loader: Iterable[Any],
    scheme: str | Scheme = "w8a8",
    *,
    weight_range: str = "auto",
    act_range: str = "mse",
    percentile: float = 99.99,
    act_symmetric: bool = True,
    first_last: str = "8",
    override: Iterable[str] = (),
    granularity: str = "channel",
    group_size: int = 32,
    effort: str = "fast",
    target_bytes: int | None = None,
    max_drop: float | None = None,
    info: Info | None = None,
    seed: int = 0,
    state: Path | None = None,
    progress: Progress = lambda what, done, of: None,
) -> Outcome:
    """`quantize`, with what it found.

    Args:
        model: a trained float network; its batch normalizations are folded where torch.fx shows that they follow a
            layer.
        loader: batches of normalised images [B, C, H, W], or (images, labels) pairs; labels are ignored. All are kept.
        scheme: "w8a8", "w4a8", "w2a8", "w1a16", ...
        weight_range, act_range: "minmax", "percentile", "mse" (least squared error), of weights "auto" (minmax from 4
            bits on, mse below) and "lp" (least cubed error), of inputs "entropy".
        act_symmetric: no zero points for signed inputs.
        first_last: bits of the first and the last layer: "16", "8" or "same".
        override: PATTERN=SCHEME, the last match wins.
        granularity, group_size: which weights share a scale, as in `tq.attach`.
        effort: "none", or how long to win accuracy back: "fast" (seconds), "default" (minutes), "best".
        target_bytes, max_drop: choose the weight bits of each layer, see `tq.mixed_precision`; one of them at most.
        info: what the file will say about itself, a part of its size.
        state: file that keeps what recovery has finished; an existing one is gone on with.

    Raises:
        ValueError: no image, NaN or infinity, a pattern that matches no layer, nothing to quantize, a limit that cannot
            be met.
    """
    scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
    images = list(checked(model, loader))
    ranges: dict[str, Any] = {
        "weight_range": weight_range, "act_range": act_range, "percentile": percentile, "act_symmetric": act_symmetric,
    }  # fmt: skip
    ends: dict[str, Any] = {"first_last": first_last, "granularity": granularity, "group_size": group_size}
    rules, choice = tuple(override), None
    if target_bytes is not None or max_drop is not None:
        choice = choose_bits(
            model, images, scheme, target_bytes=target_bytes, max_drop=max_drop, override=rules, info=info,
            ranges=ranges, progress=progress, **ends,
        )  # fmt: skip
        rules = choice.override
    twin = copy.deepcopy(model).eval()
    attach(model, scheme, override=rules, **ends)
    calibrate(model.eval(), images, **ranges)
    if effort == "none":
        return Outcome(model, choice, None)
    widest = all(min(line.weight_bits, line.act_bits) >= 8 for line in coverage(model))
    # eight bits lose next to nothing: learning their rounding would take minutes for no gain
    rounding = "none" if effort == "default" and widest else None
    report = recover(model, twin, images, effort=effort, seed=seed, state=state, progress=progress, rounding=rounding)
    return Outcome(model, choice, report)
