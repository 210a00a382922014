"""`tq quantize`: calibrate, pack, prove."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.progress import Progress
from rich.table import Table
from safetensors import safe_open
from torch import Tensor, nn

from tq import checkpoint
from tq import data as datasets
from tq.attach import Coverage, coverage, quant_layers, to_channels_last
from tq.byte_size import parse_size, size_text
from tq.checkpoint import predict_bytes
from tq.commands.checking import progress_on
from tq.commands.evaluate import file_of
from tq.commands.output import print_result, stderr
from tq.config import QuantizeConfig
from tq.describe import describe, images_of, model_args, normal_of
from tq.divergence import compare, twins
from tq.evaluate import evaluate
from tq.file_format import FORMAT
from tq.file_info import Info
from tq.flags.files import Quantize
from tq.layers import EXACT_FLOAT32, channels_last
from tq.machine import pick_device
from tq.macs import multiply_accumulates
from tq.mixed_precision import Choice
from tq.models import build
from tq.pareto_plot import plot_front
from tq.picture import SUFFIXES
from tq.post_training import run
from tq.ptq.images import check_forward
from tq.verify import Proof, save_verified
from tq.weights import load_into, weights_from

# Between two lines of progress in a file: often enough for whoever watches it, rare enough for whoever keeps it.
LINE_EVERY_S = 5.0


def quantize(flags: Quantize, argv: list[str]) -> None:
    """Run the command. Raises ValueError and OSError for bad input."""
    config, log = flags.settings(QuantizeConfig), stderr()
    source = file_of(flags.file, flags.runs)
    # a run's file is always called model.safetensors, its directory is not
    stem = source.parent.resolve().name if source.name == "model.safetensors" else source.stem
    out = flags.out or Path(f"{stem}-{config.scheme}{_limit(config)}.safetensors")
    _check_targets(flags, config, source, out)
    state = weights_from(source)
    info = _described(source)
    name = config.model or (info.model or {}).get("name")
    if name is None:
        raise ValueError(f"{source} does not name its architecture; pass --model, e.g. --model resnet20")
    dataset = config.dataset or info.data.get("name")
    if dataset is None:
        raise ValueError(f"{source} does not name a data set for calibration; pass --dataset and --data")
    data = images_of(info, dataset, config.data, image_size=config.image_size)
    mean, std = normal_of(info, data, config.mean, config.std)
    if len(mean) != (channels := data.train.shape[0]):
        raise ValueError(f"mean has {len(mean)} values, but the images of {dataset} have {channels} channels")
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
    images = _calibration(data, config, mean, std, device)
    log.print(f"quantizing to {config.scheme} with {sum(map(len, images)):,} images, effort {config.effort} ...")
    twin, unfinished = copy.deepcopy(model), out.with_name(out.name + ".state")
    # what is measured later takes room in the file's header too
    widest = {"accuracy": 99.9999, "correct": len(data.test), "total": len(data.test)}
    with progress_on(log) as bars, _resumable(unfinished, log):
        found = run(
            model,
            images,
            config.scheme,
            weight_range=config.weight_range,
            act_range=config.act_range,
            percentile=config.percentile,
            act_symmetric=config.act_symmetric,
            first_last=config.first_last,
            override=config.override,
            granularity=config.granularity,
            group_size=config.group_size,
            effort=config.effort,
            target_bytes=None if config.target_size is None else parse_size(config.target_size),
            max_drop=config.max_drop,
            info=replace(info, metrics=metrics | widest),
            seed=config.seed,
            state=unfinished,
            progress=_told_to(bars),
        )
    log.print("packing, reading back, comparing ...")
    own = build(name, **model_args(data)) if ":" in name else None
    info = describe(name, data, mean, std, metrics)
    proof = save_verified(model, out, info, test, tolerance=config.tolerance, own_model=own)
    if found.recovery is not None and found.recovery.rows:
        unfinished.unlink(missing_ok=True)
    if flags.plot is not None and found.choice is not None:
        _plot(found.choice, proof, flags.plot, config)
    bounds = {n: m.accumulator_bound() for n, m in quant_layers(model).items()}
    ratios = {row.name: row.snr_db for row in compare(twin, model, [images[0][:32]], names=twins(model, twin))}
    result = {
        "file": str(out),
        "scheme": config.scheme,
        "effort": config.effort,
        "float_accuracy": float_result.accuracy,
        "accuracy": proof.packed.accuracy,
        "correct": proof.packed.correct,
        "total": proof.packed.total,
        "bytes": proof.bytes,
        "float_bytes": metrics["float_bytes"],
        "theoretical_bytes": checkpoint.inspect(out).theoretical_bytes,
        "largest_logit_difference": proof.largest_difference,
        "tolerance": config.tolerance,
        "layers": _layers(model, images[0], ratios, found.choice),
        "not_quantized": [c.name for c in coverage(model) if c.weight_bits == 16 and c.act_bits == 16],
        "in_float64": [n for n, bound in bounds.items() if bound >= EXACT_FLOAT32],
        "recovery": None if found.recovery is None else asdict(found.recovery),
        "allocation": None if found.choice is None else _allocation(found.choice),
    }
    print_result(result, flags, _render)


def _told_to(bars: Progress, clock: Callable[[], float] = time.monotonic) -> Callable[[str, int, int], None]:
    """A progress callback that moves one bar; where stderr is no terminal it says a line now and then."""
    task, said = bars.add_task("", total=None), -math.inf

    def tell(what: str, done: int, of: int) -> None:
        nonlocal said
        bars.update(task, description=what, completed=done, total=of or None)
        if bars.disable and clock() - said >= LINE_EVERY_S:
            said = clock()
            bars.console.print(f"{what} {done}/{of}" if of else what, markup=False)

    return tell


def _layers(model: nn.Module, images: Tensor, ratios: dict[str, float], choice: Choice | None) -> list[dict[str, Any]]:
    """Every layer: bits, multiply-accumulates for one image, bytes, signal-to-noise against float, why these bits."""
    macs, reasons = multiply_accumulates(model, images[:1]), choice.allocation.reasons if choice else {}
    return [
        {
            "name": c.name,
            "kind": c.kind,
            "scheme": c.scheme,
            "group": c.group,
            "weight_bits": c.weight_bits,
            "act_bits": c.act_bits,
            "macs": macs.get(c.name, 0),
            "bytes": _bytes(c),
            "snr_db": ratios.get(c.name),
            "why": reasons.get(c.name, ""),
        }
        for c in coverage(model)
    ]


def _bytes(layer: Coverage) -> int:
    """Of the codes, and of the scales where these are more than one a channel."""
    codes = math.ceil(math.prod(layer.shape) * (layer.weight_bits if layer.weight_bits < 16 else 32) / 8)
    groups = math.ceil(math.prod(layer.shape[1:]) / layer.group) if layer.group else 0
    return codes + 4 * layer.shape[0] * groups


def _allocation(choice: Choice) -> dict[str, Any]:
    return {
        "predicted_bytes": choice.allocation.chosen.bytes,
        "predicted_loss": choice.allocation.chosen.loss,
        "front": [{"bytes": p.bytes, "loss": p.loss} for p in choice.allocation.front],
        "measured": [{"bytes": m.point.bytes, "drop": m.drop} for m in choice.measured],
    }


def _plot(choice: Choice, proof: Proof, out: Path, config: QuantizeConfig) -> None:
    """The front, with the file that was written as the star."""
    plot_front(
        out,
        predicted=[(p.bytes, p.loss) for p in choice.allocation.front],
        chosen=(proof.bytes, 100 - proof.packed.accuracy),
        target_bytes=None if config.target_size is None else parse_size(config.target_size),
    )


def _limit(config: QuantizeConfig) -> str:
    """What a chosen size or drop adds to the file's name."""
    if config.target_size is not None:
        return f"-{config.target_size}"
    return "" if config.max_drop is None else f"-drop{config.max_drop:g}"


def _check_targets(flags: Quantize, config: QuantizeConfig, source: Path, out: Path) -> None:
    """Raise ValueError for places that could not be written, before the work begins."""
    if out.resolve() == source.resolve():
        raise ValueError(f"--out {out} is the float file itself; give another name")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"cannot write {out}: its directory is missing or read-only; give another --out")
    if flags.plot is None:
        return
    if config.target_size is None and config.max_drop is None:
        raise ValueError("--plot draws the choice of bits; give --target-size or --max-drop with it")
    if flags.plot.suffix.lower() not in SUFFIXES or not flags.plot.parent.is_dir():
        raise ValueError(f"cannot write --plot {flags.plot}: expected {', '.join(SUFFIXES)} in a directory that exists")


@contextlib.contextmanager
def _resumable(unfinished: Path, log: Console) -> Iterator[None]:
    """On Ctrl-C say what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        if unfinished.exists():
            log.print(f"the same command goes on from {unfinished}")
        raise


def _described(path: Path) -> Info:
    """What a tq float file says about itself; nothing for files of other programs."""
    if path.suffix != ".safetensors":
        return Info()
    with safe_open(path, "pt") as file:
        ours = (file.metadata() or {}).get("format") == FORMAT
    return checkpoint.read_info(path) if ours else Info()


def _calibration(
    data: datasets.DataSet,
    config: QuantizeConfig,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> list[Tensor]:
    """Seeded choice of training images, normalised, in batches."""
    generator = torch.Generator().manual_seed(config.seed)
    chosen = data.train.take(torch.randperm(len(data.train), generator=generator)[: config.calib])
    return [channels_last(datasets.normalise(part.to(device), mean, std)) for part in chosen.split(config.batch_size)]


def _render(r: dict[str, Any]) -> Group:
    table = Table(title=f"{r['file']}: {size_text(r['bytes'])}", title_justify="left")
    for column, justify in (("network", "left"), ("accuracy %", "right"), ("bytes", "right"), ("of float", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_row("float", f"{r['float_accuracy']:.2f}", f"{r['float_bytes']:,}", "1")
    table.add_row(
        f"packed {r['scheme']}, read back",
        f"{r['accuracy']:.2f}",
        f"{r['bytes']:,}",
        f"1/{r['float_bytes'] / r['bytes']:.1f}",
    )
    lines: list[Any] = [_account(r["layers"])] if r["effort"] != "none" or r["allocation"] else []
    lines += [
        f"largest difference of a logit between simulated and packed: {r['largest_logit_difference']:g} "
        f"(allowed {r['tolerance']:g})",
        f"left float: {', '.join(r['not_quantized']) or 'nothing'}; {_covered(r['layers'])}",
    ]
    if r["recovery"] and r["recovery"]["rows"]:
        lines.append(
            f"rounding learned in {r['recovery']['seconds'] / 60:.1f} minutes, {len(r['recovery']['rows'])} blocks"
            + (f", {r['recovery']['resumed']} of them resumed" if r["recovery"]["resumed"] else "")
        )
    if r["allocation"]:
        lines.append(f"predicted at most {r['allocation']['predicted_bytes']:,} bytes, written {r['bytes']:,}")
    if r["in_float64"]:
        lines.append(f"simulated in float64, accumulators may pass 2^24: {', '.join(r['in_float64'])}")
    return Group(table, *lines)


def _covered(layers: list[dict[str, Any]]) -> str:
    quantized = [n for n in layers if n["weight_bits"] < 16 and n["act_bits"] < 16 and not n["group"]]

    def share(what: str) -> float:
        return 100 * sum(layer[what] for layer in quantized) / max(1, sum(layer[what] for layer in layers))

    return f"integer: {len(quantized)} of {len(layers)} layers, {share('macs'):.1f} % of the multiply-accumulates"


def _account(layers: list[dict[str, Any]]) -> Table:
    table = Table(title="layers", title_justify="left")
    for column in ("layer", "bits", "bytes", "dB", "why"):
        table.add_column(column, justify="right" if column in ("bytes", "dB") else "left", overflow="fold")
    for layer in layers:
        ratio = "" if layer["snr_db"] is None else f"{layer['snr_db']:.1f}"
        table.add_row(layer["name"], layer["scheme"], f"{layer['bytes']:,}", ratio, layer["why"])
    return table
