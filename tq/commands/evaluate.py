"""`tq eval`, `tq predict`, `tq inspect`: what can be done with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import nn

from tq import checkpoint, runs
from tq import data as datasets
from tq.byte_size import size_text
from tq.commands.output import show
from tq.describe import images_of, normal_of
from tq.evaluate import evaluate
from tq.file_info import Info
from tq.flags.files import Eval, Inspect, Predict
from tq.imagefolder import read_image
from tq.layers import channels_last
from tq.machine import pick_device
from tq.models import build


def eval(flags: Eval, argv: list[str]) -> None:
    """Accuracy on the test split."""
    if flags.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {flags.batch_size}")
    path = file_of(flags.target, flags.runs)
    info = checkpoint.read_info(path)
    device = pick_device(flags.device)
    model = checkpoint.load(path, model=own_model(flags.model, info), impl=flags.impl, device=device)
    data = data_of(info, flags.dataset, flags.data)
    mean, std = normal_of(info, data)
    batches = datasets.eval_batches(data.test, batch_size=flags.batch_size, device=device, mean=mean, std=std)
    result = evaluate(model, batches)
    fields = {
        "file": str(path), "accuracy": result.accuracy, "correct": result.correct, "total": result.total,
        "loss": result.loss, "bytes": path.stat().st_size, "dataset": data.name,
    }  # fmt: skip
    show(
        fields,
        flags,
        lambda r: f"{r['accuracy']:.2f} %  ({r['correct']:,} of {r['total']:,}), {size_text(r['bytes'])}, {path}",
    )


def predict(flags: Predict, argv: list[str]) -> None:
    """Top classes of image files."""
    path = file_of(flags.file, flags.runs)
    info = checkpoint.read_info(path)
    if not flags.images or flags.top < 1:
        raise ValueError("tq predict needs at least one image, and --top at least 1")
    device = pick_device(flags.device)
    model = checkpoint.load(path, model=own_model(flags.model, info), device=device)
    _needs_data(info, path)
    said, rows = info.data, []
    for image in flags.images:
        pixels = read_image(image, channels=said["channels"], size=said["size"], resize=said.get("resize"))
        x = datasets.normalise(pixels[None].to(device), said["mean"], said["std"])
        with torch.inference_mode():
            shares = model(channels_last(x)).softmax(1)[0]
        best = shares.topk(min(flags.top, len(shares)))
        names = [info.classes[i] if i < len(info.classes) else str(i) for i in best.indices.tolist()]
        top = [{"class": name, "probability": share} for name, share in zip(names, best.values.tolist(), strict=True)]
        rows.append({"image": str(image), "top": top})
    show({"file": str(path), "predictions": rows}, flags, _predictions)


def inspect(flags: Inspect, argv: list[str]) -> None:
    """The account of a file."""
    account = checkpoint.inspect(file_of(flags.file, flags.runs))
    rows = [
        {
            "name": r.name,
            "bits": r.bits,
            "shape": list(r.shape),
            "bytes": r.size_bytes,
            "share": r.size_bytes / account.file_bytes,
        }
        for r in account.rows
    ]
    fields = {
        "file": account.path, "bytes": account.file_bytes, "predicted_bytes": account.predicted_bytes,
        "theoretical_bytes": account.theoretical_bytes, "float_bytes": account.float_bytes,
        "header_bytes": account.header_bytes, "rows": rows, "model": account.info.model,
        "classes": list(account.info.classes), "data": account.info.data, "metrics": account.info.metrics,
    }  # fmt: skip
    show(fields, flags, _account)
    if account.predicted_bytes != account.file_bytes:
        raise ValueError(
            f"{account.path} has {account.file_bytes} bytes where its layers predict {account.predicted_bytes}"
        )


def file_of(target: str, root: Path) -> Path:
    """A model file by its path, or the file of a run. Raises ValueError."""
    path = Path(target)
    if path.is_file() or path.suffix in (".safetensors", ".pt", ".pth", ".th"):
        return path
    run = runs.find(root, target)
    if target == "last":
        # the newest that has a file: a run that failed at its start should not be in the way
        run = next((r for r in runs.list_runs(root) if (r / "model.safetensors").exists()), run)
    if not (run / "model.safetensors").exists():
        raise ValueError(f"run {run.name} has no model.safetensors yet (it is {runs.status(run).word})")
    return run / "model.safetensors"


def own_model(factory: str | None, info: Info) -> nn.Module | None:
    """The user's own network, named on the command line (never by a file)."""
    if factory is None:
        return None
    if info.model is None:
        raise ValueError(
            "the file does not say how many classes and channels it has; load it in Python: tq.load(path, model=...)"
        )
    return build(factory, **info.model["args"])


def data_of(info: Info, name: str | None, root: str | None) -> datasets.DataSet:
    """The file's data set, or the one asked for. Raises ValueError."""
    chosen = name or info.data.get("name")
    if chosen is None:
        raise ValueError("the file does not name its data set; pass --dataset and --data")
    data = images_of(info, chosen, root)
    if info.classes and len(data.classes) != len(info.classes):
        raise ValueError(
            f"the file has {len(info.classes)} classes, data set {chosen} has {len(data.classes)}; is it the right one?"
        )
    return data


def _needs_data(info: Info, path: Path) -> None:
    if not {"channels", "size", "mean", "std"} <= info.data.keys():
        raise ValueError(f"{path} does not say how its images are prepared (size, mean, std)")


def _predictions(result: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("image", overflow="fold")
    for number in range(1, max(len(row["top"]) for row in result["predictions"]) + 1):
        table.add_column(f"{number}.")
    for row in result["predictions"]:
        table.add_row(row["image"], *(f"{t['class']} {100 * t['probability']:.1f} %" for t in row["top"]))
    return table


def _account(fields: dict[str, Any]) -> Group:
    table = Table(
        title=f"{fields['file']}: {fields['bytes']:,} bytes, predicted {fields['predicted_bytes']:,}",
        title_justify="left",
    )
    for column, justify in (
        ("tensor", "left"),
        ("bits", "left"),
        ("shape", "left"),
        ("bytes", "right"),
        ("share", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    header = {
        "name": "header",
        "bits": "json",
        "shape": [],
        "bytes": fields["header_bytes"],
        "share": fields["header_bytes"] / fields["bytes"],
    }
    for row in [*fields["rows"], header]:
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(row["name"], row["bits"], shape, f"{row['bytes']:,}", f"{100 * row['share']:.1f} %")
    ratio = fields["bytes"] / fields["theoretical_bytes"]
    return Group(
        table,
        f"float {fields['float_bytes']:,} bytes, this file 1/{fields['float_bytes'] / fields['bytes']:.1f} of it",
        f"{ratio:.3f} times the theoretical {fields['theoretical_bytes']:,.0f} bytes "
        "(codes at their bits, the rest as stored)",
    )
