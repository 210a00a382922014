"""`tq verify`."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.progress import Progress
from rich.table import Table
from torch import nn

from tq.commands.checking import Sample, agreement_of, load_packed, packed_file, progress_on, sample_of
from tq.commands.evaluate import own_model
from tq.commands.export import checks_table
from tq.commands.output import show, stderr
from tq.cross_check import contenders
from tq.dequantize import build_float
from tq.divergence import OUTPUT, Row, compare, first_divergence, is_layer, twins
from tq.evaluate import evaluate
from tq.file_info import Info
from tq.flags.files import Verify
from tq.machine import pick_device
from tq.onnx.engines import ENGINES
from tq.packed import packed_layers
from tq.peers import needed
from tq.weights import load_into, weights_from


def verify(flags: Verify, argv: list[str]) -> int:
    """Compare; 1 if implementations differ, or the ONNX file is outside its tolerance."""
    path, info = packed_file(flags)
    if flags.images < 1:
        raise ValueError(f"expected --images of at least 1, got {flags.images}")
    device = pick_device(flags.device)
    reference = load_packed(path, info, flags, impl="reference", device=device)
    for name in ("onnx", *ENGINES) if flags.onnx else ():
        needed(name)
    original = _float_network(path, info, flags).to(device).eval() if flags.float_file else None
    sample, log = sample_of(info, flags, device), stderr()
    with progress_on(log) as progress:
        result = _implementations(reference, sample, progress)
        result = {"file": str(path), "dataset": sample.dataset, "images": len(sample.labels), **result}
        if original is not None:
            result["float_file"] = flags.float_file
            result["against_float"] = _against_float(reference, original, sample, progress)
        if flags.onnx:
            result["onnx"] = _onnx(reference, flags.onnx, path, sample, progress)
    result["passed"] = result["first_divergence"] is None and result.get("onnx", {}).get("passed") is not False
    show(result, flags, _render)
    return int(not result["passed"])


def _implementations(reference: nn.Module, sample: Sample, progress: Progress) -> dict[str, Any]:
    """Every implementation beside the reference: largest difference of each layer's output."""
    example = next(sample.batches(progress, "preparing"))[0][:2]
    others, refused = contenders(reference, example)
    names = {name: name for name, module in reference.named_modules() if is_layer(module)}
    rows: dict[str, list[Row]] = {}
    for impl, other in others.items():
        images = (x for x, _ in sample.batches(progress, f"reference and {impl}"))
        rows[impl] = compare(reference, other, images, names={} if impl == "fused" else names)
    found = {impl: first_divergence(one) for impl, one in rows.items()}
    first = next(((impl, row) for impl, row in found.items() if row is not None), None)
    layers = packed_layers(reference)
    order = [row.name for row in max(rows.values(), key=len)] if rows else []
    return {
        "layers": [
            {
                "name": name,
                "bits": _bits(layers, name),
                "largest_difference": {i: r.largest for i, one in rows.items() for r in one if r.name == name},
            }
            for name in order
        ],
        "not_run": refused,
        "first_divergence": None if first is None else {"implementation": first[0], "layer": first[1].name},
    }


def _bits(layers: dict[str, Any], name: str) -> str:
    if name == OUTPUT:
        return ""
    return layers[name].format.name if name in layers else "float"


def _float_network(path: Path, info: Info, flags: Verify) -> nn.Module:
    assert flags.float_file is not None
    state = weights_from(flags.float_file)
    own = own_model(flags.model, info)
    model = build_float(path, info) if own is None else own
    load_into(model, state, where=flags.float_file)
    return model


def _against_float(packed: nn.Module, original: nn.Module, sample: Sample, progress: Progress) -> list[dict[str, Any]]:
    images = (x for x, _ in sample.batches(progress, "packed and float"))
    rows = compare(original, packed, images, names=twins(packed, original))
    return [{"name": r.name, "snr_db": r.snr_db, "largest_difference": r.largest} for r in rows]


def _onnx(packed: nn.Module, file: Path, source: Path, sample: Sample, progress: Progress) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"expected an exported file, got --onnx {file}, which does not exist; write it with tq export")
    noted = {p.key: p.value for p in needed("onnx").load(str(file)).metadata_props}
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if noted.get("source_sha256", digest) != digest:
        raise ValueError(f"{file} was exported from another file than {source}; export this one: tq export {source}")
    expected = evaluate(packed, sample.batches(progress, "packed file"))
    checks = [agreement_of(name, file, expected.logits, sample, progress) for name in ENGINES]
    return {
        "file": str(file),
        "packed_accuracy": expected.accuracy,
        "checks": [dataclasses.asdict(c) | {"passed": c.passed} for c in checks],
        "passed": all(c.passed for c in checks),
    }


def _render(result: dict[str, Any]) -> Group:
    impls = sorted({impl for layer in result["layers"] for impl in layer["largest_difference"]})
    ratios = {row["name"]: row["snr_db"] for row in result.get("against_float", ())}
    table = Table(title=f"{result['file']}, {result['images']:,} images of {result['dataset']}", title_justify="left")
    for column in ("layer", "bits", *impls, *(["float: dB"] if ratios else [])):
        table.add_column(column, justify="left" if column in ("layer", "bits") else "right")
    for layer in result["layers"]:
        found = layer["largest_difference"]
        cells = [_cell(found.get(impl)) for impl in impls]
        ratio = ratios.get(layer["name"])
        table.add_row(
            layer["name"], layer["bits"], *cells, *([f"{ratio:.1f}" if ratio is not None else ""] * bool(ratios))
        )
    lines: list[Any] = [table, "columns: largest difference from the reference's output, `=` where all are equal"]
    lines += [f"not run: {impl} ({why})" for impl, why in result["not_run"].items()]
    first = result["first_divergence"]
    lines.append(
        f"DIVERGES first at {first['layer']} in {first['implementation']}" if first else "all implementations are equal"
    )
    if ratios:
        worst = min((n for n in ratios if n != OUTPUT), key=lambda n: ratios[n])
        lines.append(f"farthest from float: {worst}, {ratios[worst]:.1f} dB; output {ratios[OUTPUT]:.1f} dB")
    if onnx := result.get("onnx"):
        lines += [onnx["file"], checks_table(onnx["checks"], onnx["packed_accuracy"], result["images"])]
    return Group(*lines)


def _cell(value: float | None) -> str:
    return "" if value is None else "=" if value == 0 else f"{value:.3g}"
