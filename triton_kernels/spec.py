"""What a quantized layer does with the numbers that enter and leave it, as the arguments that all implementations take.

A tensor of codes is uint8 or int8 and stands for centred integers `stored - zero_point`, zero_point being the stored
value of the real zero: 0..255 for uint8, -128..127 for int8. A uint8 tensor of 1, 2 or 4-bit codes may also be packed
row by row in the layout of `layout.pack`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CODES = (torch.uint8, torch.int8)


@dataclass(frozen=True, kw_only=True)
class Input:
    """How x becomes centred integers.

    floating x   neither inv_scale nor binary nor dynamic: it stays float (weight-only)
                 inv_scale float32 0-dim:  clamp(round(x * inv_scale) + zero_point, qmin, qmax) - zero_point
                 binary:                   +1 where x >= 0, else -1
                 dynamic:                  symmetric int8 with a scale for each row (`reference.quantize_rows`)
    uint8, int8  bits 8:                   x - zero_point
    uint8        bits 1, 2, 4 (packed):    code - zero_point; with binary 2 * code - 1
    """

    inv_scale: Tensor | None = None
    zero_point: int = 0
    qmin: int = 0
    qmax: int = 255
    binary: bool = False
    dynamic: bool = False
    bits: int = 8

    def kind(self, dtype: torch.dtype) -> str:
        """ "float", "static", "dynamic", "codes" or "packed"."""
        if dtype in CODES:
            return "codes" if self.bits == 8 else "packed"
        if self.dynamic:
            return "dynamic"
        return "float" if self.inv_scale is None and not self.binary else "static"


@dataclass(frozen=True, kw_only=True)
class Output:
    """What happens to y = acc * scale + bias, in this order: residual, ReLU, and codes instead of floats.

    residual: of y's shape, floating, or codes with residual_scale (float32 0-dim): (r - residual_zero_point) * scale.
    Codes where inv_scale (float32 0-dim) or binary is given, of dtype uint8 (default) or int8:
    clamp(round(y * inv_scale) + zero_point, qmin, qmax), or zero_point + 1 where y >= 0 and zero_point - 1 elsewhere.
    Otherwise y as dtype, float32 by default.
    """

    residual: Tensor | None = None
    residual_scale: Tensor | None = None
    residual_zero_point: int = 0
    relu: bool = False
    inv_scale: Tensor | None = None
    zero_point: int = 0
    qmin: int = 0
    qmax: int = 255
    binary: bool = False
    dtype: torch.dtype | None = None

    @property
    def codes(self) -> bool:
        """Whether the output is quantized."""
        return self.binary or self.inv_scale is not None

    @cached_property
    def out_dtype(self) -> torch.dtype:
        """The output's dtype."""
        return self.dtype or (torch.uint8 if self.codes else torch.float32)


NO_INPUT, NO_OUTPUT = Input(), Output()
