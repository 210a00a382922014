"""What the operators refuse: one sentence each, the same for every implementation and for the compiler's fake run."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from triton_kernels.layout import row_bytes
from triton_kernels.reference import u8_zero_point
from triton_kernels.spec import CODES, FLOATS, Input, Output


def check_conv(
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    zero_point: int,
) -> None:
    """Raise ValueError for a convolution that no implementation computes."""
    if len(shape) != 4 or not len(stride) == len(padding) == len(dilation) == 2:
        raise ValueError(
            f"expected a 4-D weight shape and two numbers each of stride, padding and dilation, got {list(shape)}, "
            f"{list(stride)}, {list(padding)}, {list(dilation)}: pass the convolution's own"
        )
    if min(*stride, *dilation, groups) < 1 or min(padding) < 0 or shape[0] % groups:
        raise ValueError(
            f"expected positive stride, dilation and groups, padding >= 0 and output channels divisible by groups, got "
            f"{list(stride)}, {list(dilation)}, {groups}, {list(padding)} and {shape[0]}: check the layer"
        )
    _check_sum(shape, zero_point)


def check_matmul(shape: Sequence[int], zero_point: int) -> None:
    """Raise ValueError for a product that no implementation computes."""
    if len(shape) != 2:
        raise ValueError(f"expected a weight shape [out, in], got {list(shape)}: use the convolution for 4-D weights")
    _check_sum(shape, zero_point)


def _check_sum(shape: Sequence[int], zero_point: int) -> None:
    if not 0 <= zero_point <= 255:
        raise ValueError(f"expected a zero point in 0..255, got {zero_point}: use reference.u8_zero_point")
    # 255 * 128 * 65793 is the last product below 2^31.
    if (k := prod(shape[1:])) > 65793:
        raise ValueError(
            f"expected at most 65793 weights an output, got {k}: an int32 sum could overflow; split the layer"
        )


def check_conv_input(
    x: Tensor,
    weight: Tensor,
    shape: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype,
) -> None:
    """Raise ValueError unless x is [N, C, H, W] of `dtype` on the weight's device, and the kernel fits into it."""
    channels = shape[1] * groups
    if x.dtype != dtype or x.dim() != 4 or x.shape[1] != channels or x.device != weight.device:
        raise ValueError(
            f"expected x {_name(dtype)} [N, {channels}, H, W] on {weight.device}, got {_name(x.dtype)} {list(x.shape)} "
            f"on {x.device}: quantize it with reference.quantize_u8, match the channels, or move it"
        )
    for size, pad, step, kernel in zip(x.shape[2:], padding, dilation, shape[2:], strict=True):
        if size + 2 * pad <= step * (kernel - 1):
            raise ValueError(
                f"expected a padded input of at least {step * (kernel - 1) + 1}, the kernel's extent, got {size} + 2 * "
                f"{pad}: use a larger image"
            )


def check_matmul_input(x: Tensor, weight: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise ValueError unless x is [..., K] of `dtype` on the weight's device."""
    if x.dtype != dtype or x.dim() < 1 or x.shape[-1] != shape[1] or x.device != weight.device:
        raise ValueError(
            f"expected x {_name(dtype)} [..., {shape[1]}] on {weight.device}, got {_name(x.dtype)} {list(x.shape)} on "
            f"{x.device}: quantize it with reference.quantize_u8, match the features, or move it"
        )


def check_input(x: Tensor, given: Input) -> str:
    """Raise ValueError unless `given` can describe x; returns its kind (`Input.kind`)."""
    if x.dtype not in (*FLOATS, *CODES):
        raise ValueError(f"expected x {_names(FLOATS)} or codes {_names(CODES)}, got {_name(x.dtype)}: convert it")
    kind = given.kind(x.dtype)
    if (given.inv_scale is not None) + given.binary + given.dynamic > 1:
        raise ValueError(
            "expected at most one of inv_scale, binary and dynamic, got several: they are different quantizations"
        )
    if kind == "static":
        _check_number("inv_scale", given.inv_scale, x.device)
        u8_zero_point(given.zero_point, given.qmin, given.qmax, binary=given.binary)
    elif kind == "codes":
        if given.binary or given.dynamic or given.inv_scale is not None:
            raise ValueError(
                f"expected a zero_point alone for {_name(x.dtype)} codes, got inv_scale, binary or dynamic: these "
                f"quantize floating inputs"
            )
        _check_stored("zero_point", given.zero_point, x.dtype)
    elif kind == "packed":
        if given.bits not in (1, 2, 4) or x.dtype != torch.uint8 or (given.binary and given.bits != 1):
            raise ValueError(
                f"expected packed codes uint8 of x_bits 1, 2 or 4 (binary: 1), got {_name(x.dtype)}, {given.bits}, "
                f"binary={given.binary}: pack them with layout.pack"
            )
        if not 0 <= given.zero_point < 1 << given.bits:
            raise ValueError(
                f"expected a zero point that {given.bits} bits hold, got {given.zero_point}: it is one of the codes"
            )
    return kind


def check_rows(x: Tensor, weight: Tensor, shape: Sequence[int], given: Input) -> None:
    """Raise ValueError unless x is [..., K], or packed rows of K codes, on the weight's device."""
    width = row_bytes(shape[1], given.bits) if given.kind(x.dtype) == "packed" else shape[1]
    if x.dim() < 1 or x.shape[-1] != width or x.device != weight.device:
        raise ValueError(
            f"expected x [..., {width}] on {weight.device}, got {list(x.shape)} on {x.device}: match the features, or "
            f"move it"
        )


def check_scales(scale: Tensor, bias: Tensor | None, shape: Sequence[int], device: torch.device) -> None:
    """Raise ValueError unless scale and bias are float32 [O] on the device; scale of a matrix may be [O, groups]."""
    out = shape[0]
    if scale.dim() == 2 and len(shape) == 2 and (scale.shape[1] < 1 or shape[1] % scale.shape[1]):
        raise ValueError(
            f"expected a number of groups that divides {shape[1]}, got {scale.shape[1]}: use another group size"
        )
    fits = tuple(scale.shape) == (out,) or (scale.dim() == 2 and len(shape) == 2 and scale.shape[0] == out)
    for name, t, good in (("scale", scale, fits), ("bias", bias, bias is None or tuple(bias.shape) == (out,))):
        if t is not None and (not good or t.dtype != torch.float32 or t.device != device):
            raise ValueError(
                f"expected {name} float32 [{out}] on {device}, got {_name(t.dtype)} {list(t.shape)} on {t.device}: one "
                f"number for each output channel"
            )


def check_output(out: Output, shape: Sequence[int], device: torch.device) -> None:
    """Raise ValueError unless `out` can be done to a float32 result of `shape` on the device."""
    allowed = CODES if out.codes else FLOATS
    if out.out_dtype not in allowed:
        raise ValueError(f"expected an output of {_names(allowed)}, got {_name(out.out_dtype)}: change out_dtype")
    if out.codes:
        for name in ("zero_point", "qmin", "qmax"):
            _check_stored(f"out_{name}", getattr(out, name), out.out_dtype)
        if out.binary:
            for code in (out.zero_point - 1, out.zero_point + 1):
                _check_stored("a binary output's code", code, out.out_dtype)
        elif not out.qmin <= out.zero_point <= out.qmax:
            raise ValueError(
                f"expected out_qmin <= out_zero_point <= out_qmax, got {out.qmin}, {out.zero_point}, {out.qmax}: the "
                f"real zero needs a code"
            )
        _check_number("out_inv_scale", out.inv_scale, device)
    r = out.residual
    if r is None:
        return
    if tuple(r.shape) != tuple(shape) or r.device != device:
        raise ValueError(
            f"expected a residual {list(shape)} on {device}, got {list(r.shape)} on {r.device}: match the "
            f"layer's output"
        )
    if r.dtype not in (CODES if out.residual_scale is not None else FLOATS):
        raise ValueError(
            f"expected a residual of {_names(FLOATS)}, or of {_names(CODES)} with a residual_scale, got "
            f"{_name(r.dtype)}: convert it, or pass its scale"
        )
    _check_number("residual_scale", out.residual_scale, device)
    if out.residual_scale is not None:
        _check_stored("residual_zero_point", out.residual_zero_point, r.dtype)


def _check_number(name: str, t: Tensor | None, device: torch.device) -> None:
    if t is not None and (t.dtype != torch.float32 or t.numel() != 1 or t.device != device):
        raise ValueError(
            f"expected {name} as one float32 on {device}, got {_name(t.dtype)} {list(t.shape)} on {t.device}: one step "
            f"serves the whole tensor"
        )


def _check_stored(name: str, value: int, dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    if not info.min <= value <= info.max:
        raise ValueError(
            f"expected {name} in {info.min}..{info.max}, got {value}: {_name(dtype)} codes hold nothing else"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(map(_name, dtypes))
