"""`tq bench FILE`: how fast the packed network runs beside its float form, on the same images, checked before timed.

Contenders: float and packed, each eager and through torch.compile(fullgraph=True), packed and fused (`tq.fuse`), and
other engines where they are asked for. The float compiled one is frozen (Inductor takes its weights as constants, folds
batch normalization and lays them out once), the strongest form that torch offers on a CPU; the packed one is not,
because its float layers would then round otherwise than in training.

A contender whose logits are wrong gets no speed. Packed eager must equal the reference implementation bit for bit;
packed fused and compiled must equal packed eager bit for bit, but where the network keeps float layers their rounding
changes in compilation, which tips codes of the layers behind them: then the classes must be the same. The rows of one
batch size are timed in turns, so that whatever else the machine does falls on all alike.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from tq import checkpoint, machine
from tq.config import BenchConfig
from tq.contenders import REFERENCE, Contender, contenders
from tq.data import normalise
from tq.describe import images_of, normal_of
from tq.evaluate import largest_difference
from tq.file_info import Info
from tq.layers import channels_last
from tq.machine import pick_device

ACCURACY_IMAGES = 1000
"""accuracy is measured on the first so many test images"""
CHECKED_IMAGES = 32
"""logits are compared on the first so many, or on one whole batch if that is more"""
FLOAT_TOLERANCE = 1e-3
"""largest |difference| of a float logit from the eager one's, in units of the largest |logit|"""
AGREEMENT = 0.5
"""share of images to which another engine's int8 network must give the float network's class"""
FLIPPED_IMAGES = 0.02
"""share of images that may differ by more than that, or in class where tipped codes are allowed for"""
TIPPED = 0.05
"""largest |difference| there, in units of the largest |logit|"""
WARM_CALLS, MIN_CALLS, TURN_S = 3, 5, 0.05
Notify = Callable[[str], None]


@dataclass
class _Row:
    contender: Contender
    checked: str = ""
    error: str = ""
    seconds: list[float] = field(default_factory=list)


def bench(path: str | Path, config: BenchConfig, *, notify: Notify) -> dict[str, Any]:
    """Check, then time, all contenders. Returns plain JSON values; `table` shows them.

    {"device", "cpu", "threads", "versions", "file", "bytes", "float_bytes", "accuracy_images", "rows": [...]} with per
    row contender, batch, images_per_s (from the median), latency_ms (median), p90_ms, spread (IQR over median), calls,
    accuracy (percent), speedup (over the float compiled row of the same batch size), checked, how (what runs it) and
    error. What is not known is None. The float network is config.float_file, or "float (dequantized)": the packed
    weights written out, as fast as the float model, but not it, so it has no accuracy.
    Raises ValueError: the file, its data set or the float file cannot be used.
    """
    info, device = checkpoint.read_info(path), pick_device(config.device)
    images, labels = _images(info, config, path)
    images = channels_last(images.to(device))
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        entrants, reference = contenders(path, info, config, images)
        for size in sorted(config.batch, reverse=True):
            notify(f"batch {size}: compiling and checking")
            checked = _check(entrants, reference, images, size)
            if size == max(config.batch):
                for contender in entrants:
                    if not contender.problem and ("packed" in contender.name or config.float_file):
                        contender.accuracy = _accuracy(contender, images, labels, size)
            notify(f"batch {size}: timing {len(checked)} contenders in turns, {config.seconds:g} s each")
            _time([row for row in checked if not row.error], images[:size], config.seconds)
            rows = _results(checked, size) + rows
    account = checkpoint.inspect(path)
    return {
        **machine.about(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "file": str(path),
        "bytes": account.file_bytes,
        "float_bytes": account.float_bytes,
        "accuracy_images": len(labels),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> Table:
    """The rows for a terminal."""
    caption = (
        f"{result['cpu'] if result['device'] == 'cpu' else result['device']}, {result['threads']} threads, torch "
        f"{result['versions']['torch']}; medians; accuracy on {result['accuracy_images']} test images; speedup over "
        "float compiled (frozen)"
    )
    shown = Table(
        title=f"{result['file']}: {result['bytes']:,} bytes, float {result['float_bytes']:,}", caption=caption
    )
    for name in ("contender", "batch", "images/s", "ms", "p90 ms", "spread", "acc %", "speedup"):
        shown.add_column(name, justify="left" if name == "contender" else "right")
    shown.add_column("checked", overflow="fold")
    for row in result["rows"]:
        numbers = (
            (row["images_per_s"], ",.0f"), (row["latency_ms"], ",.2f"), (row["p90_ms"], ",.2f"), (row["spread"], ".0%"),
            (row["accuracy"], ".2f"), (row["speedup"], ".2f"),
        )  # fmt: skip
        cells = ["" if value is None else f"{value:{form}}" for value, form in numbers]
        found = "; ".join(filter(None, (row["checked"], row["how"])))
        shown.add_row(row["contender"], str(row["batch"]), *cells, row["error"] or found)
    return shown


def _images(info: Info, config: BenchConfig, path: str | Path) -> tuple[Tensor, Tensor]:
    """Normalised test images, as many as accuracy or the largest batch needs, and the classes of the former."""
    name = config.dataset or info.data.get("name")
    if not name:
        raise ValueError(f"{path} does not name its data set; pass --dataset NAME (and --data DIR)")
    try:
        found = images_of(info, name, config.data)
    except ValueError as error:
        raise ValueError(f"benchmarks run on real images, but {error}; or pass another --dataset") from None
    channels = info.data.get("channels") or found.test.shape[0]
    if found.test.shape[0] != channels:
        raise ValueError(f"{path} takes {channels} channels, {name} has {found.test.shape[0]}; pass another --dataset")
    count = min(ACCURACY_IMAGES, len(found.test))
    # a batch larger than the test split sees its first images again
    index = torch.arange(max(count, CHECKED_IMAGES, *config.batch)) % len(found.test)
    return normalise(found.test.take(index), *normal_of(info, found)), found.test.labels[:count]


def _check(contenders: list[Contender], reference: Callable[[Tensor], Tensor], images: Tensor, size: int) -> list[_Row]:
    """Every contender's logits at this batch size, held to its rule."""
    images = images[: max(size, CHECKED_IMAGES) // size * size]
    logits = {REFERENCE: _logits(reference, images, size)}
    rows = []
    for contender in contenders:
        row = _Row(contender, error=contender.problem)
        rows.append(row)
        if row.error:
            continue
        try:
            got = logits[contender.name] = _logits(contender.call, images, size)
        except Exception as error:  # a compiler fails in many ways
            contender.problem = row.error = machine.reason(error)
            continue
        row.checked, row.error = _judge(got, logits.get(contender.like), contender)
        if row.error:
            del logits[contender.name]  # no standard for the others
    return rows


def _judge(logits: Tensor, expected: Tensor | None, contender: Contender) -> tuple[str, str]:
    """(what was found, "") or ("", what is wrong)."""
    if not bool(logits.isfinite().all()):
        return "", "wrong: logits are not finite"
    if contender.rule == "finite":
        return "finite", ""
    if expected is None:
        return "", f"not checked: {contender.like} did not run or was wrong"
    if contender.rule == "agrees":
        same = int((logits.argmax(1) == expected.argmax(1)).sum())
        found = f"same class as {contender.like} on {same} of {len(logits)} images"
        return (found, "") if same >= AGREEMENT * len(logits) else ("", f"wrong: {found}")
    return _compare(logits, expected, contender.like.removeprefix("packed "), contender.rule)


def _compare(logits: Tensor, expected: Tensor, whose: str, rule: str) -> tuple[str, str]:
    """(what was found, "") or ("", what is wrong)."""
    if torch.equal(logits, expected):
        return f"equals {whose} bit for bit", ""
    largest = largest_difference(logits, expected)
    off = ((logits - expected).abs() > FLOAT_TOLERANCE * expected.abs().max()).any(1) | ~logits.isfinite().all(1)
    found = f"differs from {whose} by at most {largest:.2g}"
    if rule == "equal":
        return "", f"wrong: {found}, must be equal"
    if rule == "near":
        other = int((logits.argmax(1) != expected.argmax(1)).sum())
        found += f", {other} of {len(off)} images get another class"
        small = largest <= TIPPED * float(expected.abs().max()) and other <= FLIPPED_IMAGES * len(off)
        return (found, "") if small else ("", f"wrong: {found}")
    if float(off.float().mean()) > FLIPPED_IMAGES:
        return "", f"wrong: {found} ({int(off.sum())} of {len(off)} images beyond tolerance)"
    return found + (f" ({int(off.sum())} of {len(off)} images beyond {FLOAT_TOLERANCE:g})" if off.any() else ""), ""


def _logits(call: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    return torch.cat([call(part).float() for part in images.split(size)])


def _accuracy(contender: Contender, images: Tensor, labels: Tensor, size: int) -> float:
    """Top-1 in percent. Whole batches only: a compiled network has a graph for just these."""
    correct = 0
    for start in range(0, len(labels), size):
        index = torch.arange(start, start + size, device=images.device) % len(images)
        found = contender.call(channels_last(images[index])).argmax(1).cpu()
        truth = labels[start : start + size]
        correct += int((found[: len(truth)] == truth).sum())
    return 100.0 * correct / len(labels)


def _time(rows: list[_Row], x: Tensor, seconds: float) -> None:
    """Calls of every contender in turns of at least TURN_S, until each has had `seconds`."""
    x = channels_last(x)
    for row in rows:
        for _ in range(WARM_CALLS):
            _seconds(row.contender.call, x)
    while any(sum(row.seconds) < seconds or len(row.seconds) < MIN_CALLS for row in rows):
        for row in rows:
            turn = 0.0
            while turn < TURN_S:
                row.seconds.append(_seconds(row.contender.call, x))
                turn += row.seconds[-1]


def _seconds(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    start = time.perf_counter()
    call(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start


def _results(rows: list[_Row], size: int) -> list[dict[str, Any]]:
    medians = {row.contender.name: statistics.median(row.seconds) for row in rows if row.seconds}
    baseline = next((m for name, m in medians.items() if name.startswith("float") and name.endswith("compiled")), None)
    results = []
    for row in rows:
        median = medians.get(row.contender.name)
        times = torch.tensor(row.seconds or [math.nan], dtype=torch.float64)
        low, high, p90 = (float(q) for q in times.quantile(torch.tensor([0.25, 0.75, 0.9], dtype=torch.float64)))
        results.append(
            {
                "contender": row.contender.name,
                "batch": size,
                "images_per_s": size / median if median else None,
                "latency_ms": 1e3 * median if median else None,
                "p90_ms": 1e3 * p90 if median else None,
                "spread": (high - low) / median if median else None,
                "calls": len(row.seconds),
                "accuracy": None if row.error else row.contender.accuracy,
                "speedup": baseline / median if median and baseline else None,
                "checked": row.checked,
                "how": row.contender.how,
                "error": row.error,
            }
        )
    return results
