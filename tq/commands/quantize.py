"""`tq quantize`: calibrate, pack, prove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor

from tq import checkpoint
from tq import data as datasets
from tq.attach import coverage, quant_layers, to_channels_last
from tq.checkpoint import predict_bytes
from tq.cli import Quantize
from tq.commands.evaluate import file_of
from tq.commands.output import print_result, size, stderr
from tq.config import QuantizeConfig
from tq.evaluate import evaluate
from tq.file_format import Info
from tq.layers import EXACT_FLOAT32, channels_last
from tq.models import build, load_into, weights_from
from tq.ptq.images import check_forward
from tq.ptq.quantize import quantize as quantize_model
from tq.train import describe, model_args, pick_device
from tq.verify import save_verified


def quantize(flags: Quantize, argv: list[str]) -> None:
    """Run the command. Raises ValueError and OSError for bad input."""
    config, log = flags.settings(QuantizeConfig), stderr()
    source = file_of(flags.file, flags.runs)
    # a run's file is always called model.safetensors, its directory is not
    stem = source.parent.resolve().name if source.name == "model.safetensors" else source.stem
    out = flags.out or Path(f"{stem}-{config.scheme}.safetensors")
    if out.resolve() == source.resolve():
        raise ValueError(f"--out {out} is the float file itself; give another name")
    state = weights_from(source)
    info = _described(source)
    name = config.model or (info.model or {}).get("name")
    if name is None:
        raise ValueError(f"{source} does not name its architecture; pass --model, e.g. --model resnet20")
    dataset = config.dataset or info.data.get("name")
    if dataset is None:
        raise ValueError(f"{source} does not name a data set for calibration; pass --dataset and --data")
    data = datasets.load(dataset, root=config.data, image_size=config.image_size or info.data.get("size"))
    mean, std = (
        config.mean or tuple(info.data.get("mean", data.mean)),
        config.std or tuple(info.data.get("std", data.std)),
    )
    if len(mean) != len(data.mean):
        raise ValueError(f"mean has {len(mean)} values, but the images of {dataset} have {len(data.mean)} channels")
    model, device = build(name, **model_args(data)), pick_device(config.device)
    load_into(model, state, where=source)
    model = to_channels_last(model).to(device).eval()

    def test() -> Any:
        return datasets.eval_batches(data.test, batch_size=config.batch_size, device=device, mean=mean, std=std)

    answer = check_forward(model, next(iter(test()))[0][:2])
    if not isinstance(answer, Tensor) or answer.dim() != 2:
        got = f"a {type(answer).__name__}" + (f" {list(answer.shape)}" if isinstance(answer, Tensor) else "")
        raise ValueError(f"expected {name} to answer with logits [N, classes], got {got}; let its factory wrap it")
    log.print(f"float accuracy on {len(data.test):,} test images ...")
    float_result = evaluate(model, test())
    info = describe(name, data, mean, std, {})
    metrics = {"float_accuracy": round(float_result.accuracy, 4), "float_bytes": predict_bytes(model, info)}
    log.print(f"calibrating {config.scheme} on {min(config.calib, len(data.train)):,} images ...")
    quantize_model(
        model,
        _calibration(data, config, mean, std, device),
        config.scheme,
        weight_range=config.weight_range,
        act_range=config.act_range,
        percentile=config.percentile,
        first_last=config.first_last,
        override=config.override,
        granularity=config.granularity,
    )
    log.print("packing, reading back, comparing ...")
    own = build(name, **model_args(data)) if ":" in name else None
    info = describe(name, data, mean, std, metrics)
    proof = save_verified(model, out, info, test, tolerance=config.tolerance, own_model=own)
    bounds = {n: m.accumulator_bound() for n, m in quant_layers(model).items()}
    result = {
        "file": str(out),
        "scheme": config.scheme,
        "float_accuracy": float_result.accuracy,
        "accuracy": proof.packed.accuracy,
        "correct": proof.packed.correct,
        "total": proof.packed.total,
        "bytes": proof.bytes,
        "float_bytes": metrics["float_bytes"],
        "theoretical_bytes": checkpoint.inspect(out).theoretical_bytes,
        "largest_logit_difference": proof.largest_difference,
        "tolerance": config.tolerance,
        "layers": [
            {"name": c.name, "kind": c.kind, "weight_bits": c.weight_bits, "act_bits": c.act_bits}
            for c in coverage(model)
        ],
        "not_quantized": [c.name for c in coverage(model) if c.weight_bits == 16 and c.act_bits == 16],
        "in_float64": [n for n, bound in bounds.items() if bound >= EXACT_FLOAT32],
    }
    print_result(result, flags, _render)


def _described(path: Path) -> Info:
    """What a tq float file says about itself; nothing for files of other programs."""
    if path.suffix != ".safetensors":
        return Info()
    try:
        return checkpoint.read_info(path)
    except ValueError:
        return Info()


def _calibration(
    data: datasets.DataSet,
    config: QuantizeConfig,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> list[Tensor]:
    """Seeded choice of training images, normalised, in batches."""
    generator = torch.Generator().manual_seed(config.seed)
    chosen = data.train.images[torch.randperm(len(data.train), generator=generator)[: config.calib]]
    return [channels_last(datasets.normalise(part.to(device), mean, std)) for part in chosen.split(config.batch_size)]


def _render(r: dict[str, Any]) -> Group:
    table = Table(title=f"{r['file']}: {size(r['bytes'])}", title_justify="left")
    for column, justify in (("network", "left"), ("accuracy %", "right"), ("bytes", "right"), ("of float", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_row("float", f"{r['float_accuracy']:.2f}", f"{r['float_bytes']:,}", "1")
    table.add_row(
        f"packed {r['scheme']}, read back",
        f"{r['accuracy']:.2f}",
        f"{r['bytes']:,}",
        f"1/{r['float_bytes'] / r['bytes']:.1f}",
    )
    lines = [
        f"largest difference of a logit between simulated and packed: {r['largest_logit_difference']:g} "
        f"(allowed {r['tolerance']:g})",
        f"left float: {', '.join(r['not_quantized']) or 'nothing'}",
    ]
    if r["in_float64"]:
        lines.append(f"simulated in float64, accumulators may pass 2^24: {', '.join(r['in_float64'])}")
    return Group(table, *lines)
