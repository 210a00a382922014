"""What enters a convolution: images as `conv_kernel` takes them, with the channels of a pixel together.

Floats with one known scale are quantized by a kernel of their own, once a value and not once a tap; as int8, which
needs no flip in the product.

Few channels (2 to 15, one group) would be gathered byte by byte. Such an image is first copied ("staged") with its
padding and 4, 8 or 16 channels a pixel, as `conv_form` has made its weights for; floats are quantized into that copy.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels import reference
from triton_kernels.conv_form import ConvForm
from triton_kernels.epilogue import finish, tail_of
from triton_kernels.launch import Launch
from triton_kernels.spec import Input, Output


@triton.jit
def _quantize(  # type: ignore[no-untyped-def]
    x,
    tail,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    out_n,
    out_h,
    out_w,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Floats [N, C, H, W] of any strides to codes whose channels lie together; a program makes a part of a row."""
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column, c = i // C, i % C
    row, image = tl.program_id(0) % height, (tl.program_id(0) // height).to(INDEX)
    at = image * stride_n + row.to(INDEX) * stride_h + column.to(INDEX) * stride_w + c.to(INDEX) * stride_c
    to = image * out_n + row.to(INDEX) * out_h + column * out_w + c
    known = i < width * C
    value = tl.load(x + at, mask=known, other=0).to(tl.float32)
    finish(value, to, to, known, tail, False)


def _stored(given: Input) -> Output:
    """How a "static" input is kept as int8: codes that int8 does not hold are all shifted, the lowest to -128."""
    if given.binary:
        return Output(binary=True, dtype=torch.int8)
    reference.u8_zero_point(given.zero_point, given.qmin, given.qmax)
    shift = 0 if given.qmin >= -128 and given.qmax <= 127 else given.qmin + 128
    return Output(
        inv_scale=given.inv_scale,
        zero_point=given.zero_point - shift,
        qmin=given.qmin - shift,
        qmax=given.qmax - shift,
        dtype=torch.int8,
    )


def _plan_quantize(x: Tensor, stored: Output, y: Tensor) -> Launch:
    """x [N, C, H, W] floating -> y [N, H, W, C] codes."""
    n, c, h, w = x.shape
    block = min(1024, triton.next_power_of_2(w * c))
    args: dict[str, Any] = {"x": x, "tail": tail_of(stored, y), "height": h, "width": w}
    args |= dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), x.stride(), strict=True))
    args |= dict(zip(("out_n", "out_h", "out_w"), y.stride()[:3], strict=True))
    constants = {"C": c, "WIDE": wide(x, y), "BLOCK": block}
    return Launch(_quantize, (n * h, triton.cdiv(w * c, block)), args, constants, num_warps=max(1, block // 256))


def enter(
    x: Tensor, form: ConvForm, given: Input, padding: Sequence[int], dilation: Sequence[int]
) -> tuple[list[Launch], Tensor, int, Sequence[int]]:
    """(what must run first, x as the kernel takes it, the stored value of its real zero, the padding left to do)."""
    static = given.kind(x.dtype) == "static"
    stored = _stored(given) if static else Output(dtype=x.dtype)
    zero = stored.zero_point if static else 0 if x.dtype.is_floating_point else given.zero_point
    if not static and not form.pitch:
        return [], x.contiguous(memory_format=torch.channels_last), zero, padding
    n, c, h, w = x.shape
    if form.pitch:
        (top, left), taps = padding, form.view[1] // form.pitch
        columns = w + 2 * left + (taps - form.shape[3]) * dilation[1]
        # whole rows of 16 pixels keep every row aligned
        size = (n, h + 2 * top, columns + -columns % 16, form.pitch)
        y = torch.full(size, zero, dtype=stored.out_dtype, device=x.device)
        inner, padding = y[:, top : top + h, left : left + w, :c], (0, 0)
    else:
        inner = y = torch.empty((n, h, w, c), dtype=stored.out_dtype, device=x.device)
    launches = [_plan_quantize(x, stored, inner)] if static else []
    if not static:
        inner.copy_(x.permute(0, 2, 3, 1))
    return launches, y.permute(0, 3, 1, 2), zero, padding


def wide(*tensors: Tensor) -> bool:
    """Whether an offset into one of the tensors can pass 2^31."""
    return any(
        1 + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)) >= 2**31 for t in tensors
    )
