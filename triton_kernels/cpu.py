"""Exact int8 accumulators on x86 CPUs through oneDNN, as PyTorch exposes it to its own quantizer.

oneDNN computes sum((x - zero_point) * w) in int32 and then scales; with every scale 1, no bias and a float32 output the
result is the accumulator itself, converted once. Two things follow from measurements and must not be "simplified":

* Inputs are unsigned bytes, signed ones stored with an offset. Signed bytes fall back to a reference loop about a
  thousand times slower on CPUs without AMX (375 ms instead of 0.49 ms for one row of a 4096 x 4096 matrix).
* Without VNNI or AMX, oneDNN halves the weights so that its 16-bit partial sums do not saturate, and the result is not
  exact. `probe` therefore runs products that need every bit, and where they come out wrong this path is not offered.

The packed weight is an opaque mkldnn tensor, which can be neither copied nor saved; a form lives in memory only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from triton_kernels.reference import conv_sizes, epilogue, finish
from triton_kernels.spec import Output

OPS = {
    "int_conv2d": ("qconv_prepack", "qconv2d_pointwise"),
    "int_matmul": ("qlinear_prepack", "qlinear_pointwise"),
}


@dataclass(frozen=True, slots=True)
class ConvForm:
    """A convolution's weight in oneDNN's own blocked layout, with everything that was fixed when it was made."""

    weight: Tensor  # opaque mkldnn int8
    scales: Tensor  # float32 [O], ones
    zero_points: Tensor  # int32 [O], zeros
    out_channels: int
    kernel: tuple[int, int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    zero_point: int
    fused_exact: bool  # whether oneDNN's own scale, bias, residual sum, ReLU and codes round as the reference does


@dataclass(frozen=True, slots=True)
class LinearForm:
    """A matrix in oneDNN's own blocked layout."""

    weight: Tensor  # opaque mkldnn int8
    scales: Tensor  # float32 [N], ones
    zero_points: Tensor  # int32 [N], zeros
    out_features: int
    zero_point: int


def prepare_conv2d(
    weight: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    zero_point: int = 0,
    fused: bool = True,
) -> ConvForm:
    """Reorder an int8 OIHW weight once, for inputs whose real zero is the byte `zero_point`.

    fused: let oneDNN do what follows the sums too, where it is exact.
    """
    out, _, kh, kw = weight.shape
    scales, zeros = torch.ones(out), torch.zeros(out, dtype=torch.int32)
    geometry = list(stride), list(padding), list(dilation), groups
    opaque = torch.ops.onednn.qconv_prepack(weight.contiguous(), scales, 1.0, zero_point, *geometry, None)
    return ConvForm(opaque, scales, zeros, out, (kh, kw), *geometry, zero_point, fused and _fused_is_exact())


def int_conv2d(x: Tensor, form: ConvForm) -> Tensor:
    """Accumulators of uint8 [N,C,H,W] (any strides) against a prepared weight: float32 [N,O,H',W'], channels last."""
    if x.numel() == 0:
        return _padding_only(x, form)
    acc: Tensor = torch.ops.onednn.qconv2d_pointwise.default(
        x.contiguous(memory_format=torch.channels_last),
        1.0,
        form.zero_point,
        form.weight,
        form.scales,
        form.zero_points,
        None,
        form.stride,
        form.padding,
        form.dilation,
        form.groups,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return acc


def quant_conv2d(x: Tensor, form: ConvForm, scale: Tensor, bias: Tensor | None, out: Output) -> Tensor:
    """A whole layer in one oneDNN call where it can do all of it exactly: uint8 [N,C,H,W] -> [N,O,H',W'].

    scale, bias: float32 [O]. A float32 residual is summed inside; codes come out where they are uint8 from 0.
    """
    step = None if out.residual is not None else _step(out)
    whole = form.fused_exact and out.residual_scale is None and x.numel()
    if not whole or (out.residual is not None and out.residual.dtype != torch.float32):
        return finish(epilogue(int_conv2d(x, form), scale, bias), out)
    x = x.contiguous(memory_format=torch.channels_last)
    relu = "relu" if out.relu else "none"
    weight = (form.weight, scale, form.zero_points)
    geometry = (form.stride, form.padding, form.dilation, form.groups)
    if out.residual is not None:
        total = out.residual.clone(memory_format=torch.channels_last)
        y = torch.ops.onednn.qconv2d_pointwise.binary(
            x, 1.0, form.zero_point, *weight, total, bias, *geometry, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0,
            "none", [], "",
        )  # fmt: skip
        # its ReLU would make 0 of a residual that is NaN
        return finish(y, replace(out, residual=None))
    args = (1.0, 0, torch.float32) if step is None else (step, out.zero_point, torch.uint8)
    y = torch.ops.onednn.qconv2d_pointwise.default(
        x, 1.0, form.zero_point, *weight, bias, *geometry, *args, relu, [], ""
    )
    return finish(y, replace(out, relu=False)) if step is None else y.clamp_(out.qmin, out.qmax)


def _step(out: Output) -> float | None:
    """The step whose reciprocal, as oneDNN takes it, is the output's; None where oneDNN has no such output."""
    if not out.codes or out.binary or out.out_dtype != torch.uint8 or out.qmin != 0:
        return None
    assert out.inv_scale is not None
    return _reciprocal(float(out.inv_scale))


@cache
def _reciprocal(inverse: float) -> float | None:
    near = np.float32(1) / np.float32(inverse)
    for step in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
        if np.float32(1) / step == np.float32(inverse):
            return float(step)
    return None


def prepare_matmul(weight: Tensor, zero_point: int = 0) -> LinearForm:
    """Reorder an int8 [N, K] weight once, for inputs whose real zero is the byte `zero_point`."""
    n = weight.shape[0]
    opaque = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return LinearForm(opaque, torch.ones(n), torch.zeros(n, dtype=torch.int32), n, zero_point)


def int_matmul(x: Tensor, form: LinearForm) -> Tensor:
    """Accumulators of uint8 [..., K] (any strides) against a prepared weight: float32 [..., N], contiguous."""
    shape = (*x.shape[:-1], form.out_features)
    if x.numel() == 0:
        return torch.zeros(shape)
    acc: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        x.reshape(-1, x.shape[-1]).contiguous(),
        1.0,
        form.zero_point,
        form.weight,
        form.scales,
        form.zero_points,
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return acc.view(shape)


@cache
def probe(op: str) -> str:
    """Why `op` ("int_conv2d" or "int_matmul") cannot be used on this machine; an empty string when it can.

    Runs once, on first need: looks for oneDNN's operators in this build of torch, and compares a few small products
    that saturate 16 bits or lose their lowest bit where the instructions for exact sums are missing.
    """
    if not all(hasattr(torch.ops.onednn, name) for name in OPS[op]):
        return "this build of PyTorch has no oneDNN int8 operators"
    try:
        # A fresh mode: the first use may come under inference mode or with gradients on.
        with torch.inference_mode(False), torch.no_grad():
            exact = _conv_is_exact() if op == "int_conv2d" else _matmul_is_exact()
    except (RuntimeError, NotImplementedError) as error:
        return f"oneDNN refused a small int8 product: {str(error).strip().splitlines()[0]}"
    return "" if exact else "oneDNN's int8 sums are not exact on this CPU, which lacks VNNI and AMX"


@cache
def _fused_is_exact() -> bool:
    """Whether whole layers come out of oneDNN as the reference computes them, on products of many magnitudes."""
    x, weight = _ramp((2, 32, 6, 6), 0, 255).to(torch.uint8), _ramp((16, 32, 3, 3), -128, 127).to(torch.int8)
    scale = torch.linspace(1e-6, 3e-3, 16)
    bias, residual = torch.linspace(-3, 3, 16), _ramp((2, 16, 6, 6), -40, 40).to(torch.float32) / 7
    inverse = torch.tensor(0.3).reciprocal()
    form = prepare_conv2d(weight, (1, 1), (1, 1), zero_point=3, fused=False)
    fused = replace(form, fused_exact=True)
    outputs = (
        Output(),
        Output(relu=True, residual=residual),
        Output(relu=True, inv_scale=inverse, qmax=15),
        Output(inv_scale=inverse, zero_point=128),
    )
    pairs = ((quant_conv2d(x, f, scale, bias, out) for f in (form, fused)) for out in outputs)
    return all(torch.equal(a, b) for a, b in pairs)


def _padding_only(x: Tensor, form: ConvForm) -> Tensor:
    sizes = conv_sizes(x.shape[2:], form.kernel, form.stride, form.padding, form.dilation)
    empty = torch.empty((x.shape[0], form.out_channels, *sizes), memory_format=torch.channels_last)
    return empty.zero_()


def _ramp(shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """Integers in [low, high] with both ends, odd values and runs of the extremes; no random state is touched."""
    count = torch.Size(shape).numel()
    values = torch.arange(count) * 7919 % (3 * (high - low + 1)) - (high - low + 1) + low
    return values.clamp(low, high).reshape(shape)


def _conv_is_exact() -> bool:
    x, w_dense, w_depth = (
        _ramp((2, 32, 5, 5), 0, 255),
        _ramp((16, 32, 3, 3), -128, 127),
        _ramp((32, 1, 3, 3), -128, 127),
    )
    for weight, groups, zero_point in ((w_dense, 1, 0), (w_dense, 1, 128), (w_depth, 32, 0), (w_depth, 32, 128)):
        form = prepare_conv2d(weight.to(torch.int8), (1, 1), (1, 1), (1, 1), groups, zero_point)
        want = torch.nn.functional.conv2d((x - zero_point).double(), weight.double(), None, 1, 1, 1, groups)
        if not torch.equal(int_conv2d(x.to(torch.uint8), form).double(), want):
            return False
    return True


def _matmul_is_exact() -> bool:
    weight = _ramp((16, 64), -128, 127)
    for rows, zero_point in ((1, 0), (1, 128), (9, 0), (9, 128)):
        x = _ramp((rows, 64), 0, 255)
        want = (x - zero_point).double() @ weight.double().T
        form = prepare_matmul(weight.to(torch.int8), zero_point)
        if not torch.equal(int_matmul(x.to(torch.uint8), form).double(), want):
            return False
    return True
