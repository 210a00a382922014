"""Save, load and inspect `model.safetensors`, format "tq/1". Nothing is ever unpickled.

Tensors (one header entry costs about 85 bytes, so what is small is stacked over the packed layers in name order):

| key | dtype, shape | what |
| --- | --- | --- |
| `<layer>.weight_packed` | uint8 [O, ceil(K * bits / 8)] | codes, see triton_kernels/layout.py (float32 at 16 bits) |
| `tq.layers` | int32 [L, 8] | weight bits, input bits, input signed, zero point, then the weight's shape (0-filled) |
| `tq.weight_scale`, `tq.bias` | float32 [sum of O] | per output channel, batch normalization folded in |
| `tq.input_scale` | float32 [L] | value of one input code |
| anything else | as it was | layers left float, under their own names (`num_batches_tracked` is dropped) |

`__metadata__` (strings): format, model (builder and arguments), quantization_config (compressed-tensors' field names),
data (name, size, mean, std), classes, metrics (of this very file), sha256 of the whole file with these 64 digits as
zeros. A file's size is predicted from the network alone and compared with the bytes written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tq.attach import quant_layers, sites, to_channels_last
from tq.convert import convert
from tq.models import BUILDERS, build
from tq.packed import Format, format_of, make_packed, packed_layers
from tq.quantizers import act_range
from tq.scheme import ACT_BITS, WEIGHT_BITS

FORMAT = "tq/1"
_STACKED = ("tq.layers", "tq.weight_scale", "tq.bias", "tq.input_scale")
_PACKED = ".weight_packed"
_COLUMNS = 8
_UNSIGNED = "0" * 64
# in the order in which safetensors lays tensors out: wide types first, names within
_DTYPES = {
    torch.int64: ("I64", 8), torch.float32: ("F32", 4), torch.int32: ("I32", 4), torch.uint8: ("U8", 1),
    torch.bool: ("BOOL", 1),
}  # fmt: skip
_RANK = {name: rank for rank, (name, _) in enumerate(_DTYPES.values())}
Entry = tuple[str, tuple[int, ...], int]  # dtype, shape, bytes


@dataclass(frozen=True)
class Info:
    """What a file says about itself beside its tensors; every value is plain JSON."""

    model: dict[str, Any] | None = None
    """{"name": a builder of tq.models, "args": {...}}; None for a network that only its owner can build"""
    data: dict[str, Any] = field(default_factory=dict)
    """{"name", "size", "channels", "mean", "std"}"""
    classes: tuple[str, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of a file's account."""

    name: str
    bits: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Account:
    """Where the bytes of a file go. `predicted_bytes` is computed from the layers, `file_bytes` is what lies there."""

    path: str
    file_bytes: int
    predicted_bytes: int
    theoretical_bytes: float
    float_bytes: int
    header_bytes: int
    rows: list[Row]
    info: Info


def save(model: nn.Module, path: str | Path, info: Info | None = None) -> int:
    """Write a network (training form, packed or float) and return the file's size in bytes.

    The file appears whole or not at all. Raises ValueError (NaN weights, a dtype the format lacks), OSError (disk),
    and RuntimeError if the size is not the predicted one.
    """
    blob = to_bytes(convert(model) if quant_layers(model) else model, info or Info())
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    try:
        with open(partial, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; the network is not saved") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return len(blob)


def to_bytes(model: nn.Module, info: Info) -> bytes:
    """The file's bytes of a packed or float network; the same network gives the same bytes."""
    tensors = _tensors(model)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"tensor {name} holds NaN or infinity and is not saved; train again with a lower --lr")
    entries = _entries(*_parts(model))
    stored = safetensors.torch.save(tensors)
    body = stored[8 + int.from_bytes(stored[:8], "little") :]
    # safetensors writes its metadata in random order: our own header makes the same network the same bytes
    metadata = _metadata(_parts(model)[0], info, _UNSIGNED)
    digest = hashlib.sha256(_header(entries, metadata) + body).hexdigest()
    blob = _header(entries, metadata | {"sha256": digest}) + body
    if len(blob) != (predicted := predict_bytes(model, info)):
        raise RuntimeError(f"the file has {len(blob)} bytes where {predicted} were predicted; please report this")
    return blob


def predict_bytes(model: nn.Module, info: Info | None = None) -> int:
    """Size of the file that `save` writes, from shapes and bits alone (training form, packed or float)."""
    formats, rest = _parts(model)
    entries = _entries(formats, rest)
    return len(_header(entries, _metadata(formats, info or Info(), _UNSIGNED))) + sum(e[2] for e in entries.values())


def load(
    path: str | Path, *, model: nn.Module | None = None, impl: str = "auto", device: str | torch.device = "cpu"
) -> nn.Module:
    """Rebuild the network of a file, ready for inference; `model` (float) is filled when the file names no builder.

    Raises ValueError naming the file: missing, damaged, not of this format, other checksum, not for this model.
    """
    tensors, metadata = _read(path)
    info = _info(metadata, path)
    if model is None:
        # a builder outside the package would be code named by an untrusted file
        if info.model is None or str(info.model.get("name")) not in BUILDERS:
            raise ValueError(f"{path} does not name a model of tq ({info.model}); build it yourself and pass model=...")
        try:
            with torch.random.fork_rng(devices=[]):
                model = build(info.model["name"], **info.model["args"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: its model {info.model} cannot be built ({_first_line(error)})") from None
    formats = _formats(tensors, path)
    _swap_in(model, formats, tensors, path, impl)
    _fill(model, formats, tensors, path)
    return model.to(device).eval()


def read_info(path: str | Path) -> Info:
    """What a file says about itself; the tensors are checked too. Raises ValueError."""
    return _info(_read(path)[1], path)


def inspect(path: str | Path) -> Account:
    """The account of a file, layer by layer. Raises ValueError."""
    tensors, metadata = _read(path)
    formats = _formats(tensors, path)
    rest = {n: t for n, t in tensors.items() if n not in _STACKED and not n.endswith(_PACKED)}
    entries = _entries(formats, rest)
    rows, theoretical = [], 0.0
    for name, (dtype, shape, size) in sorted(entries.items()):
        form = formats.get(name.removesuffix(_PACKED))
        bits = f"w{form.weight_bits}a{form.act_bits}" if form else dtype.lower()
        rows.append(Row(name, bits, form.shape if form else shape, size))
        theoretical += math.prod(form.shape) * form.weight_bits / 8 if form and form.weight_bits < 16 else size
    info = _info(metadata, path)
    float_bytes = info.metrics.get("float_bytes") or sum(
        4 * math.prod(row.shape) for row in rows if row.name not in _STACKED
    )
    file_bytes = os.path.getsize(path)
    return Account(
        path=str(path),
        file_bytes=file_bytes,
        predicted_bytes=len(_header(entries, metadata)) + sum(row.size_bytes for row in rows),
        theoretical_bytes=theoretical,
        float_bytes=float_bytes,
        header_bytes=file_bytes - sum(row.size_bytes for row in rows),
        rows=rows,
        info=info,
    )


def _own_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The state without batch counters, which inference never reads."""
    return ((n, t) for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked"))


def _parts(model: nn.Module) -> tuple[dict[str, Format], dict[str, Tensor]]:
    """Formats of the layers that a file holds packed, and the state of everything else; tensors on any device."""
    formats = {n: layer.format for n, layer in packed_layers(model).items()}
    formats |= {n: format_of(layer) for n, layer in quant_layers(model).items()}
    inside = tuple(f"{name}." for name in formats)
    return dict(sorted(formats.items())), {n: t for n, t in _own_tensors(model) if not n.startswith(inside)}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The file's tensors of a packed or float network, on the CPU."""
    # copies: safetensors refuses tensors that share memory, as tied weights do
    rest = _parts(model)[1].items()
    tensors = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in rest}
    layers = packed_layers(model)
    for name, layer in layers.items():
        tensors[name + _PACKED] = layer.weight_packed.cpu().contiguous()
    if layers:
        all_of = list(layers.values())
        tensors["tq.layers"] = torch.tensor([_format_row(layer.format) for layer in all_of], dtype=torch.int32)
        tensors["tq.weight_scale"] = torch.cat([layer.weight_scale.cpu() for layer in all_of])
        tensors["tq.bias"] = torch.cat([layer.bias.cpu() for layer in all_of])
        tensors["tq.input_scale"] = torch.stack([layer.input_scale.cpu() for layer in all_of])
    return tensors


def _entries(formats: Mapping[str, Format], rest: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Every tensor that the file holds, in its order there, from formats and from the tensors that are not packed."""
    found = {name: _entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in rest.items()}
    found |= {name + _PACKED: _entry(form.stored_dtype, form.stored_shape) for name, form in formats.items()}
    if formats:
        channels = sum(form.shape[0] for form in formats.values())
        found["tq.layers"] = _entry(torch.int32, (len(formats), _COLUMNS))
        found["tq.weight_scale"] = found["tq.bias"] = _entry(torch.float32, (channels,))
        found["tq.input_scale"] = _entry(torch.float32, (len(formats),))
    return dict(sorted(found.items(), key=lambda item: (_RANK[item[1][0]], item[0].encode())))


def _entry(dtype: torch.dtype, shape: tuple[int, ...]) -> Entry:
    if dtype not in _DTYPES:
        raise ValueError(f"a tensor is {dtype}, but the format holds {', '.join(map(str, _DTYPES))}")
    name, width = _DTYPES[dtype]
    return name, shape, width * math.prod(shape)


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """8 bytes of length, then the JSON padded with spaces to a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _metadata(formats: Mapping[str, Format], info: Info, sha256: str) -> dict[str, str]:
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
    groups: dict[tuple[int, int], list[str]] = {}
    for name, form in formats.items():
        groups.setdefault((form.weight_bits, form.act_bits), []).append(name)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    config_groups = {}
    for number, ((w, a), names) in enumerate(ordered):
        weights = {"num_bits": w, "type": "binary" if w == 1 else "int", "strategy": "channel", "symmetric": True}
        config_groups[f"group_{number}"] = {
            "targets": ["*"] if number == 0 else names,
            "weights": weights if w < 16 else None,
            "input_activations": {"num_bits": a, "type": "int", "strategy": "tensor"} if a < 16 else None,
        }
    return {"quant_method": "tq", "format": "pack-quantized", "config_groups": config_groups}


def _format_row(form: Format) -> list[int]:
    row = [form.weight_bits, form.act_bits, int(form.act_signed), form.zero_point, *form.shape]
    return row + [0] * (_COLUMNS - len(row))


def _formats(tensors: Mapping[str, Tensor], path: str | Path) -> dict[str, Format]:
    """The packed layers that a file describes, by name. Raises ValueError where the table does not fit the tensors."""
    if "tq.layers" not in tensors:
        return {}
    table = tensors["tq.layers"]
    if table.ndim != 2 or table.shape[1] != _COLUMNS or table.dtype != torch.int32:
        raise ValueError(f"{path}: tq.layers must be int32 [L, {_COLUMNS}], got {table.dtype} {list(table.shape)}")
    names = sorted(key.removesuffix(_PACKED) for key in tensors if key.endswith(_PACKED))
    if len(names) != len(table):
        raise ValueError(
            f"{path}: {len(table)} packed layers are described, but {len(names)} are there; the file is damaged"
        )
    formats = {}
    for name, row in zip(names, table.tolist(), strict=True):
        form = Format(row[0], row[1], bool(row[2]), row[3], tuple(size for size in row[4:] if size))
        stored = tensors[name + _PACKED]
        if not _sane(form) or form.stored_shape != tuple(stored.shape) or form.stored_dtype != stored.dtype:
            raise ValueError(
                f"{path}: layer {name} is described as w{form.weight_bits}a{form.act_bits} {list(form.shape)} with "
                f"zero point {form.zero_point}, which does not fit its tensor {list(stored.shape)}; the file is damaged"
            )
        formats[name] = form
    channels = sum(form.shape[0] for form in formats.values())
    for key, size in (("tq.weight_scale", channels), ("tq.bias", channels), ("tq.input_scale", len(formats))):
        if key not in tensors or tensors[key].shape != (size,) or tensors[key].dtype != torch.float32:
            raise ValueError(f"{path}: {key} must be float32 [{size}]; the file is damaged")
    return formats


def _sane(form: Format) -> bool:
    if form.weight_bits not in WEIGHT_BITS or form.act_bits not in ACT_BITS or len(form.shape) not in (2, 4):
        return False
    low, high = act_range(form.act_bits, signed=form.act_signed) if form.act_bits < 16 else (0, 0)
    return low <= form.zero_point <= high


def _swap_in(
    model: nn.Module, formats: Mapping[str, Format], tensors: Mapping[str, Tensor], path: str | Path, impl: str
) -> None:
    """Put empty packed layers where the file has them; a batch normalization that it lacks was folded."""
    found = {site.name: site for site in sites(model)} if formats else {}
    for name, form in formats.items():
        site = found.get(name)
        if site is None:
            raise ValueError(
                f"{path} has a packed layer {name}, which {type(model).__name__} has not; is it another model's file?"
            )
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if tuple(layer.weight.shape) != form.shape:
            raise ValueError(
                f"{path}: layer {name} has shape {list(form.shape)}, the model's has {list(layer.weight.shape)}; "
                "is it another model's file?"
            )
        model.set_submodule(name, make_packed(form, layer, impl=impl))
        if site.bn and f"{site.bn}.running_mean" not in tensors:
            model.set_submodule(site.bn, nn.Identity())


def _fill(model: nn.Module, formats: Mapping[str, Format], tensors: Mapping[str, Tensor], path: str | Path) -> None:
    to_channels_last(model)
    own = dict(_own_tensors(model))
    inside = tuple(f"{name}." for name in formats)
    state = {n: t for n, t in tensors.items() if n not in _STACKED and not n.endswith(_PACKED)}
    wanted = {n: t for n, t in own.items() if not n.startswith(inside)}
    for problem, names in (("lacks", wanted.keys() - state.keys()), ("has an unknown", state.keys() - wanted.keys())):
        if names:
            raise ValueError(
                f"{path} {problem} tensor {min(names)} for {type(model).__name__}; is it another model's file?"
            )
    for name, tensor in sorted(state.items()):
        if wanted[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, the model's has {list(wanted[name].shape)}"
            )
        if wanted[name].dtype != tensor.dtype:
            raise ValueError(f"{path}: tensor {name} is {tensor.dtype}, the model's is {wanted[name].dtype}")
        wanted[name].copy_(tensor)
    start = 0
    for number, (name, layer) in enumerate(packed_layers(model).items()):
        end = start + layer.format.shape[0]
        layer.weight_packed.copy_(tensors[name + _PACKED])
        layer.weight_scale.copy_(tensors["tq.weight_scale"][start:end])
        layer.bias.copy_(tensors["tq.bias"][start:end])
        layer.input_scale.copy_(tensors["tq.input_scale"][number])
        layer.prepare()
        start = end


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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
        reason = _first_line(error)
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
    unsigned = blob[:length].replace(digest.encode(), _UNSIGNED.encode(), 1) + blob[length:]
    if hashlib.sha256(unsigned).hexdigest() != digest:
        raise ValueError(f"{path}: its checksum does not match its contents; the file is damaged")
    return tensors, metadata


def _info(metadata: Mapping[str, str], path: str | Path) -> Info:
    try:
        parsed = {k: json.loads(metadata.get(k, "null")) for k in ("model", "data", "classes", "metrics")}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the header's metadata is not JSON ({error}); the file is damaged") from None
    for key, kind in (("model", dict), ("data", dict), ("classes", list), ("metrics", dict)):
        if not isinstance(parsed[key], kind | None):
            raise ValueError(
                f"{path}: {key} in the header must be a JSON {kind.__name__}, got {parsed[key]!r}; the file is damaged"
            )
    return Info(parsed["model"], parsed["data"] or {}, tuple(parsed["classes"] or ()), parsed["metrics"] or {})


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
