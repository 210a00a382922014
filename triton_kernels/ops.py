"""The operators `torch.ops.tq.*`: schemas, implementations, and shapes for the compiler.

    tq::int_conv2d, tq::int_matmul        uint8 codes x packed weight -> exact accumulators, float32
    tq::quant_conv2d, tq::quant_matmul    a whole layer: floats or codes x packed weight -> floats or codes

The whole layers take inputs and give outputs as `spec.Input` and `spec.Output` say, with their fields as keyword
arguments (those of the output, but for residual and relu, begin with out_). Weights are the packed tensors of `layout`.
All four are for inference: no gradient flows through them.

`impl` is "auto", "reference", "cpu" or "triton". A name is an order: what cannot be followed is a ValueError, never
another implementation. "auto" takes the fastest that is exact on the device; `choose` and `describe` tell which.
Convolutions return channels last, products contiguous memory. An empty batch gives an empty output.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_kernels import checks, cpu, dispatch, reference
from triton_kernels.dispatch import IMPLS, choose, describe, prepare_conv2d, prepare_matmul
from triton_kernels.layout import check_packed, unpack_stored
from triton_kernels.spec import Input, Output

__all__ = ["IMPLS", "choose", "describe", "prepare_conv2d", "prepare_matmul"]

_WEIGHT = "Tensor weight, int bits, int[] weight_shape"
_CONV = "int[] stride=[1, 1], int[] padding=[0, 0], int[] dilation=[1, 1], int groups=1"
_INPUT = "Tensor? inv_scale=None, int zero_point=0, int qmin=0, int qmax=255, bool binary=False"
_ROWS = "bool dynamic=False, int x_bits=8"
_LAYER = f"Tensor x, {_WEIGHT}, Tensor scale, Tensor? bias=None, *, {_INPUT}"
_TAIL = (
    "Tensor? residual=None, Tensor? residual_scale=None, int residual_zero_point=0, bool relu=False, "
    "Tensor? out_inv_scale=None, int out_zero_point=0, int out_qmin=0, int out_qmax=255, bool out_binary=False, "
    'ScalarType? out_dtype=None, str impl="auto"'
)
_LIB = torch.library.Library("tq", "FRAGMENT")
_LIB.define(f'int_conv2d(Tensor x, {_WEIGHT}, {_CONV}, int zero_point=0, str impl="auto") -> Tensor')
_LIB.define(f'int_matmul(Tensor x, {_WEIGHT}, int zero_point=0, str impl="auto") -> Tensor')
_LIB.define(f"quant_conv2d({_LAYER}, {_CONV}, {_TAIL}) -> Tensor")
_LIB.define(f"quant_matmul({_LAYER}, {_ROWS}, {_TAIL}) -> Tensor")

_GEOMETRY = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
_INPUTS = {n: n for n in ("inv_scale", "zero_point", "qmin", "qmax", "binary", "dynamic")} | {"x_bits": "bits"}
_OUTPUTS = {n: n for n in ("residual", "residual_scale", "residual_zero_point", "relu")} | {
    f"out_{n}": n for n in ("inv_scale", "zero_point", "qmin", "qmax", "binary", "dtype")
}


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
    checks.check_conv_input(x, weight, weight_shape, padding, dilation, groups, torch.uint8)
    if chosen == "cpu":
        return cpu.int_conv2d(x, form)
    if chosen == "triton" and x.shape[0]:
        kernel = importlib.import_module("triton_kernels.quant_conv2d").quant_conv2d
        ones, given = dispatch.ones(weight), Input(zero_point=zero_point)
        acc: Tensor = kernel(x, form, ones, None, given, stride=stride, padding=padding, dilation=dilation)
        return acc
    if not x.shape[0]:
        return _images(x, _conv_shape(x, weight_shape, stride, padding, dilation), torch.float32)
    acc = reference.int_conv2d(x.double() - zero_point, form, stride, padding, dilation, groups)
    return acc.contiguous(memory_format=torch.channels_last)


def _int_matmul(
    x: Tensor, weight: Tensor, bits: int, weight_shape: Sequence[int], zero_point: int = 0, impl: str = "auto"
) -> Tensor:
    chosen = choose("int_matmul", x.device, impl)
    form = dispatch.matmul_form(chosen, weight, bits, weight_shape, zero_point)
    checks.check_matmul_input(x, weight, weight_shape, torch.uint8)
    if chosen == "cpu":
        return cpu.int_matmul(x, form)
    if chosen == "triton" and x.numel():
        kernel = importlib.import_module("triton_kernels.quant_matmul").quant_matmul
        acc: Tensor = kernel(x, form, dispatch.ones(weight), None, Input(zero_point=zero_point))
        return acc
    if not x.numel():
        return x.new_zeros((*x.shape[:-1], weight_shape[0]), dtype=torch.float32)
    return reference.int_matmul(x.double() - zero_point, form).contiguous()


def _quant_conv2d(
    x: Tensor,
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    impl: str = "auto",
    **rest: Any,
) -> Tensor:
    shape, given, out = _conv_layer(x, weight, bits, weight_shape, scale, bias, rest)
    stride, padding, dilation, groups = _geometry(rest)
    kind = given.kind(x.dtype)
    chosen = choose("float" if kind == "float" else "int_conv2d", x.device, impl)
    if not x.shape[0]:
        return _images(x, shape, out.out_dtype)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    if chosen == "triton":
        form = dispatch.conv_form(chosen, weight, bits, weight_shape, stride, padding, dilation, groups, 0)
        kernel = importlib.import_module("triton_kernels.quant_conv2d").quant_conv2d
        y: Tensor = kernel(x, form, scale, bias, given, out, **geometry)
    elif chosen == "reference":
        y = reference.quant_conv2d(
            x, weight, bits, weight_shape, scale, bias, **geometry, groups=groups, given=given, out=out
        )
    elif kind == "float":
        floats = dispatch.float_form(weight, bits, weight_shape)
        acc = F.conv2d(x.to(torch.float32), floats, None, stride, padding, dilation, groups)
        y = reference.finish(reference.epilogue(acc, scale, bias), out)
    else:
        codes, zero, _ = _as_bytes(x, given, weight_shape[1])
        form = dispatch.conv_form(chosen, weight, bits, weight_shape, stride, padding, dilation, groups, zero)
        y = cpu.quant_conv2d(codes, form, scale, bias, out)
    return y.contiguous(memory_format=torch.channels_last)


def _quant_matmul(
    x: Tensor,
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    impl: str = "auto",
    **rest: Any,
) -> Tensor:
    shape, given, out = _matmul_layer(x, weight, bits, weight_shape, scale, bias, rest)
    kind, groups = given.kind(x.dtype), 1 if scale.dim() == 1 else scale.shape[1]
    chosen = choose("float" if kind == "float" else "int_matmul", x.device, impl)
    if chosen == "cpu" and groups > 1 and kind != "float":
        if impl == "cpu":
            raise ValueError(
                f'expected one scale for each output with impl "cpu" and quantized inputs, got {groups} groups: use '
                f'impl "auto" or "reference"'
            )
        chosen = "reference"
    if not x.numel():
        return x.new_zeros(shape, dtype=out.out_dtype)
    if chosen == "triton":
        form = dispatch.matmul_form(chosen, weight, bits, weight_shape, 0, groups)
        kernel = importlib.import_module("triton_kernels.quant_matmul").quant_matmul
        y: Tensor = kernel(x, form, scale, bias, given, out)
    elif chosen == "reference":
        y = reference.quant_matmul(x, weight, bits, weight_shape, scale, bias, given=given, out=out)
    elif kind == "float":
        floats = dispatch.float_form(weight, bits, weight_shape)
        if groups > 1:
            wide = scale.repeat_interleave(weight_shape[1] // groups, 1)
            acc = F.linear(x.to(torch.float32), floats * wide, bias)
        else:
            acc = reference.epilogue(F.linear(x.to(torch.float32), floats), scale, bias, channel_dim=-1)
        y = reference.finish(acc, out)
    else:
        codes, zero, row_scale = _as_bytes(x, given, weight_shape[1])
        form = dispatch.matmul_form(chosen, weight, bits, weight_shape, zero)
        acc = cpu.int_matmul(codes, form)
        acc = acc if row_scale is None else acc * row_scale
        y = reference.finish(reference.epilogue(acc, scale.flatten(), bias, channel_dim=-1), out)
    return y.contiguous()


def _as_bytes(x: Tensor, given: Input, k: int) -> tuple[Tensor, int, Tensor | None]:
    """Any quantized input as unsigned bytes, with the byte of its zero and, if dynamic, the scale of each row."""
    kind, row_scale = given.kind(x.dtype), None
    if kind == "static":
        codes = reference.quantize_u8(x, given.inv_scale, given.zero_point, given.qmin, given.qmax, binary=given.binary)
        return codes, reference.u8_zero_point(given.zero_point, given.qmin, given.qmax, binary=given.binary), None
    if kind == "packed":
        codes = unpack_stored(x, given.bits, k)
        return (codes * 2, 1, None) if given.binary else (codes, given.zero_point, None)
    zero = given.zero_point
    if kind == "dynamic":
        x, row_scale = reference.quantize_rows(x)
        zero = 0
    return (x, zero, None) if x.dtype == torch.uint8 else (x.view(torch.uint8) ^ 0x80, zero + 128, row_scale)


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
    checks.check_conv(weight_shape, stride, padding, dilation, groups, zero_point)
    checks.check_conv_input(x, weight, weight_shape, padding, dilation, groups, torch.uint8)
    return _images(x, _conv_shape(x, weight_shape, stride, padding, dilation), torch.float32)


def _fake_int_matmul(
    x: Tensor, weight: Tensor, bits: int, weight_shape: Sequence[int], zero_point: int = 0, impl: str = "auto"
) -> Tensor:
    check_packed(weight, bits, weight_shape)
    checks.check_matmul(weight_shape, zero_point)
    checks.check_matmul_input(x, weight, weight_shape, torch.uint8)
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
    shape, _, out = _conv_layer(x, weight, bits, weight_shape, scale, bias, rest)
    return _images(x, shape, out.out_dtype)


def _fake_quant_matmul(
    x: Tensor,
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    scale: Tensor,
    bias: Tensor | None = None,
    **rest: Any,
) -> Tensor:
    shape, _, out = _matmul_layer(x, weight, bits, weight_shape, scale, bias, rest)
    return x.new_empty(shape, dtype=out.out_dtype)


def _conv_layer(
    x: Tensor, weight: Tensor, bits: int, shape: Sequence[int], scale: Tensor, bias: Tensor | None, rest: dict[str, Any]
) -> tuple[tuple[int, ...], Input, Output]:
    """Check a convolution's arguments: its output's shape, and what its inputs and outputs are."""
    given, out = _specs(rest)
    stride, padding, dilation, groups = _geometry(rest)
    check_packed(weight, bits, shape)
    checks.check_conv(shape, stride, padding, dilation, groups, 0)
    checks.check_input(x, given)
    checks.check_conv_input(x, weight, shape, padding, dilation, groups, x.dtype)
    checks.check_scales(scale, bias, shape, x.device)
    result = _conv_shape(x, shape, stride, padding, dilation)
    checks.check_output(out, result, x.device)
    return result, given, out


def _matmul_layer(
    x: Tensor, weight: Tensor, bits: int, shape: Sequence[int], scale: Tensor, bias: Tensor | None, rest: dict[str, Any]
) -> tuple[tuple[int, ...], Input, Output]:
    """The same for a product."""
    given, out = _specs(rest)
    check_packed(weight, bits, shape)
    checks.check_matmul(shape, 0)
    checks.check_input(x, given)
    checks.check_rows(x, weight, shape, given)
    checks.check_scales(scale, bias, shape, x.device)
    result = (*x.shape[:-1], shape[0])
    checks.check_output(out, result, x.device)
    return result, given, out


def _specs(rest: dict[str, Any]) -> tuple[Input, Output]:
    given = Input(**{field: rest[name] for name, field in _INPUTS.items() if name in rest})
    return given, Output(**{field: rest[name] for name, field in _OUTPUTS.items() if name in rest})


def _geometry(rest: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    stride, padding, dilation, groups = (rest.get(name, default) for name, default in _GEOMETRY.items())
    return stride, padding, dilation, groups


def _conv_shape(
    x: Tensor, shape: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    return (x.shape[0], shape[0], *reference.conv_sizes(x.shape[2:], shape[2:], stride, padding, dilation))


def _images(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


for _name, _run, _fake in (
    ("int_conv2d", _int_conv2d, _fake_int_conv2d),
    ("int_matmul", _int_matmul, _fake_int_matmul),
    ("quant_conv2d", _quant_conv2d, _fake_quant_conv2d),
    ("quant_matmul", _quant_matmul, _fake_quant_matmul),
):
    _LIB.impl(_name, _run, "CPU")
    _LIB.impl(_name, _run, "CUDA")
    torch.library.register_fake(f"tq::{_name}", _fake, lib=_LIB)
