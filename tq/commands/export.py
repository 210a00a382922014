"""`tq export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.progress import Progress
from rich.table import Table
from torch import nn

from tq import export as exporting
from tq import hub
from tq.byte_size import size_text
from tq.commands.checking import Sample, agreement_of, load_packed, packed_file, progress_on, sample_of
from tq.commands.output import show, stderr
from tq.evaluate import evaluate, largest_difference
from tq.file_info import Info
from tq.flags.files import Export
from tq.onnx.engines import ENGINES, MEAN_DIFFERENCE, SAME_CLASS
from tq.peers import needed


def export(flags: Export, argv: list[str]) -> int:
    """Write what was asked for and check it; 1 if a check failed, the file is then there to look at."""
    path, info = packed_file(flags)
    targets = {"--onnx": flags.onnx, "--pt2": flags.pt2, "--hub": flags.hub}
    if not any(targets.values()):
        raise ValueError("expected what to write, got nothing; give --onnx OUT.onnx, --pt2 OUT.pt2 or --hub DIR")
    for flag, target in targets.items():
        _check_target(flag, target, path)
    if flags.hub:
        hub.check_folder(flags.hub)
    result: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size, "passed": True}
    log = stderr()
    if flags.onnx or flags.pt2:
        model = load_packed(path, info, flags, impl="auto", device="cpu")
        for name in ("onnx", *(ENGINES if flags.images else ())) if flags.onnx else ():
            needed(name)
        sample = sample_of(info, flags) if flags.images else None
        with progress_on(log) as progress:
            if flags.onnx:
                for note in exporting.weight_notes(model, flags.weights):
                    log.print(note)
                result["onnx"] = _onnx(model, flags.onnx, path, info, flags.weights, sample, progress)
            if flags.pt2:
                result["pt2"] = _pt2(model, flags.pt2, path, info, sample, progress)
    if flags.hub:
        result["hub"] = {"folder": str(flags.hub), "files": hub.write(path, flags.hub)}
    result["passed"] = all(result.get(kind, {}).get("passed") is not False for kind in ("onnx", "pt2"))
    show(result, flags, _render)
    return int(not result["passed"])


def _check_target(flag: str, target: Path | None, source: Path) -> None:
    if target is None:
        return
    if target.resolve() in (source.resolve(), source.resolve().parent):
        raise ValueError(f"{flag} {target} is where the packed file itself is; give another name")
    if flag != "--hub" and (target.is_dir() or not target.parent.is_dir()):
        raise ValueError(f"cannot write {flag} {target}: expected a file name in a directory that exists")


def _onnx(
    model: nn.Module, out: Path, source: Path, info: Info, weights: str, sample: Sample | None, progress: Progress
) -> dict[str, Any]:
    written = dataclasses.asdict(exporting.to_onnx(model, out, source=source, info=info, weights=weights))
    if sample is None:
        return {**written, "images": 0, "checks": [], "passed": None}
    expected = evaluate(model, sample.batches(progress, "packed file"))
    checks = [agreement_of(name, out, expected.logits, sample, progress) for name in ENGINES]
    return {
        **written,
        "images": expected.total,
        "packed_accuracy": expected.accuracy,
        "checks": [dataclasses.asdict(c) | {"passed": c.passed} for c in checks],
        "passed": all(c.passed for c in checks),
    }


def _pt2(
    model: nn.Module, out: Path, source: Path, info: Info, sample: Sample | None, progress: Progress
) -> dict[str, Any]:
    result = {"path": str(out), "bytes": exporting.to_pt2(model, out, source=source, info=info)}
    if sample is None:
        return {**result, "images": 0, "passed": None}
    again = exporting.load_pt2(out)
    worst, count = 0.0, 0
    with torch.no_grad():
        for x, _ in sample.batches(progress, out.name):
            worst, count = max(worst, largest_difference(model(x), again(x))), count + len(x)
    return {**result, "images": count, "largest_logit_difference": worst, "passed": worst == 0}


def _render(result: dict[str, Any]) -> Group:
    parts: list[Any] = [f"{result['file']}: {size_text(result['bytes'])} packed"]
    if onnx := result.get("onnx"):
        parts += [f"{onnx['path']}: {size_text(onnx['bytes'])}, ONNX operator set {onnx['opset']}", *onnx["weights"]]
        parts += [checks_table(onnx["checks"], onnx["packed_accuracy"], onnx["images"])] if onnx["checks"] else []
        parts += [] if onnx["checks"] else ["not checked: no images were asked for"]
    if pt2 := result.get("pt2"):
        verdict = {True: "bit for bit the packed file's logits", None: "not checked", False: "FAILED: other logits"}
        on = f" on {pt2['images']:,} images" if pt2["images"] else ""
        parts += [
            f"{pt2['path']}: {size_text(pt2['bytes'])}, {verdict[pt2['passed']]}{on}; load it after "
            "`import triton_kernels.ops`"
        ]
    if folder := result.get("hub"):
        files = ", ".join(f"{name} ({size_text(count)})" for name, count in folder["files"].items())
        parts += [f"{folder['folder']}: {files}"]
    return Group(*parts)


def checks_table(checks: list[dict[str, Any]], packed_accuracy: float, images: int) -> Group:
    """Engines beside the packed file, and the rule that they were held to."""
    table = Table()
    for column in ("engine", "accuracy %", "same class %", "of decided %", "mean diff.", "largest diff.", "verdict"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    table.add_row("packed", f"{packed_accuracy:.2f}")
    for c in checks:
        table.add_row(
            f"{ENGINES[c['engine']]} {c['version']}", f"{c['accuracy']:.2f}", f"{100 * c['same_class']:.2f}",
            f"{100 * c['same_class_decided']:.2f}", f"{c['mean_difference']:.4f}", f"{c['largest_difference']:.4f}",
            "ok" if c["passed"] else "FAILED",
        )  # fmt: skip
    scale = checks[0]
    return Group(
        table,
        f"on {images:,} test images; logits are {scale['mean_logit']:.2f} on average, {scale['largest_logit']:.2f} at "
        f"most. Allowed: mean difference {100 * MEAN_DIFFERENCE:g} % of the average, the same class on "
        f"{100 * SAME_CLASS:g} % of the decided images",
        "engines sum in float, in another order: single activations may tip to the next code",
    )
