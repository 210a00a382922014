"""The weights of `conv_kernel`: its layout of them, made once at load from the canonical one and never saved.

With P = 8/bits fields in a byte and blocks of S*P values of k, which runs over (r, s, c), channels fastest:

    byte s of a block, field j (the j-th `bits` from the top) = w[n, k],  k = block * S*P + j*S + s

in two's complement, for one bit the sign (0 is +1). So a field is masked in the top bits of its byte and is 2^(8-bits)
times the code (+-64 for one bit) with no further work; the sum is shifted back at the end. A block lies inside one tap
(r, s) where the channels fill it; otherwise ("flat") the blocks run over k as a whole.

Few channels (2 to 15, one group) come as a staged image (`conv_input`) with 4, 8 or 16 channels a pixel, so that the
taps of a row lie together in memory and the kernel sees a kh x 1 convolution of `kw * pitch` channels. The filling
weights are 0, so these are kept in 8 bits. Depthwise weights are int32 codes instead (`depthwise_conv2d`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from triton_kernels.layout import check_packed, unpack


@dataclass(frozen=True, slots=True)
class ConvForm:
    """A weight in the kernel's layout."""

    weight: Tensor  # int8 [O, bytes]; depthwise: int32 codes [kh * kw, O]
    wsum: Tensor  # int32 [O], the sum of each output's codes
    blanks: Tensor  # uint8 [256, 128], row z full of byte z
    shape: tuple[int, int, int, int]  # OIHW, I per group
    groups: int
    view: tuple[int, int, int, int]  # OIHW as the kernel sees it
    bits: int  # of the kernel's layout
    block: int = 0  # S; 0 for depthwise
    flat: bool = False
    pitch: int = 0  # channels of a staged pixel, or 0

    @property
    def shift(self) -> int:
        """The kernel's products are 2^shift times too large."""
        return 6 if self.bits == 1 else 8 - self.bits

    @property
    def spare(self) -> int:
        """Weights of a row that only fill it."""
        _, i, kh, kw = self.view
        return self.weight.shape[1] * 8 // self.bits - i * kh * kw


def prepare(
    packed: Tensor, bits: int, weight_shape: Sequence[int], groups: int = 1, *, expand: bool = False
) -> ConvForm:
    """The kernel's layout of a canonical weight uint8 [O, row_bytes] of `weight_shape` OIHW, on its device.

    expand: keep a byte a code, 8/bits times the memory, so that the loop has nothing to unpack.
    """
    check_packed(packed, bits, weight_shape)
    o, i, kh, kw = weight_shape
    shape = view = (o, i, kh, kw)
    codes = unpack(packed, bits, i * kh * kw)  # int8 [O, K]
    wsum, blanks = codes.sum(1, dtype=torch.int32), _blanks(packed.device)
    if i == 1:
        return ConvForm(codes.t().to(torch.int32).contiguous(), wsum, blanks, shape, groups, view, 8)
    pitch, bits = 0, 8 if expand else bits
    if groups == 1 and i < 16:
        pitch, bits = max(4, triton.next_power_of_2(i)), 8
        rows = F.pad(codes.view(o, kh, kw, i), (0, pitch - i)).flatten(2)
        codes = F.pad(rows, (0, -rows.shape[2] % 32))
        view = (o, codes.shape[2], kh, 1)
    block, flat = _blocking(view, bits)
    values = block * 8 // bits
    rows = codes.reshape(o, -1) if flat else codes.reshape(o, view[2] * view[3], view[1])
    fields = F.pad(rows, (0, -rows.shape[-1] % values)).reshape(o, -1, 8 // bits, block)
    if bits < 8:
        stored = (fields < 0).to(torch.uint8) if bits == 1 else fields.view(torch.uint8) & ((1 << bits) - 1)
        shifts = torch.arange(8 - bits, -1, -bits, dtype=torch.uint8, device=packed.device)
        fields = (stored << shifts.view(-1, 1)).sum(2, dtype=torch.uint8).view(torch.int8)
    return ConvForm(fields.reshape(o, -1), wsum, blanks, shape, groups, view, bits, block, flat, pitch)


@cache
def _blanks(device: torch.device) -> Tensor:
    # made here and not at the first call, which may be recorded into a CUDA graph
    return torch.arange(256, dtype=torch.uint8, device=device).unsqueeze(1).repeat(1, 128)


def _steps(shape: tuple[int, int, int, int], values: int, flat: bool) -> int:
    _, i, kh, kw = shape
    return triton.cdiv(i * kh * kw, values) if flat else kh * kw * triton.cdiv(i, values)


def _blocking(shape: tuple[int, int, int, int], bits: int) -> tuple[int, bool]:
    """(S, flat) with the least work: padded values of k, and a third more for the index arithmetic of flat blocks."""
    # the pixels of a block, 8 fields of them in one bit, share the shared memory with those of other programs
    blocks = (32,) if bits == 1 else (64, 32)
    options = [(block, flat) for block in blocks for flat in (False, True)]

    def work(option: tuple[int, bool]) -> float:
        block, flat = option
        values = block * 8 // bits
        return _steps(shape, values, flat) * values * (4 if flat else 3)

    return min(options, key=work)
