"""`tq bench kernels`: the operators `tq::quant_matmul` and `tq::quant_conv2d` beside their peers, checked, then timed.

A row gets a time only after all of its result was compared with the reference: equal where integers go in, within a
small relative mean error where floats do. Beside the time stands what it could be: the bytes that must move and the
operations, at the copy bandwidth and the peaks that were measured on the same device in the same run.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tq import machine
from tq.config import KernelBenchConfig
from tq.kernels import shapes
from tq.kernels.goals import goals, lines
from tq.kernels.layers import Layer, least_bytes
from tq.kernels.ours import ours
from tq.kernels.peers import Contender, peers
from tq.kernels.shapes import Problem
from tq.kernels.timing import Clock, ceilings, in_turns
from tq.machine import pick_device
from triton_kernels import native, ops

SIZES = {"cuda": (4096, 8192), "cpu": (1024, 2048)}
"""square products whose best speed is the peak"""
CEILING_S = 0.5
Row = dict[str, Any]
# problems done, problems in all, name of the next
Notify = Callable[[int, int, str], None]


def bench(config: KernelBenchConfig, *, notify: Notify, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Check, then time, everything in the set. Returns plain JSON values, which `table` shows.

    {"device", "cpu", "threads", "versions", "implementation", "native", "tuning", "set", "only", "seconds", "finished",
    "ceilings", "rows", "goals"}; see `_row` for a row and `goals.goals`. keep: gets the result so far after each
    problem. Ctrl-C ends it early, with "finished" false. Raises ValueError when there is nothing to measure or no such
    device.
    """
    device = pick_device(config.device)
    todo = shapes.problems(config, device)
    quick = shapes.is_quick(config, device)
    result = {**_about(device), "set": "quick" if quick else "full", "only": config.only, "seconds": config.seconds}
    result |= {"finished": False, "ceilings": {}, "rows": [], "goals": {}}
    layer: Layer | None = None
    # cuDNN then takes the fastest of its algorithms instead of the first
    search, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    with torch.no_grad():
        try:
            notify(0, len(todo), "ceilings: copy, int8 and float products")
            limits = result["ceilings"] = ceilings(device, min(CEILING_S, config.seconds), SIZES[device.type])
            for done, problem in enumerate(todo):
                notify(done, len(todo), problem.name)
                if layer is None or layer.shape != problem.shape:
                    layer = Layer(problem.shape, device)
                result["rows"] += _measure(problem, layer, limits, config.seconds)
                result["goals"] = goals(result["rows"], limits)
                keep(result)
            result["finished"] = True
        except KeyboardInterrupt:
            result["goals"] = goals(result["rows"], result["ceilings"])
        finally:
            torch.backends.cudnn.benchmark = search
    return result


def _about(device: torch.device) -> dict[str, Any]:
    versions: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "torchao", "gemlite"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    plans = "only on a CPU" if device.type != "cpu" else native.why_not() or native.isa()
    return {
        **machine.about(device),
        "versions": versions,
        "implementation": ops.describe(device),
        "native": plans,
        "tuning": os.environ.get("TQ_TUNE", "cached"),
    }


def _measure(problem: Problem, layer: Layer, limits: dict[str, Any], seconds: float) -> list[Row]:
    """The rows of one problem."""
    found = [*peers(problem, layer), *ours(problem, layer)]
    clocks: dict[int, Clock] = {}
    checked: dict[int, tuple[str, str]] = {}
    skipped: dict[int, str] = {}
    for i, contender in enumerate(found):
        try:
            call = contender.make()
            checked[i] = layer.check(call(), contender.expected(), problem.rows, contender.error)
            if not checked[i][1]:
                clocks[i] = Clock(call, layer.device)
        except Exception as error:  # compilers, packages and missing instructions fail in many ways
            checked.pop(i, None)
            skipped[i] = machine.reason(error)
    in_turns(list(clocks.values()), seconds)
    rows = [
        _row(problem, contender, clocks.get(i), checked.get(i), skipped.get(i, ""), limits)
        for i, contender in enumerate(found)
    ]
    for kind in ("ms", "warm_ms"):
        times = [row[kind] for row in rows if row["float_layer"] and row[kind]]
        for row in rows:
            row["speedup" if kind == "ms" else "warm_speedup"] = min(times) / row[kind] if times and row[kind] else None
    return rows


def _row(
    problem: Problem,
    contender: Contender,
    clock: Clock | None,
    checked: tuple[str, str] | None,
    skipped: str,
    limits: dict[str, Any],
) -> Row:
    """ms: the median with a cold cache, on a CPU with a warm one; spread: its IQR over median; ceiling_ms: at the copy
    bandwidth or the peak, whichever takes longer; fraction: ceiling_ms / ms; speedup (`_measure` adds it): over the
    fastest float layer of the problem. error: what is wrong; skipped: why a peer did not run."""
    shape, found = problem.shape, checked or ("", "")
    samples = clock.samples if clock else {}
    main = samples.get("cold") or samples.get("warm")
    warm = samples.get("warm")
    ms = 1e3 * statistics.median(main) if main else None
    low, _, high = statistics.quantiles(main, n=4) if main else (0.0, 0.0, 0.0)
    peak = limits["int8_ops_s" if contender.integer else "float_ops_s"]
    moved = least_bytes(problem, contender.bits, contender.input, contender.output)
    move_ms = 1e3 * moved / limits["copy_bytes_s"]
    ceiling_ms = max(move_ms, 1e3 * problem.operations / peak) if peak else None
    return {
        "problem": problem.name,
        "networks": list(shape.groups),
        "op": "quant_conv2d" if shape.conv else "quant_matmul",
        "weight": list(shape.weight),
        "rows": problem.rows,
        "image": shape.size if shape.conv else None,
        "stride": shape.stride if shape.conv else None,
        "padding": shape.padding if shape.conv else None,
        "contender": contender.name,
        "ours": contender.ours,
        "float_layer": contender.float_layer,
        "bits": contender.bits,
        "activation": contender.activation,
        "input": str(contender.input).removeprefix("torch."),
        "output": str(contender.output).removeprefix("torch."),
        "bytes": moved,
        "operations": problem.operations,
        "ms": ms,
        "warm_ms": 1e3 * statistics.median(warm) if warm else None,
        "spread": (high - low) * 1e3 / ms if ms else None,
        "calls": len(main or ()),
        "bytes_ms": move_ms,
        "ceiling_ms": ceiling_ms,
        "fraction": ceiling_ms / ms if ms and ceiling_ms else None,
        "checked": found[0],
        "error": found[1] or (skipped if contender.ours else ""),
        "skipped": "" if contender.ours else skipped,
        "note": clock.note if clock else "",
    }


def table(result: dict[str, Any]) -> RenderableType:
    """The rows and the goals for a terminal."""
    limits, cold = result["ceilings"], result["device"] != "cpu"
    only = f", --only {result['only']}" if result["only"] else ""
    shown = Table(title=f"tq bench kernels, {result['set']} set{only}", caption=_caption(result))
    for name in ("problem", "contender", "w", "activation"):
        shown.add_column(name, overflow="fold")
    for name in ("ms", *(("warm ms",) if cold else ()), "spread", "of ceiling", "speedup"):
        shown.add_column(name, justify="right")
    shown.add_column("checked", overflow="fold")
    last = ""
    for row in result["rows"]:
        if row["problem"] != last and last:
            shown.add_section()
        numbers = ((row["ms"], ".4g"), *(((row["warm_ms"], ".4g"),) if cold else ()), (row["spread"], ".0%"),
                   (row["fraction"], ".0%"), (row["speedup"], ".2f"))  # fmt: skip
        cells = ["" if value is None else f"{value:{form}}" for value, form in numbers]
        first = "" if row["problem"] == last else row["problem"]
        said = row["error"] or row["skipped"] or row["checked"] + (f"; {row['note']}" if row["note"] else "")
        shown.add_row(first, row["contender"], str(row["bits"]), row["activation"], *cells, said)
        last = row["problem"]
    return Group(shown, Text("\n".join(lines(result["goals"]))) if limits else "")


def _caption(result: dict[str, Any]) -> str:
    limits, cpu = result["ceilings"], result["device"] == "cpu"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    parts = [f"{result['cpu'] if cpu else result['device']}, {result['threads']} threads, {versions}"]
    if limits:
        int8 = f"{limits['int8_ops_s'] / 1e12:.3g} Tops int8" if limits["int8_ops_s"] else "no int8 peak"
        floats = f"{limits['float_ops_s'] / 1e12:.3g} Tflops {'float32' if cpu else 'bfloat16'}"
        parts.append(f"ceilings: {limits['copy_bytes_s'] / 1e9:.4g} GB/s, {int8}, {floats} ({limits['how']})")
    times = "warm (a cache may beat the copy's bandwidth)" if cpu else "ms with the L2 flushed, warm ms without"
    parts.append(f"medians, {times}; speedup over the problem's fastest float layer")
    if result["set"] == "quick":
        parts.append("the quick set; on a CPU the default, --only . measures all")
    return "; ".join(parts)
