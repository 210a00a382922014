"""The bit layout of packed weights: THE specification, in plain torch, for CPU and CUDA tensors.

A row of K signed integer codes becomes `row_bytes(K, bits) = ceil(K * bits / 8)` bytes:

    element i of a row lies at bits [i*bits, (i+1)*bits) of the row, little-endian: bit b of the row is bit b % 8 of
    byte b // 8, so that the first element is in the lowest bits of the first byte;
    stored = value + 2^(bits-1) for 2, 4 and 8 bits (offset binary: values -2^(bits-1) .. 2^(bits-1)-1);
    stored = (value + 1) / 2 for one bit: 0 is -1 and 1 is +1 ("binary", not torch's int1, which means -1 and 0);
    rows are dense, and the last byte of a row is filled up with zero bits.

A convolution's weight is one row per output channel over K = kh * kw * (in / groups), input channel fastest: the OIHW
weight permuted to O, H, W, I and flattened. A linear weight [out, in] is its own rows. Weights that are powers of two
have codes of their own in the same rows, see `codebook`.

Test vectors (bytes in hexadecimal, first byte first):

    bits  codes                        packed
    1     +1 -1 -1 +1 +1 -1 -1 -1  +1  19 01
    2     -2 -1 0 1  1                 e4 03
    4     -8 7  0                      f0 08
    8     -128 0 127                   00 80 ff
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

BITS = (1, 2, 4, 8)


def code_range(bits: int) -> tuple[int, int]:
    """Lowest and highest code of a width: (-1, 1) for one bit (without 0), else (-2^(bits-1), 2^(bits-1) - 1)."""
    check_bits(bits)
    return (-1, 1) if bits == 1 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def check_bits(bits: int) -> None:
    """Raise ValueError unless `bits` is a width that can be packed."""
    if bits not in BITS:
        raise ValueError(f"expected bits to be one of {BITS}, got {bits!r}: choose one of these widths")


def row_bytes(k: int, bits: int) -> int:
    """Bytes that a row of `k` codes takes: ceil(k * bits / 8)."""
    check_bits(bits)
    return (k * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes, row by row.

    codes: int8 [..., K] in `code_range(bits)` (for one bit: -1 and +1 only). Returns uint8 [..., row_bytes(K, bits)].
    Raises ValueError for another dtype, no dimension, or a code that the width cannot hold. Reads the codes' extremes
    back to the host, so it belongs in conversion, not in a forward pass.
    """
    check_bits(bits)
    if codes.dtype != torch.int8 or codes.dim() == 0:
        raise ValueError(
            f"expected int8 codes [..., K], got {codes.dtype} {list(codes.shape)}: convert with .to(torch.int8)"
        )
    _check_codes(codes, bits)
    if bits == 8:
        return codes.contiguous().view(torch.uint8) ^ 0x80
    per_byte = 8 // bits
    # int8 -> uint8 wraps modulo 256 and so does the sum: the stored code comes out right.
    stored = (codes > 0).to(torch.uint8) if bits == 1 else codes.to(torch.uint8) + (1 << (bits - 1))
    k, k_bytes = codes.shape[-1], row_bytes(codes.shape[-1], bits)
    stored = torch.nn.functional.pad(stored, (0, k_bytes * per_byte - k))
    fields = stored.reshape(*codes.shape[:-1], k_bytes, per_byte) << _shifts(bits, codes.device)
    return fields.sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, k: int) -> Tensor:
    """Undo `pack`: uint8 [..., row_bytes(k, bits)] to int8 codes [..., k]. Raises ValueError as `unpack_stored`."""
    stored = unpack_stored(packed, bits, k)
    if bits == 8:
        return (stored ^ 0x80).view(torch.int8)
    codes = stored.to(torch.int8)
    return codes * 2 - 1 if bits == 1 else codes - (1 << (bits - 1))


def unpack_stored(packed: Tensor, bits: int, k: int) -> Tensor:
    """The codes as they are stored, from 0 on: uint8 [..., row_bytes(k, bits)] to uint8 [..., k].

    Raises ValueError for another dtype or row length. The filling bits of the last byte are ignored.
    """
    check_bits(bits)
    if packed.dtype != torch.uint8 or packed.dim() == 0 or packed.shape[-1] != row_bytes(k, bits):
        raise ValueError(
            f"expected packed rows uint8 [..., {row_bytes(k, bits)}] for {k} codes of {bits} bits, got {packed.dtype} "
            f"{list(packed.shape)}: check the weight's shape and bits"
        )
    if bits == 8:
        return packed
    stored = (packed.unsqueeze(-1) >> _shifts(bits, packed.device)) & ((1 << bits) - 1)
    return stored.reshape(*packed.shape[:-1], packed.shape[-1] * (8 // bits))[..., :k]


def pack_weight(codes: Tensor, bits: int) -> Tensor:
    """Pack a weight: int8 [out, in/groups, kh, kw] or [out, in] to uint8 [out, row_bytes(K, bits)]."""
    return pack(to_rows(codes), bits)


def to_rows(weight: Tensor) -> Tensor:
    """A weight's rows in the order in which they are packed: OIHW or [out, in], any dtype, to [out, K]."""
    if weight.dim() not in (2, 4):
        raise ValueError(f"expected a 4-D OIHW or 2-D weight, got {list(weight.shape)}: reshape it before packing")
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.dim() == 4 else weight


def from_rows(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `to_rows`: [out, K] to a contiguous weight of `shape`, OIHW or [out, in]."""
    if len(shape) == 2:
        return rows
    out, in_per_group, kh, kw = shape
    return rows.reshape(out, kh, kw, in_per_group).permute(0, 3, 1, 2).contiguous()


def check_packed(packed: Tensor, bits: int, shape: Sequence[int]) -> None:
    """Raise ValueError unless `packed` can be a weight of `shape` (OIHW or [out, in]) at `bits` bits. Reads no data."""
    check_bits(bits)
    if len(shape) not in (2, 4):
        raise ValueError(f"expected a 4-D OIHW or 2-D weight shape, got {list(shape)}: pass the shape before packing")
    want = (shape[0], row_bytes(prod(shape[1:]), bits))
    if packed.dtype != torch.uint8 or tuple(packed.shape) != want:
        raise ValueError(
            f"expected a packed weight uint8 {list(want)} for shape {list(shape)} at {bits} bits, got {packed.dtype} "
            f"{list(packed.shape)}: pack it with pack_weight and pass its own shape and bits"
        )


def unpack_weight(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Undo `pack_weight`: uint8 [out, row_bytes(K, bits)] to a contiguous int8 weight (`shape` OIHW or [out, in])."""
    check_packed(packed, bits, shape)
    return from_rows(unpack(packed, bits, prod(shape[1:])), shape)


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)


def _check_codes(codes: Tensor, bits: int) -> None:
    if bits == 8 or codes.numel() == 0:
        return
    low, high = code_range(bits)
    lowest, highest = (int(v) for v in torch.aminmax(codes))
    if lowest < low or highest > high:
        raise ValueError(
            f"expected {bits}-bit codes in {low}..{high}, got {lowest}..{highest}: clamp the codes or use more bits"
        )
    if bits == 1 and bool((codes == 0).any()):
        raise ValueError("expected one-bit codes -1 and +1, got 0: binarize with where(w >= 0, 1, -1) before packing")
