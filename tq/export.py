"""Packed files for other programs: ONNX in QDQ form, and a `torch.export` archive; each is checked after writing.

`to_onnx` writes the integers of the file itself (tq/onnx/graph.py), the images' preparation stays outside and is noted
in the model's metadata. `to_pt2` keeps the packed codes and the operators of `torch.ops.tq`, so that the archive
predicts bit for bit what the file predicts; loading it needs `import triton_kernels.ops` first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import tq
from tq.atomic import atomic
from tq.file_info import Info
from tq.layers import channels_last
from tq.onnx.build import build
from tq.onnx.graph import code_bits, held_as
from tq.packed import Format, packed_layers
from tq.peers import needed


@dataclass(frozen=True)
class Written:
    """An exported file: its size, the ONNX operator set, and in words how weights are held in it."""

    path: str
    bytes: int
    opset: int
    weights: list[str]


def example_of(info: Info, path: str | Path, batch: int = 2) -> Tensor:
    """A batch float32 [batch, C, H, W] of the size of a file's images. Raises ValueError."""
    if not {"channels", "size"} <= info.data.keys():
        raise ValueError(
            f"{path} does not say how large its images are (channels, size); save it with data=... in Info"
        )
    size = info.data["size"]
    return channels_last(
        torch.randn(batch, info.data["channels"], size, size, generator=torch.Generator().manual_seed(0))
    )


def to_onnx(model: nn.Module, path: Path, *, source: Path, info: Info, weights: str = "auto") -> Written:
    """Write a packed network as QDQ ONNX. source: the packed file that it is of.

    weights: "int8", "int4" for all of 4 bits and less, or "auto", int4 for 4 bits alone.
    Raises ValueError: nothing is packed, a node has no translation, onnx is not installed; OSError.
    """
    if not packed_layers(model):
        raise ValueError(
            f"expected a packed file, got float weights in {source}; pack them first: tq quantize {source}"
        )
    exported = build(model, example_of(info, source), weights)
    opset = exported.opset_import[0].version
    notes = weight_notes(model, weights)
    needed("onnx").helper.set_model_props(exported, _metadata(source, info, notes))
    blob = exported.SerializeToString()
    with atomic(path) as file:
        file.write(blob)
    return Written(str(path), len(blob), opset, notes)


def weight_notes(model: nn.Module, weights: str) -> list[str]:
    """How each width of weights is held in the ONNX file and why, a sentence each."""
    counts: dict[Format, int] = {}
    for form in (layer.format for layer in packed_layers(model).values()):
        kind = Format(form.weight_bits, 16, False, 0, (), form.pow2, form.group)
        counts[kind] = counts.get(kind, 0) + math.prod(form.shape)
    ordered = sorted(counts.items(), key=lambda item: (item[0].weight_bits, item[0].pow2, item[0].group), reverse=True)
    return [
        _float_note(form, count) if form.pow2 or form.group else _weight_note(form.weight_bits, count, weights)
        for form, count in ordered
    ]


def _float_note(form: Format, count: int) -> str:
    if form.group:
        return (
            f"{count:,} weights of {form.weight_bits} bits with a scale for each {form.group}: float32, with the same "
            "values (ONNX has no such scales in a convolution)"
        )
    how = "int8, exactly" if code_bits(form) == 8 else "float32, exactly (int8 ends below 128)"
    return f"{count:,} weights of 0 and powers of two of {form.weight_bits} bits: {how}"


def _weight_note(bits: int, count: int, weights: str) -> str:
    what = f"{count:,} weights of {bits} bit{'s' * (bits > 1)}"
    if bits in (8, 16):
        return f"{what}: {'int8, as packed' if bits == 8 else 'float32'}"
    held = held_as(bits, weights)
    width = {"int8": 8, "int4": 4}[held]
    size = "their packed size" if width == bits else f"{width // bits} times their packed size"
    slow = "ONNX Runtime and OpenVINO take int4, but OpenVINO 2026.4 convolves with it 3 times slower than with int8"
    if held == "int4":
        why = f"{slow}; --weights int8 is for speed"
    elif bits == 4:
        why = f"{slow}; --weights int4 is for size"
    else:
        why = f"OpenVINO 2026.4 takes no int2; --weights int4 makes it {4 // bits} times, and OpenVINO 3 times slower"
    return f"{what}: held as {held}, {size} ({why})"


def _metadata(source: Path, info: Info, notes: list[str]) -> dict[str, str]:
    """metadata_props of the ONNX file; lists are JSON."""
    data = info.data
    return {
        "tq_version": tq.__version__,
        "source": source.name,
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "input": "x: float32 [batch, channels, size, size], RGB or grey, (pixel / 255 - mean) / std",
        "channels": str(data["channels"]),
        "size": str(data["size"]),
        "resize": str(data.get("resize") or data["size"]),
        "mean": json.dumps(data.get("mean")),
        "std": json.dumps(data.get("std")),
        "classes": json.dumps(list(info.classes), ensure_ascii=False),
        "metrics_of_source": json.dumps(info.metrics),
        "weights": "; ".join(notes),
    }


def to_pt2(model: nn.Module, path: Path, *, source: Path, info: Info) -> int:
    """Write a network as a torch.export archive with a dynamic batch; returns its size in bytes.

    Raises ValueError (torch.export cannot read the network), OSError.
    """
    example = example_of(info, source, batch=4)
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except Exception as error:  # torch.export raises many kinds
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"torch.export cannot read {type(model).__name__}: {reason}") from None
        for node in program.graph.nodes:
            # paths of this machine, and most of the file
            node.meta.pop("stack_trace", None)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    with atomic(path) as file:
        file.write(buffer.getvalue())
    return len(buffer.getvalue())


def load_pt2(path: str | Path) -> nn.Module:
    """A network that `to_pt2` wrote. Raises ValueError."""
    import triton_kernels.ops  # noqa: F401, registers the operators that the archive names

    try:
        with quiet():
            return torch.export.load(str(path)).module()
    except Exception as error:  # torch raises many kinds for damaged archives
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} cannot be read as a torch.export archive: {reason}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the notes that torch.export prints."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
