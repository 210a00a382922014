"""The weight layouts of the matmul kernels, made from the canonical one (`layout`) when a model is loaded, never saved.

A matrix instruction wants the weights of neighbouring k in neighbouring lanes, so unpacking must not reorder them. In a
planar layout one shift and mask of a whole register gives codes that all belong to one field and stand where the tensor
cores expect them. With P fields in a word, word s of a block of S words holds in field j the code of

    position p = block * S * P + j * S + s

    for integer activations    8-bit words, P = 8 / bits, field j at bits [8 - (j+1)*bits, 8 - j*bits), so that
                               (word << j*bits) & mask is the code, in two's complement, times 2^(8-bits);
                               one bit: set for -1, and (word << j) & 0x80 | 0x40 is the code times 64
    for floating activations   16-bit words, P = 16 / bits, field j at bits [j*bits, (j+1)*bits) in two's complement,
                               so that it can be put into the mantissa of a half; one bit: set for -1

A row is its groups one after another (one group, without group scales), each padded to `padded` positions so that no
field's S words cross from one group into the next, and the row is padded to whole blocks. What padding holds does not
matter: activations are 0 there.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import torch
import triton
from torch import Tensor

from triton_kernels.layout import check_packed, unpack
from triton_kernels.tuning import Config, shared_limit

# An H100's multiprocessors; a default for fewer is not worse than one for these.
PROCESSORS = 132
# S of each word size. The first is a cache line; the last the least k of a product of the tensor cores, in 8-bit words.
_BLOCKS = {8: (128, 64, 32), 16: (64, 32, 16)}


@dataclass(frozen=True)
class Planar:
    """One weight matrix in a planar layout.

    words: int8 or int16 [N, blocks * S]. block: S. padded: positions of a group, a multiple of S; where there are
    several groups, also a multiple of the block's S * P positions or a divisor of them.
    """

    words: Tensor
    bits: int
    block: int
    padded: int

    @property
    def fields(self) -> int:
        """P: codes in a word."""
        return self.words.element_size() * 8 // self.bits

    @property
    def span(self) -> int:
        """Positions of a block."""
        return self.block * self.fields

    @property
    def blocks(self) -> int:
        """Blocks in a row."""
        return self.words.shape[1] // self.block


@dataclass(frozen=True)
class MatmulForm:
    """A weight matrix [n, k] as the matmul kernels take it. group: codes that share a scale along k, or None.

    planar: for integer activations. wsum: int32 [n, groups], the sums of the codes, for the zero point of activations.
    """

    packed: Tensor
    bits: int
    n: int
    k: int
    group: int | None

    @property
    def groups(self) -> int:
        """Scales of one output channel."""
        return self.k // self.group if self.group else 1

    @cached_property
    def planar(self) -> Planar:
        """The layout for integer activations."""
        return to_planar(self._codes(), self.bits, self.group, word=8)

    @cached_property
    def halves(self) -> Planar:
        """The layout for floating activations."""
        return to_planar(self._codes(), self.bits, self.group, word=16)

    @cached_property
    def wsum(self) -> Tensor:
        """int32 [n, groups]: the sum of the codes that share a scale."""
        return self._codes().reshape(self.n, self.groups, -1).sum(-1, dtype=torch.int32)

    def _codes(self) -> Tensor:
        return unpack(self.packed, self.bits, self.k)


def prepare_matmul(packed: Tensor, bits: int, shape: tuple[int, int], group: int | None = None) -> MatmulForm:
    """A packed weight, uint8 [N, row_bytes(K, bits)], for the matmul kernels; each layout is made on its first use.

    shape: (N, K). group: codes along K that share a scale, a divisor of K; None for one scale a channel.
    Raises ValueError for another shape or group.
    """
    check_packed(packed, bits, shape)
    n, k = shape
    if k == 0:
        raise ValueError(f"expected a weight with inputs, got shape {list(shape)}: leave the layer out")
    if group is not None and (group < 1 or k % group):
        raise ValueError(f"expected a group size that divides {k}, got {group}: choose a divisor or None")
    return MatmulForm(packed, bits, n, k, None if group == k else group)


def to_planar(codes: Tensor, bits: int, group: int | None, *, word: int) -> Planar:
    """int8 codes [N, K] in the planar layout of 8 or 16-bit words."""
    n, k = codes.shape
    fields = word // bits
    block, padded = _sizes(group or k, fields, word, grouped=group is not None)
    codes = torch.nn.functional.pad(codes.reshape(n, -1, group or k), (0, padded - (group or k))).reshape(n, -1)
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (block * fields)))
    planes = _stored(codes, bits).reshape(n, -1, fields, block)
    words = torch.zeros_like(planes[:, :, 0])
    for j in range(fields):
        words |= planes[:, :, j] << (word - (j + 1) * bits if word == 8 else j * bits)
    # Narrowing keeps the low bits on every device.
    return Planar(words.to(torch.int8 if word == 8 else torch.int16).reshape(n, -1), bits, block, padded)


def _stored(codes: Tensor, bits: int) -> Tensor:
    """The field that stands for each code, int32."""
    wide = codes.to(torch.int32)
    return (wide < 0).to(torch.int32) if bits == 1 else wide & ((1 << bits) - 1)


def _sizes(size: int, fields: int, word: int, *, grouped: bool) -> tuple[int, int]:
    """(S, padded) for groups of `size` codes: the longest S that costs at most 1/16 more padding than the best.

    With several groups a block cannot be taken in parts, and it must not be more than a stage of the pipeline holds.
    """

    def padded(block: int) -> int:
        whole = block * fields
        if not grouped or size >= whole:
            return -(-size // whole) * whole
        return block * triton.next_power_of_2(-(-size // block))

    sizes = [block for block in _BLOCKS[word] if not grouped or block * fields <= 512]
    best = min(map(padded, sizes))
    block = next(block for block in sizes if padded(block) * 16 <= best * 17)
    return block, padded(block)


def configs(form: Planar, m: int, x_bytes: int, arch: tuple[str, int], *, groups: int) -> list[Config]:
    """Tiles BM x BN of the output, BK words of a row at a time, and SPLIT parts of K, for m rows; the default first.

    x_bytes: of an activation; arch: `tuning.architecture`. Few rows are read at the speed of memory: small tiles, of
    which two or more fit a multiprocessor, and K split until all have work. Many rows get the largest tile whose
    accumulators fit the registers, wide in N: a tile of packed words takes less shared memory than one of activations.
    """
    word = form.words.element_size()
    # accumulators a thread; with groups there is a second one, for their sum, and float32 is kept as two halves
    held = (16 if word == 2 and form.fields >= 8 else 32) if groups > 1 else 64 if x_bytes == 4 else 128
    whole = groups > 1 and form.padded < form.span
    target = arch if arch[0] == "cuda" else ("cuda", 90)
    n, limit = form.words.shape[0], shared_limit(target)
    # Before sm_90 the stage that is worked on is in registers.
    spare = int(target[1] < 90)
    return _configs(m, n, form.block, form.blocks, form.fields, word, x_bytes, held, whole, limit, spare)


@lru_cache(4096)
def _configs(
    m: int,
    n: int,
    block: int,
    blocks: int,
    fields: int,
    word: int,
    x_bytes: int,
    held: int,
    whole: bool,
    limit: int,
    spare: int,
) -> list[Config]:
    rows = min(max(8, triton.next_power_of_2(m)), 128)
    wide = 64 if rows <= 32 else 128 if rows == 64 or triton.cdiv(m, 128) * triton.cdiv(n, 256) < PROCESSORS else 256
    found = []
    for bm, bn, bk in product((128, 64, 32, 16, 8), (64, 128, 256), (block, block // 2, block // 4)):
        warps = 4 if bm * bn <= 64 * held else 8
        stage = bk * (word * bn + fields * bm * x_bytes)
        half = limit // 2 // stage + spare
        stages = min(4, half if rows <= 64 and half >= 2 else limit // stage + spare)
        fits = bm <= min(rows, bn, 2 * held) and bm * bn <= 32 * warps * held and bk * word >= 32 and stages >= 2
        # where operands come from registers, a long step does not leave enough of them beside 128 accumulators
        crowded = spare and bm * bn == 32 * 8 * 128 and bk * word > 64
        if fits and not crowded and (bk == block or not whole):
            room = PROCESSORS * (2 if warps == 4 else 1)
            split = _split(triton.cdiv(m, bm) * triton.cdiv(n, bn), blocks, room)
            tiles = (("BM", bm), ("BN", bn), ("BK", bk), ("SPLIT", split))
            rank = (stages < 3 and (fields < 4 or rows <= 64), -bm, abs(bn - wide), -bk)
            found.append((rank, Config(tiles, num_warps=warps, num_stages=stages)))
    found.sort(key=lambda pair: pair[0])
    return [config for _, config in found[:12]]


def _split(tiles: int, blocks: int, room: int) -> int:
    split = 1
    while split < 16 and tiles * split * 2 <= room and blocks >= split * 4:
        split *= 2
    return split
