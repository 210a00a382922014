"""What a file would weigh with other weight bits: the price list of `tq.ptq.allocate`, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from tq.attach import quant_layers
from tq.file_format import UNSIGNED, entries_of, header_bytes, metadata_of
from tq.file_info import Info
from tq.packed import format_of
from triton_kernels.layout import BITS

Bits = Mapping[str, int]


def layer_bytes(model: nn.Module) -> dict[str, dict[int, int]]:
    """{layer: {weight bits: bytes of its codes and of group scales}} of an attached network; rows are whole bytes."""
    table: dict[str, dict[int, int]] = {}
    for name, layer in quant_layers(model).items():
        forms = [replace(format_of(layer), weight_bits=width, pow2=False) for width in BITS]
        table[name] = {
            f.weight_bits: math.prod(f.stored_shape) * f.stored_dtype.itemsize
            + (4 * math.prod(f.scale_shape) if f.group else 0)
            for f in forms
        }
    return table


def file_bytes(model: nn.Module, info: Info | None = None) -> Callable[[Bits], int]:
    """f(weight bits of some layers) = bytes of the file that `tq.save` would write, header and all.

    The header names the layers of every width, so a file is more than the sum of its layers; layers that are not in
    the argument keep the bits that they have in `model`, an attached network.
    """
    formats = {name: format_of(layer) for name, layer in sorted(quant_layers(model).items())}
    inside = tuple(f"{name}." for name in formats)
    # batch counters are not stored, tq/checkpoint.py
    rest = {
        n: t
        for n, t in model.state_dict().items()
        if not n.startswith(inside) and not n.endswith("num_batches_tracked")
    }

    def size(bits: Bits) -> int:
        chosen = {n: replace(f, weight_bits=bits.get(n, f.weight_bits)) for n, f in formats.items()}
        entries = entries_of(chosen, rest)
        header = header_bytes(entries, metadata_of(chosen, info or Info(), UNSIGNED))
        return len(header) + sum(entry[2] for entry in entries.values())

    return size
