"""What quantization costs in training: the time of one step, float against one-bit weights, compiled, in one process.

    python benchmarks/train_step.py --threads 2 --json benchmarks/results/train_step.json

ResNet-20, batch 128, random images. Every contender first takes a few steps on one batch: a loss that is not finite or
does not fall gets no time. Then all take single steps in turns, so that what else the machine does falls on all alike;
the ratio is that of the medians, and its spread the interquartile range of the ratios turn by turn.
Goal: a w1a2 step costs at most 1.25 times a float step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tq.attach import attach, to_channels_last
from tq.config import TrainConfig
from tq.layers import channels_last
from tq.machine import pick_device
from tq.models import build
from tq.oscillation import Oscillation
from tq.ptq.calibrate import calibrate
from tq.step import TrainStep, make_optimizer

GOAL = 1.25
CHECK_STEPS = 6
CONTENDERS = {
    "float": TrainConfig(scheme="float"),
    "w1a2 lsq": TrainConfig(scheme="w1a2", act_quantizer="lsq"),
    "w1a2 clip": TrainConfig(scheme="w1a2", act_quantizer="clip"),
    "w1a2 lsq hysteresis": TrainConfig(scheme="w1a2", act_quantizer="lsq", optimizer="hysteresis-sgd"),
}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each contender")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), help="default: all")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=False, help="bfloat16 autocast")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    flags = parser.parse_args()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    result = measure(flags)
    Console().print(table(result))
    if flags.json:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        flags.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Check and time the contenders; "float" is the baseline and always among them."""
    device = pick_device(flags.device)
    generator = torch.Generator().manual_seed(0)
    x = channels_last(torch.randn(flags.batch_size, 3, 32, 32, generator=generator)).to(device)
    y = torch.randint(10, (flags.batch_size,), generator=generator).to(device)
    steps, checked, errors = {}, {}, {}
    for name in dict.fromkeys(["float", *flags.only]):
        begin = time.perf_counter()
        step = _step(CONTENDERS[name], flags, x, device)
        losses = [float(step(x, y, 0.02)[0]) for _ in range(CHECK_STEPS)]
        checked[name] = f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {CHECK_STEPS} steps on one batch"
        if all(loss - loss == 0 for loss in losses) and losses[-1] < losses[0]:
            steps[name] = step
        else:
            errors[name] = f"wrong: {checked[name]}"
        print(f"{name}: {checked[name]}, ready after {time.perf_counter() - begin:.0f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(flags.steps):
        for name, step in steps.items():
            times[name].append(_seconds(step, x, y))
    return {
        "benchmark": "train_step",
        "date": time.strftime("%Y-%m-%d"),
        "model": flags.model,
        "batch_size": flags.batch_size,
        "amp": flags.amp,
        "compile": flags.compile,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "steps": flags.steps,
        "goal": GOAL,
        "rows": [_row(name, times, flags.batch_size, checked[name], errors.get(name, "")) for name in checked],
    }


def table(result: dict[str, Any]) -> Table:
    """The result for a terminal."""
    shown = Table(
        title=f"{result['model']}, batch {result['batch_size']}, amp {result['amp']}, compile {result['compile']}",
        caption=f"{result['device']}, {result['threads']} threads, torch {result['versions']['torch']}; medians of "
        f"{result['steps']} steps in turns; goal: ratio at most {result['goal']}",
    )
    for name in ("contender", "ms", "min ms", "spread", "images/s", "ratio", "ratio IQR"):
        shown.add_column(name, justify="left" if name == "contender" else "right")
    for row in result["rows"]:
        if row["error"]:
            shown.add_row(row["contender"], row["error"])
            continue
        low, high = row["ratio_iqr"]
        numbers = (f"{row['ms']:.1f}", f"{row['min_ms']:.1f}", f"{row['spread']:.0%}", f"{row['images_per_s']:,.0f}")
        shown.add_row(row["contender"], *numbers, f"{row['ratio']:.3f}", f"{low:.2f} to {high:.2f}")
    return shown


def _step(config: TrainConfig, flags: argparse.Namespace, x: Tensor, device: torch.device) -> TrainStep:
    torch.manual_seed(0)
    model = to_channels_last(build(flags.model, num_classes=10)).to(device)
    if config.scheme != "float":
        attach(model, config.scheme, act_quantizer=config.act_quantizer)
        calibrate(model, [x], batch_statistics=True)
    optimizer = make_optimizer(model, config)
    follows = Oscillation(model, optimizer).observe
    return TrainStep(model.train(), optimizer, compile=flags.compile, amp=flags.amp, after=follows)


def _seconds(step: TrainStep, x: Tensor, y: Tensor) -> float:
    begin = time.perf_counter()
    step(x, y, 0.01)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begin


def _row(name: str, times: dict[str, list[float]], batch_size: int, checked: str, error: str) -> dict[str, Any]:
    """Times in ms; spread is the interquartile range over the median."""
    if error or "float" not in times:
        return {"contender": name, "checked": checked, "error": error or "not timed: the float baseline is wrong"}
    own, base = times[name], times["float"]
    low, median, high = statistics.quantiles(own, n=4, method="inclusive")
    ratio_low, _, ratio_high = statistics.quantiles(
        [a / b for a, b in zip(own, base, strict=True)], n=4, method="inclusive"
    )
    return {
        "contender": name,
        "ms": 1e3 * median,
        "min_ms": 1e3 * min(own),
        "images_per_s": batch_size / median,
        "spread": (high - low) / median,
        "ratio": median / statistics.median(base),
        "ratio_iqr": [ratio_low, ratio_high],
        "checked": checked,
        "error": "",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
