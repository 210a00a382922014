"""The layout of packed power-of-two weights: 0 and +-2^i, i = 0 .. 2^(bits-2) - 1, at 2 to 8 bits, in plain torch.

The codebook of incremental network quantization (INQ, arXiv 1702.03044, eq. 1). It has 2^(bits-1) + 1 values, one more
than bits - 1 bits can tell apart, so that a code takes all of its bits:

    stored = 0 for zero, 1 + i for +2^i, and 2^(bits-1) + 1 + i for -2^i: a sign above an exponent index

Rows, K, their order and their filling are those of `layout`, for every width from 2 to 8: element i of a row lies at
bits [i*bits, (i+1)*bits), little-endian, so that codes of 3, 5, 6 and 7 bits straddle bytes. The other stored values
(minus zero, and indices beyond the last) mean nothing and are refused.

Test vectors (bytes in hexadecimal, first byte first):

    bits  values                  packed
    2     0 1 -1 1                74
    3     0 1 -1 2 -2             48 65
    4     1 -8 0                  c1 00
    5     1 -128 0 16             01 83 02
    6     -1 32768 0              21 04 00
    7     -1 2147483648 0         41 10 00
    8     -1 9223372036854775808  81 40

The last value of 8 bits is 2^63: values are float32, which holds all of them exactly.
"""

from collections.abc import Sequence
from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_kernels.layout import from_rows, to_rows

BITS = (2, 3, 4, 5, 6, 7, 8)


def row_bytes(k: int, bits: int) -> int:
    """Bytes that a row of `k` codes takes: ceil(k * bits / 8)."""
    check_bits(bits)
    return (k * bits + 7) // 8


def check_bits(bits: int) -> None:
    """Raise ValueError unless `bits` is a width of this codebook."""
    if bits not in BITS:
        raise ValueError(f"expected bits of powers of two to be one of {BITS}, got {bits!r}: choose one of these")


@cache
def values_of(bits: int) -> Tensor:
    """The value of each stored code, float32 [2^bits] on the CPU, NaN for those that mean nothing."""
    check_bits(bits)
    half = [0.0] + [2.0**i for i in range(1 << (bits - 2))]
    unused = [torch.nan] * ((1 << (bits - 1)) - len(half))
    return torch.tensor([*half, *unused, torch.nan, *(-v for v in half[1:]), *unused])


def pack_weight(values: Tensor, bits: int) -> Tensor:
    """Pack a weight of 0 and +-2^i: float [out, in/groups, kh, kw] or [out, in] to uint8 [out, row_bytes(K, bits)].

    Raises ValueError for a value that the codebook lacks.
    """
    rows = to_rows(values.float())
    exponent = torch.frexp(rows.abs()).exponent
    # frexp gives 2^i as 0.5 * 2^(i+1), and 0 as 0 * 2^0
    sign = (rows < 0).to(exponent.dtype) << (bits - 1)
    stored = torch.where(rows == 0, 0, exponent + sign).clamp(0, (1 << bits) - 1)
    if not torch.equal(values_of(bits).to(rows.device)[stored.long()], rows):
        raise ValueError(
            f"expected weights of 0 and +-2^i with i from 0 to {(1 << (bits - 2)) - 1} at {bits} bits, got others: "
            "quantize them with tq.quantizers.PowerOfTwo"
        )
    fields = _bits_of(stored.to(torch.uint8), bits).flatten(1)
    k_bytes = row_bytes(rows.shape[1], bits)
    fields = F.pad(fields, (0, 8 * k_bytes - fields.shape[1])).view(len(rows), k_bytes, 8)
    return (fields << _places(8, rows.device)).sum(-1, dtype=torch.uint8)


def unpack_weight(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Undo `pack_weight`: uint8 [out, row_bytes(K, bits)] to a contiguous float32 weight of `shape`.

    Raises ValueError for a tensor that does not fit the shape, and for a stored code that means nothing.
    """
    k = prod(shape[1:])
    want = (shape[0], row_bytes(k, bits))
    if packed.dtype != torch.uint8 or tuple(packed.shape) != want:
        raise ValueError(
            f"expected packed powers of two uint8 {list(want)} for shape {list(shape)} at {bits} bits, got "
            f"{packed.dtype} {list(packed.shape)}: pass the weight's own shape and bits"
        )
    fields = _bits_of(packed, 8).flatten(1)[:, : k * bits].reshape(shape[0], k, bits)
    stored = (fields << _places(bits, packed.device)).sum(-1, dtype=torch.uint8)
    rows = values_of(bits).to(packed.device)[stored.long()]
    if bool(rows.isnan().any()):
        raise ValueError(
            f"expected codes of 0 and +-2^i at {bits} bits, got {int(stored[rows.isnan()][0])}, which means nothing: "
            "the packed weight is damaged"
        )
    return from_rows(rows, shape)


def _bits_of(numbers: Tensor, count: int) -> Tensor:
    """uint8 [...] -> its lowest `count` bits, lowest first, uint8 [..., count]."""
    return (numbers.unsqueeze(-1) >> _places(count, numbers.device)) & 1


def _places(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=device)
