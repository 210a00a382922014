"""The operators `torch.ops.tq.*`: schemas, implementations, and shapes for the compiler.

    tq::int_conv2d, tq::int_matmul        uint8 codes x packed weight -> exact accumulators, float32
    tq::quant_conv2d, tq::quant_matmul    float x packed weight -> float32: the whole layer in one operator

A compiled model does best with the integer pair between plain torch operations (`reference.quantize_u8` before it,
`reference.epilogue` after it), which Inductor fuses with their neighbours; the fused pair is for eager use and for GPU
kernels. Weights are the packed tensors of `layout`. All four are for inference: no gradient flows through them.

`impl` is "auto", "reference" or "cpu". A name is an order: what cannot be followed is a ValueError, never another
implementation. "auto" takes the fastest that is exact on the device; `choose` and `describe` tell which.
Convolutions return channels last, products contiguous memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_kernels import cpu, dispatch, reference
from triton_kernels.dispatch import IMPLS, choose, describe, prepare_conv2d, prepare_matmul
from triton_kernels.layout import check_packed

__all__ = ["IMPLS", "choose", "describe", "prepare_conv2d", "prepare_matmul"]

_WEIGHT = "Tensor weight, int bits, int[] weight_shape"
_CONV = "int[] stride=[1, 1], int[] padding=[0, 0], int[] dilation=[1, 1], int groups=1"
_INPUT = "Tensor? inv_scale=None, int zero_point=0, int qmin=0, int qmax=255, bool binary=False"
_LAYER = f"Tensor x, {_WEIGHT}, Tensor scale, Tensor? bias=None, *, {_INPUT}"
_TAIL = 'Tensor? residual=None, bool relu=False, str impl="auto"'
_LIB = torch.library.Library("tq", "FRAGMENT")
_LIB.define(f'int_conv2d(Tensor x, {_WEIGHT}, {_CONV}, int zero_point=0, str impl="auto") -> Tensor')
_LIB.define(f'int_matmul(Tensor x, {_WEIGHT}, int zero_point=0, str impl="auto") -> Tensor')
_LIB.define(f"quant_conv2d({_LAYER}, {_CONV}, {_TAIL}) -> Tensor")
_LIB.define(f"quant_matmul({_LAYER}, {_TAIL}) -> Tensor")


def _int_conv2d(
    x: Tensor,
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    zero_point: int = 0,
    impl: str = "auto",
) -> Tensor:
    chosen = choose("int_conv2d", x.device, impl)
    form = dispatch.conv_form(chosen, weight, bits, weight_shape, stride, padding, dilation, groups, zero_point)
    dispatch.check_conv_input(x, weight, weight_shape, padding, dilation, groups, torch.uint8)
    if chosen == "cpu":
        return cpu.int_conv2d(x, form)
    acc = reference.int_conv2d(x.double() - zero_point, form, stride, padding, dilation, groups)
    return acc.contiguous(memory_format=torch.channels_last)


def _int_matmul(
    x: Tensor, weight: Tensor, bits: int, weight_shape: Sequence[int], zero_point: int = 0, impl: str = "auto"
) -> Tensor:
    chosen = choose("int_matmul", x.device, impl)
    form = dispatch.matmul_form(chosen, weight, bits, weight_shape, zero_point)
    dispatch.check_matmul_input(x, weight, weight_shape, torch.uint8)
    if chosen == "cpu":
        return cpu.int_matmul(x, form)
    return reference.int_matmul(x.double() - zero_point, form).contiguous()


def _quant_conv2d(
    x: Tensor,
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    inv_scale: Tensor | None = None,
    zero_point: int = 0,
    qmin: int = 0,
    qmax: int = 255,
    binary: bool = False,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
    impl: str = "auto",
) -> Tensor:
    dispatch.check_float(x, scale, bias, weight_shape)
    dispatch.check_conv_input(x, weight, weight_shape, padding, dilation, groups, x.dtype)
    geometry = stride, padding, dilation, groups
    op = "float" if inv_scale is None and not binary else "int_conv2d"
    chosen = choose(op, x.device, impl)
    if op == "float":
        float_weight = dispatch.float_form(chosen, weight, bits, weight_shape)
        acc = F.conv2d(x.to(torch.float32), float_weight, None, *geometry)
    else:
        codes = reference.quantize_u8(x, inv_scale, zero_point, qmin, qmax, binary=binary)
        zero = reference.u8_zero_point(zero_point, qmin, qmax, binary=binary)
        acc = _int_conv2d(codes, weight, bits, weight_shape, *geometry, zero, chosen)
    y = reference.finish(reference.epilogue(acc, scale, bias, channel_dim=1), residual, relu)
    return y.contiguous(memory_format=torch.channels_last)


def _quant_matmul(
    x: Tensor,
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    inv_scale: Tensor | None = None,
    zero_point: int = 0,
    qmin: int = 0,
    qmax: int = 255,
    binary: bool = False,
    residual: Tensor | None = None,
    relu: bool = False,
    impl: str = "auto",
) -> Tensor:
    dispatch.check_float(x, scale, bias, weight_shape)
    dispatch.check_matmul_input(x, weight, weight_shape, x.dtype)
    op = "float" if inv_scale is None and not binary else "int_matmul"
    chosen = choose(op, x.device, impl)
    if op == "float":
        acc = F.linear(x.to(torch.float32), dispatch.float_form(chosen, weight, bits, weight_shape))
    else:
        codes = reference.quantize_u8(x, inv_scale, zero_point, qmin, qmax, binary=binary)
        zero = reference.u8_zero_point(zero_point, qmin, qmax, binary=binary)
        acc = _int_matmul(codes, weight, bits, weight_shape, zero, chosen)
    return reference.finish(reference.epilogue(acc, scale, bias, channel_dim=-1), residual, relu).contiguous()


def _fake_int_conv2d(
    x: Tensor,
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    zero_point: int = 0,
    impl: str = "auto",
) -> Tensor:
    check_packed(weight, bits, weight_shape)
    dispatch.check_conv(weight_shape, stride, padding, dilation, groups, zero_point)
    dispatch.check_conv_input(x, weight, weight_shape, padding, dilation, groups, torch.uint8)
    sizes = [
        (size + 2 * pad - step * (kernel - 1) - 1) // hop + 1
        for size, pad, step, kernel, hop in zip(x.shape[2:], padding, dilation, weight_shape[2:], stride, strict=True)
    ]
    shape = (x.shape[0], weight_shape[0], *sizes)
    return x.new_empty(shape, dtype=torch.float32).to(memory_format=torch.channels_last)


def _fake_int_matmul(
    x: Tensor, weight: Tensor, bits: int, weight_shape: Sequence[int], zero_point: int = 0, impl: str = "auto"
) -> Tensor:
    check_packed(weight, bits, weight_shape)
    dispatch.check_matmul(weight_shape, zero_point)
    dispatch.check_matmul_input(x, weight, weight_shape, torch.uint8)
    return x.new_empty((*x.shape[:-1], weight_shape[0]), dtype=torch.float32)


def _fake_quant_conv2d(
    x: Tensor,
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    **rest: Any,
) -> Tensor:
    dispatch.check_float(x, scale, bias, weight_shape)
    geometry = {name: rest[name] for name in ("stride", "padding", "dilation", "groups") if name in rest}
    return _fake_int_conv2d(x.to(torch.uint8), weight, bits, weight_shape, **geometry)


def _fake_quant_matmul(
    x: Tensor,
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    **rest: Any,
) -> Tensor:
    dispatch.check_float(x, scale, bias, weight_shape)
    return _fake_int_matmul(x.to(torch.uint8), weight, bits, weight_shape)


for _name, _run, _fake in (
    ("int_conv2d", _int_conv2d, _fake_int_conv2d),
    ("int_matmul", _int_matmul, _fake_int_matmul),
    ("quant_conv2d", _quant_conv2d, _fake_quant_conv2d),
    ("quant_matmul", _quant_matmul, _fake_quant_matmul),
):
    _LIB.impl(_name, _run, "CPU")
    _LIB.impl(_name, _run, "CUDA")
    torch.library.register_fake(f"tq::{_name}", _fake, lib=_LIB)
