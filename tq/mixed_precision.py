"""Weight bits per layer for a file of a given size, or for a drop that is still allowed: measure, choose, explain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tq.attach import attach, quant_layers
from tq.file_info import Info
from tq.file_size import file_bytes, layer_bytes
from tq.ptq.allocate import Allocation, Measured, allocate, options_of, pins, reasons, smallest_within
from tq.ptq.calibrate import calibrate
from tq.ptq.sensitivity import BITS, Probe
from tq.scheme import Scheme
from tq.sites import sites

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Choice:
    """override: PATTERN=SCHEME for `tq.attach`, one a layer. measured: the drops that --max-drop tried."""

    allocation: Allocation
    override: tuple[str, ...]
    measured: tuple[Measured, ...]


def choose_bits(
    model: nn.Module,
    images: Sequence[Tensor],
    scheme: Scheme,
    *,
    target_bytes: int | None = None,
    max_drop: float | None = None,
    first_last: str = "8",
    override: Iterable[str] = (),
    info: Info | None = None,
    granularity: str = "channel",
    group_size: int = 32,
    ranges: dict[str, Any] | None = None,
    progress: Progress = lambda what, done, of: None,
) -> Choice:
    """Choose the weight bits of every layer of a float network; the network is not changed.

    images: normalised batches [B, C, H, W]. scheme: its weight bits are the most that a layer gets, its activation bits
    are every layer's. target_bytes: the file is at most this large. max_drop: at most so many calibration images in
    percent change their top class, before any recovery, with the scales of the sensitivities (least cubed error).
    ranges: keywords of `calibrate`.
    Raises ValueError: a limit that cannot be met, and what `attach` and `calibrate` refuse.
    """
    rules = tuple(override)
    if odd := [name for name in (str(scheme), *(rule.rpartition("=")[2] for rule in rules)) if Scheme.parse(name).pow2]:
        raise ValueError(
            f"bits are chosen among integer weights of 1, 2, 4 and 8 bits, not powers of two; got {odd[0]}"
        )
    scales: dict[str, Any] = {"granularity": granularity, "group_size": group_size}
    probed = attach(copy.deepcopy(model), scheme, first_last=first_last, override=rules, **scales)
    calibrate(probed.eval(), images, **(ranges or {}))
    layers = quant_layers(probed)
    widths = tuple(bits for bits in BITS if bits <= scheme.weight_bits)
    method = (ranges or {}).get("weight_range", "auto")
    # the widths are compared with one another, so all their scales are chosen in one way
    percentile = (ranges or {}).get("percentile", 99.99)
    probe = Probe(probed, images, weight_range="lp" if method == "auto" else method, percentile=percentile)
    fixed = pins([s.name for s in sites(model)], first_last=first_last, override=rules)
    pinned = {n: p for n, p in fixed.items() if n in probe.layers}
    wanted = {n: (pinned[n][0],) if n in pinned else widths for n in probe.layers}
    rows = probe.rows(wanted, lambda done, of: progress("sensitivity of the layers", done, of))
    size = file_bytes(probed, info)
    costs = layer_bytes(probed)
    measured: list[Measured] = []
    if max_drop is None:
        found = allocate(rows, costs, file_bytes=size, target_bytes=target_bytes, pinned=pinned)
    else:
        whole = allocate(rows, costs, file_bytes=size, max_loss=float("inf"), pinned=pinned)
        point, measured = smallest_within(
            whole.front,
            probe.disagreement,
            max_drop,
            on_measure=lambda m: progress(f"{m.point.bytes:,} bytes: {m.drop:.2f} points", 0, 0),
        )
        why = reasons(options_of(rows, costs, pinned), point.bits, pinned)
        found = Allocation(point, why, whole.front)
    chosen = tuple(
        f"{name}=w{bits}a{_act_bits(layers[name])}" for name, bits in found.chosen.bits.items() if name not in pinned
    )
    return Choice(found, (*rules, *chosen), tuple(measured))


def _act_bits(layer: Any) -> int:
    return 16 if layer.input_quantizer is None else int(layer.input_quantizer.bits)
