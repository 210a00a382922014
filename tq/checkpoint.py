"""Save, load and inspect `model.safetensors`; what it holds is tq/file_format.py. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from tq.atomic import atomic
from tq.attach import quant_layers, sites, to_channels_last
from tq.conversion import convert
from tq.file_format import (
    PACKED,
    STACKED,
    UNSIGNED,
    entries_of,
    first_line,
    formats_of,
    header_bytes,
    metadata_of,
    read,
    table_of,
)
from tq.file_info import Info, info_of
from tq.models import BUILDERS, build
from tq.packed import Format, format_of, make_packed, packed_layers


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
    with atomic(Path(path), otherwise="the network is not saved") as file:
        file.write(blob)
    return len(blob)


def to_bytes(model: nn.Module, info: Info) -> bytes:
    """The file's bytes of a packed or float network; the same network gives the same bytes."""
    tensors = _tensors(model)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"tensor {name} holds NaN or infinity and is not saved; train again with a lower --lr")
    entries = entries_of(*_parts(model))
    stored = safetensors.torch.save(tensors)
    body = stored[8 + int.from_bytes(stored[:8], "little") :]
    # safetensors writes its metadata in random order: our own header makes the same network the same bytes
    metadata = metadata_of(_parts(model)[0], info, UNSIGNED)
    digest = hashlib.sha256(header_bytes(entries, metadata) + body).hexdigest()
    blob = header_bytes(entries, metadata | {"sha256": digest}) + body
    if len(blob) != (predicted := predict_bytes(model, info)):
        raise RuntimeError(f"the file has {len(blob)} bytes where {predicted} were predicted; please report this")
    return blob


def predict_bytes(model: nn.Module, info: Info | None = None) -> int:
    """Size of the file that `save` writes, from shapes and bits alone (training form, packed or float)."""
    formats, rest = _parts(model)
    entries = entries_of(formats, rest)
    return len(header_bytes(entries, metadata_of(formats, info or Info(), UNSIGNED))) + sum(
        e[2] for e in entries.values()
    )


def load(
    path: str | Path, *, model: nn.Module | None = None, impl: str = "auto", device: str | torch.device = "cpu"
) -> nn.Module:
    """Rebuild the network of a file, ready for inference; `model` (float) is filled when the file names no builder.

    Raises ValueError naming the file: missing, damaged, not of this format, other checksum, not for this model.
    """
    tensors, metadata = read(path)
    info = info_of(metadata, path)
    if model is None:
        # a builder outside the package would be code named by an untrusted file
        if info.model is None or str(info.model.get("name")) not in BUILDERS:
            raise ValueError(f"{path} does not name a model of tq ({info.model}); build it yourself and pass model=...")
        try:
            with torch.random.fork_rng(devices=[]):
                model = build(info.model["name"], **info.model["args"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: its model {info.model} cannot be built ({first_line(error)})") from None
    formats = formats_of(tensors, path)
    _swap_in(model, formats, tensors, path, impl)
    _fill(model, formats, tensors, path)
    return model.to(device).eval()


def read_info(path: str | Path) -> Info:
    """What a file says about itself; the tensors are checked too. Raises ValueError."""
    return info_of(read(path)[1], path)


def inspect(path: str | Path) -> Account:
    """The account of a file, layer by layer. Raises ValueError."""
    tensors, metadata = read(path)
    formats = formats_of(tensors, path)
    rest = {n: t for n, t in tensors.items() if n not in STACKED and not n.endswith(PACKED)}
    entries = entries_of(formats, rest)
    rows, theoretical = [], 0.0
    for name, (dtype, shape, size) in sorted(entries.items()):
        form = formats.get(name.removesuffix(PACKED))
        rows.append(Row(name, _described(form) if form else dtype.lower(), form.shape if form else shape, size))
        theoretical += math.prod(form.shape) * form.weight_bits / 8 if form and form.weight_bits < 16 else size
    info = info_of(metadata, path)
    float_bytes = info.metrics.get("float_bytes") or sum(
        4 * math.prod(row.shape) for row in rows if row.name not in STACKED
    )
    file_bytes = os.path.getsize(path)
    return Account(
        path=str(path),
        file_bytes=file_bytes,
        predicted_bytes=len(header_bytes(entries, metadata)) + sum(row.size_bytes for row in rows),
        theoretical_bytes=theoretical,
        float_bytes=float_bytes,
        header_bytes=file_bytes - sum(row.size_bytes for row in rows),
        rows=rows,
        info=info,
    )


def _described(form: Format) -> str:
    """A layer's scheme; of groups also the bits of a weight with its share of the scales, which are in another row."""
    if not form.group:
        return form.name
    bits = form.weight_bits + 32 * math.prod(form.scale_shape) / math.prod(form.shape)
    return f"{form.name}, {bits:.2f} bits with scales"


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
        tensors[name + PACKED] = layer.weight_packed.cpu().contiguous()
    if layers:
        all_of = list(layers.values())
        tensors["tq.layers"] = table_of({name: layer.format for name, layer in layers.items()})
        tensors["tq.weight_scale"] = torch.cat([layer.weight_scale.cpu().flatten() for layer in all_of])
        tensors["tq.bias"] = torch.cat([layer.bias.cpu() for layer in all_of])
        tensors["tq.input_scale"] = torch.stack([layer.input_scale.cpu() for layer in all_of])
    return tensors


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
    state = {n: t for n, t in tensors.items() if n not in STACKED and not n.endswith(PACKED)}
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
    start = scales = 0
    for number, (name, layer) in enumerate(packed_layers(model).items()):
        end = start + layer.format.shape[0]
        layer.weight_packed.copy_(tensors[name + PACKED])
        count = layer.weight_scale.numel()
        layer.weight_scale.copy_(tensors["tq.weight_scale"][scales : scales + count].view_as(layer.weight_scale))
        layer.bias.copy_(tensors["tq.bias"][start:end])
        layer.input_scale.copy_(tensors["tq.input_scale"][number])
        try:
            layer.prepare()
        except ValueError as error:
            raise ValueError(f"{path}: layer {name} cannot be used: {error}") from None
        start, scales = end, scales + count
