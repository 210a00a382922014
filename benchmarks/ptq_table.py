"""Post-training quantization of a float network beside ONNX Runtime's and OpenVINO's own int8, on the same images.

    python benchmarks/ptq_table.py resnet20.th --model resnet20-a --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 \\
        --dataset imagefolder --data DIR --out benchmarks/results/ptq_resnet20_a.json
    python benchmarks/ptq_table.py float.safetensors --dataset mnist --data DIR        # a file of `tq train`

Every row of ours is `tq quantize` run as a user would, once for each seed of the calibration images, its accuracy that
of the packed file read back, on the whole test split. A result that --out already holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tq import data, peers
from tq.checkpoint import read_info
from tq.describe import model_args
from tq.evaluate import evaluate
from tq.layers import channels_last
from tq.models import build
from tq.weights import load_into, weights_from

ROWS = ("w8a8 fast", "w4a8 default", "w4a4 default", "w2a8 best")


def main() -> None:
    """Run what is missing, print the table."""
    flags = _flags()
    found: dict[str, Any] = json.loads(flags.out.read_text()) if flags.out and flags.out.exists() else {}
    console = Console()
    for row in flags.rows:
        for seed in flags.seeds:
            _once(found, f"{row} seed {seed}", lambda row=row, seed=seed: _ours(flags, row, seed), flags.out, console)
    for name in flags.peers:
        for seed in flags.seeds:
            _once(
                found,
                f"{name} int8 seed {seed}",
                lambda name=name, seed=seed: _peer(flags, name, seed),
                flags.out,
                console,
            )
    console.print(_table(found, [*flags.rows, *(f"{name} int8" for name in flags.peers)]))


def _once(found: dict[str, Any], key: str, run: Any, out: Path | None, console: Console) -> None:
    if key in found:
        return
    console.print(f"{key} ...", style="dim")
    start = time.perf_counter()
    found[key] = {**run(), "seconds": round(time.perf_counter() - start, 1)}
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")


def _ours(flags: argparse.Namespace, row: str, seed: int) -> dict[str, Any]:
    scheme, effort = row.split()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "tq",
            "quantize",
            str(flags.file),
            "--model",
            flags.model,
            "--dataset",
            flags.dataset,
        ]
        command += ["--data", flags.data, "--scheme", scheme, "--effort", effort, "--seed", str(seed)]
        command += ["--mean", *map(str, flags.mean), "--std", *map(str, flags.std)]
        command += ["--json", "--out", str(Path(folder) / "packed.safetensors")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    return {name: result[name] for name in ("accuracy", "float_accuracy", "bytes", "largest_logit_difference")}


def _peer(flags: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    images = data.load(flags.dataset, root=flags.data, whole=False)
    model = build(flags.model, **model_args(images))
    load_into(model, weights_from(flags.file), where=flags.file)
    # the draw of `tq quantize`
    chosen = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))[:512]
    calibration = data.normalise(images.train.take(chosen), tuple(flags.mean), tuple(flags.std))
    engine = peers.int8(name, model.eval(), calibration)

    class Engine(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return engine(channels_last(x))

    batches = data.eval_batches(images.test, batch_size=256, device=torch.device("cpu"), mean=flags.mean, std=flags.std)
    return {"accuracy": evaluate(Engine(), batches).accuracy}


def _table(found: dict[str, Any], rows: list[str]) -> Table:
    table = Table(title="accuracy on the test split, percent")
    for column in ("network", "mean", "std", "seeds", "of float", "bytes", "minutes"):
        table.add_column(column, justify="left" if column == "network" else "right")
    reference = next((r["float_accuracy"] for r in found.values() if "float_accuracy" in r), None)
    if reference is not None:
        table.add_row("float", f"{reference:.2f}", "", "", "0", "", "")
    for row in rows:
        runs = [r for key, r in found.items() if key.startswith(f"{row} seed")]
        if not runs:
            continue
        scores = [r["accuracy"] for r in runs]
        mean, spread = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
        drop = "" if reference is None else f"{mean - reference:+.2f}"
        size = f"{runs[0]['bytes']:,}" if "bytes" in runs[0] else ""
        minutes = statistics.mean(r["seconds"] for r in runs) / 60
        table.add_row(row, f"{mean:.2f}", f"{spread:.2f}", str(len(runs)), drop, size, f"{minutes:.1f}")
    return table


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", help="with --mean and --std: for a file that does not name them itself")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--mean", type=float, nargs="+")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="'SCHEME EFFORT' each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peers", nargs="*", default=["onnxruntime", "openvino"])
    parser.add_argument("--out", type=Path, help="JSON; what it holds already is kept")
    flags = parser.parse_args()
    if not (flags.model and flags.mean and flags.std):
        info = read_info(flags.file)
        flags.model, flags.mean, flags.std = info.model["name"], info.data["mean"], info.data["std"]
    return flags


if __name__ == "__main__":
    main()
