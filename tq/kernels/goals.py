"""The project's goals for its kernels, read off the rows of `tq bench kernels`.

Each is {"value", "n", ...} with n the number of rows behind it; where nothing was measured the value is None and
"reason" says what is missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from tq.kernels.shapes import convolutions

FEW_ROWS, WIDE, MANY_ROWS, BIG = 16, 8192, 4096, 4096
Row = dict[str, Any]
Goal = dict[str, Any]


def goals(rows: Sequence[Row], limits: dict[str, Any]) -> dict[str, Any]:
    """All goals, in groups:

    resnet50_speedup: geometric mean over ResNet-50's convolutions, codes in and out, over the fastest float layer;
    bandwidth: least bytes over time, of the copy bandwidth, at few rows of wide matrices, median and lowest;
    int8_gemm: 8-bit codes at many rows: of the int8 peak, and times the float layer's speed;
    quantization_cost: time of a matrix product on float inputs over that on codes, less 1, median and highest.
    """
    timed = [row for row in rows if row["ours"] and row["ms"] is not None]
    pairs = sorted({(row["bits"], row["activation"]) for row in timed if not _conv(row)}, reverse=True)
    return {
        "resnet50_speedup": {f"w{bits}": _resnet50(timed, bits) for bits in (8, 4, 2, 1)},
        "bandwidth": {f"w{bits} {activation}": _bandwidth(timed, bits, activation) for bits, activation in pairs}
        or {"all": _missing("no matrix product was measured")},
        "int8_gemm": _int8_gemm(timed, limits),
        "quantization_cost": {kind: _cost(timed, kind) for kind in ("static", "dynamic")},
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The goals as text."""
    said = ["goals:"]
    forms = {"resnet50_speedup": ".2f", "bandwidth": ".0%", "int8_gemm": ".2f", "quantization_cost": "+.1%"}
    for group, form in forms.items():
        reasons: dict[str, list[str]] = {}
        for name, goal in found.get(group, {}).items():
            if goal["value"] is None:
                reasons.setdefault(goal["reason"], []).append(name)
                continue
            extra = {k: v for k, v in goal.items() if k in ("warm", "lowest", "highest") and v is not None}
            more = "".join(f", {k} {v:{form}}" for k, v in extra.items())
            note = f"; {goal['reason']}" if goal.get("reason") else ""
            said.append(f"  {group} {name}: {goal['value']:{form}}{more} ({goal['n']} rows{note})")
        said += [f"  {group} {', '.join(names)}: not measured, {reason}" for reason, names in reasons.items()]
    return said


def _resnet50(timed: Iterable[Row], bits: int) -> Goal:
    every = sum("resnet50" in shape.groups for shape in convolutions())
    rows = [r for r in timed if "resnet50" in r["networks"] and (r["bits"], r["activation"]) == (bits, "codes")]
    rows = [row for row in rows if row["speedup"]]
    if not rows:
        return _missing("no convolution of ResNet-50 was timed beside a float layer")
    short = "" if len(rows) == every else f"of the {every} convolutions"
    warm = statistics.geometric_mean(row["warm_speedup"] for row in rows)
    value = statistics.geometric_mean(row["speedup"] for row in rows)
    return {"value": value, "warm": warm, "n": len(rows), "reason": short}


def _bandwidth(timed: Iterable[Row], bits: int, activation: str) -> Goal:
    rows = [
        row
        for row in timed
        if not _conv(row) and (row["bits"], row["activation"]) == (bits, activation)
        and min(row["weight"]) >= WIDE and row["rows"] <= FEW_ROWS
    ]  # fmt: skip
    if not rows:
        return _missing(f"no product of at most {FEW_ROWS} rows with a matrix of {WIDE} or wider was timed")
    shares = [row["bytes_ms"] / row["ms"] for row in rows]
    return {"value": statistics.median(shares), "lowest": min(shares), "n": len(rows)}


def _int8_gemm(timed: Iterable[Row], limits: dict[str, Any]) -> dict[str, Goal]:
    rows = [
        row
        for row in timed
        if not _conv(row) and (row["bits"], row["activation"]) == (8, "codes")
        and min(row["weight"]) >= BIG and row["rows"] >= MANY_ROWS
    ]  # fmt: skip
    peak = limits.get("int8_ops_s")
    if not rows or not peak:
        reason = limits.get("int8_ops_s_reason") or f"no product of {MANY_ROWS} rows or more of 8-bit codes was timed"
        return {"fraction_of_peak": _missing(reason), "speedup_over_float": _missing(reason)}
    found = {}
    for row in rows:
        reached = 1e3 * row["operations"] / row["ms"] / peak
        found[f"fraction_of_peak {row['problem']}"] = {"value": reached, "n": 1}
        ratio = row["speedup"]
        missing = _missing("no float layer ran")
        found[f"speedup_over_float {row['problem']}"] = {"value": ratio, "n": 1} if ratio else missing
    return found


def _cost(timed: Sequence[Row], kind: str) -> Goal:
    codes = {(row["problem"], row["bits"]): row["ms"] for row in timed if row["activation"] == "codes"}
    ratios = [
        row["ms"] / codes[row["problem"], row["bits"]] - 1
        for row in timed
        if row["activation"] == kind and not _conv(row) and (row["problem"], row["bits"]) in codes
    ]
    if not ratios:
        return _missing(f"no matrix product was timed on both {kind} inputs and codes")
    return {"value": statistics.median(ratios), "highest": max(ratios), "n": len(ratios)}


def _conv(row: Row) -> bool:
    return bool(row["op"] == "quant_conv2d")


def _missing(reason: str) -> Goal:
    return {"value": None, "n": 0, "reason": reason}
