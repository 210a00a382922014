"""The file format "tq/1": what `model.safetensors` holds, its header, and reading it with every byte checked.

Tensors (one header entry costs about 85 bytes, so what is small is stacked over the packed layers in name order):

| key | dtype, shape | what |
| --- | --- | --- |
| `<layer>.weight_packed` | uint8 [O, ceil(K * bits / 8)] | codes, see triton_kernels/layout.py (float32 at 16 bits) |
| `tq.layers` | int32 [L, 8] | weight bits, input bits, input signed, zero point, then the weight's shape (0-filled) |
| `tq.weight_scale`, `tq.bias` | float32 [sum of O] | per output channel, batch normalization folded in |
| `tq.input_scale` | float32 [L] | value of one input code |
| anything else | as it was | layers left float, under their own names (`num_batches_tracked` is dropped) |

Where some layer needs them, `tq.layers` has two more columns: the group size G, and the codebook, 0 for integers and 1
for powers of two, whose codes triton_kernels/codebook.py describes. A layer with G > 0 has ceil(K / G) weight scales
per output channel, one after the other, for groups of G consecutive weights of its row.

`__metadata__` (strings): format, model (builder and arguments), quantization_config (compressed-tensors' field names),
data (name, size, resize, mean, std), classes, metrics (of this very file), sha256 of the whole file with these 64
digits as zeros. A file's size is predicted from the network alone and compared with the bytes written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tq.file_info import Info
from tq.packed import Format
from tq.quantizers import act_range
from tq.scheme import Scheme

FORMAT = "tq/1"
STACKED = ("tq.layers", "tq.weight_scale", "tq.bias", "tq.input_scale")
PACKED = ".weight_packed"
_COLUMNS, _MORE_COLUMNS = 8, 10
UNSIGNED = "0" * 64
# in the order in which safetensors lays tensors out: wide types first, names within
_DTYPES = {
    torch.int64: ("I64", 8), torch.float32: ("F32", 4), torch.int32: ("I32", 4), torch.uint8: ("U8", 1),
    torch.bool: ("BOOL", 1),
}  # fmt: skip
_RANK = {name: rank for rank, (name, _) in enumerate(_DTYPES.values())}
Entry = tuple[str, tuple[int, ...], int]  # dtype, shape, bytes


def entries_of(formats: Mapping[str, Format], rest: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Every tensor that the file holds, in its order there, from formats and from the tensors that are not packed."""
    found = {name: _entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in rest.items()}
    found |= {name + PACKED: _entry(form.stored_dtype, form.stored_shape) for name, form in formats.items()}
    if formats:
        channels = sum(form.shape[0] for form in formats.values())
        found["tq.layers"] = _entry(torch.int32, (len(formats), _columns(formats)))
        found["tq.weight_scale"] = _entry(torch.float32, (_scales(formats),))
        found["tq.bias"] = _entry(torch.float32, (channels,))
        found["tq.input_scale"] = _entry(torch.float32, (len(formats),))
    return dict(sorted(found.items(), key=lambda item: (_RANK[item[1][0]], item[0].encode())))


def _entry(dtype: torch.dtype, shape: tuple[int, ...]) -> Entry:
    if dtype not in _DTYPES:
        raise ValueError(f"a tensor is {dtype}, but the format holds {', '.join(map(str, _DTYPES))}")
    name, width = _DTYPES[dtype]
    return name, shape, width * math.prod(shape)


def header_bytes(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """8 bytes of length, then the JSON padded with spaces to a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def metadata_of(formats: Mapping[str, Format], info: Info, sha256: str) -> dict[str, str]:
    pieces: dict[str, Any] = {
        "model": info.model,
        "quantization_config": _quantization_config(formats),
        "data": info.data,
        "classes": list(info.classes),
        "metrics": info.metrics,
    }
    texts = {k: json.dumps(v, separators=(",", ":"), ensure_ascii=False) for k, v in pieces.items() if v}
    return {"format": FORMAT, **texts, "sha256": sha256}


def _quantization_config(formats: Mapping[str, Format]) -> dict[str, Any] | None:
    """compressed-tensors' field names; groups by bits, the largest group is the default for all layers."""
    if not formats:
        return None
    groups: dict[tuple[int, int, bool, int], list[str]] = {}
    for name, form in formats.items():
        groups.setdefault((form.weight_bits, form.act_bits, form.pow2, form.group), []).append(name)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    config_groups = {}
    for number, ((w, a, pow2, size), names) in enumerate(ordered):
        kind = "pow2" if pow2 else "binary" if w == 1 else "int"
        weights: dict[str, Any] = {"num_bits": w, "type": kind, "strategy": "channel", "symmetric": True}
        if size:
            weights |= {"strategy": "group", "group_size": size}
        config_groups[f"group_{number}"] = {
            "targets": ["*"] if number == 0 else names,
            "weights": weights if w < 16 else None,
            "input_activations": {"num_bits": a, "type": "int", "strategy": "tensor"} if a < 16 else None,
        }
    return {"quant_method": "tq", "format": "pack-quantized", "config_groups": config_groups}


def _columns(formats: Mapping[str, Format]) -> int:
    """Columns of `tq.layers`: files without powers of two and groups are as they were before there were any."""
    return _MORE_COLUMNS if any(form.pow2 or form.group for form in formats.values()) else _COLUMNS


def table_of(formats: Mapping[str, Format]) -> Tensor:
    """`tq.layers`, int32 [L, 8 or 10]."""
    rows = []
    for form in formats.values():
        row = [form.weight_bits, form.act_bits, int(form.act_signed), form.zero_point, *form.shape]
        rows.append([*row, *[0] * (_COLUMNS - len(row)), form.group, int(form.pow2)][: _columns(formats)])
    return torch.tensor(rows, dtype=torch.int32)


def formats_of(tensors: Mapping[str, Tensor], path: str | Path) -> dict[str, Format]:
    """The packed layers that a file describes, by name. Raises ValueError where the table does not fit the tensors."""
    if "tq.layers" not in tensors:
        return {}
    table = tensors["tq.layers"]
    known = (_COLUMNS, _MORE_COLUMNS)
    if table.ndim != 2 or table.shape[1] not in known or table.dtype != torch.int32:
        raise ValueError(
            f"{path}: tq.layers must be int32 [L, {_COLUMNS}] or [L, {_MORE_COLUMNS}], got {table.dtype} "
            f"{list(table.shape)}; the file is damaged"
        )
    names = sorted(key.removesuffix(PACKED) for key in tensors if key.endswith(PACKED))
    if len(names) != len(table):
        raise ValueError(
            f"{path}: {len(table)} packed layers are described, but {len(names)} are there; the file is damaged"
        )
    formats = {}
    for name, row in zip(names, table.tolist(), strict=True):
        shape = tuple(size for size in row[4:_COLUMNS] if size)
        group, codebook = row[_COLUMNS:] or (0, 0)
        if codebook not in (0, 1):
            raise ValueError(f"{path}: layer {name} has the codebook {codebook}; the file is damaged, or of a newer tq")
        form = Format(row[0], row[1], bool(row[2]), row[3], shape, bool(codebook), group)
        stored = tensors[name + PACKED]
        if not _sane(form) or form.stored_shape != tuple(stored.shape) or form.stored_dtype != stored.dtype:
            raise ValueError(
                f"{path}: layer {name} is described as {form.name} {list(form.shape)} with "
                f"zero point {form.zero_point}, which does not fit its tensor {list(stored.shape)}; the file is damaged"
            )
        formats[name] = form
    channels = sum(form.shape[0] for form in formats.values())
    for key, size in (("tq.weight_scale", _scales(formats)), ("tq.bias", channels), ("tq.input_scale", len(formats))):
        if key not in tensors or tensors[key].shape != (size,) or tensors[key].dtype != torch.float32:
            raise ValueError(f"{path}: {key} must be float32 [{size}]; the file is damaged")
    return formats


def _scales(formats: Mapping[str, Format]) -> int:
    """How many weight scales there are."""
    return sum(math.prod(form.scale_shape) for form in formats.values())


def _sane(form: Format) -> bool:
    try:
        Scheme(form.weight_bits, form.act_bits, form.pow2)
    except ValueError:
        return False
    if len(form.shape) not in (2, 4):
        return False
    if form.group and (form.pow2 or form.weight_bits == 16 or not 0 < form.group < math.prod(form.shape[1:])):
        return False
    low, high = act_range(form.act_bits, signed=form.act_signed) if form.act_bits < 16 else (0, 0)
    return low <= form.zero_point <= high


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file whose every byte has been checked. Raises ValueError."""
    path = Path(path)
    try:
        blob = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    try:
        tensors = safetensors.torch.load(blob)
    except Exception as error:  # safetensors and torch raise their own kinds for damaged files
        reason = first_line(error)
        raise ValueError(
            f"{path} is not a whole safetensors file ({reason}); it is truncated, damaged or of another kind"
        ) from None
    length = 8 + int.from_bytes(blob[:8], "little")
    metadata = json.loads(blob[8:length]).get("__metadata__") or {}
    found = metadata.get("format", "none")
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found!r}, expected {FORMAT!r}: it was not written by tq (float weights: tq quantize)"
        )
    digest = metadata.get("sha256", "")
    unsigned = blob[:length].replace(digest.encode(), UNSIGNED.encode(), 1) + blob[length:]
    if hashlib.sha256(unsigned).hexdigest() != digest:
        raise ValueError(f"{path}: its checksum does not match its contents; the file is damaged")
    return tensors, metadata


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
