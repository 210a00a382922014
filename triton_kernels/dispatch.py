"""Which implementation runs an operator, and what it keeps prepared from a weight.

The operators take the canonical packed weight, so they are pure functions of their arguments: they compile without
guards, export, and a module that calls them copies and saves like any other. What an implementation makes of a weight
(oneDNN's blocked copy, a float copy) is kept here, found by the tensor's identity and version: made on first use or by
`prepare_*`, remade after an in-place change or a move to another device, dropped with the tensor.
"""

import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from triton_kernels import cpu
from triton_kernels.layout import check_packed, unpack_weight

IMPLS = ("auto", "reference", "cpu")


def choose(op: str, device: torch.device | str, impl: str = "auto") -> str:
    """The implementation, "reference" or "cpu", that `impl` means for an operation on a device.

    op: "int_conv2d", "int_matmul", or "float" for a weight-only layer (a float32 convolution or product; "cpu" keeps
    the unpacked weight, "reference" unpacks at every call). Raises ValueError for an unknown name, and for one that
    cannot be followed on this device.
    """
    if impl not in IMPLS:
        raise ValueError(f"expected impl to be one of {IMPLS}, got {impl!r}: no other implementation is supported yet")
    if impl == "reference":
        return impl
    missing = _why_not_cpu(op, torch.device(device))
    if impl == "cpu" and missing:
        raise ValueError(f'expected what impl "cpu" needs, but {missing}: use impl "auto" or "reference"')
    return "reference" if missing else "cpu"


def describe(device: torch.device | str = "cpu") -> str:
    """One line that says what "auto" runs on a device, and why where it is only the reference."""
    whys = {op: _why_not_cpu(op, torch.device(device)) for op in cpu.OPS}
    return "; ".join(
        f"{op}: reference (exact, slow: {why})" if why else f"{op}: cpu (oneDNN int8, exact)"
        for op, why in whys.items()
    )


def _why_not_cpu(op: str, device: torch.device) -> str:
    if device.type != "cpu":
        return f"the tensors are on {device.type}"
    return "" if op == "float" else cpu.probe(op)


def prepare_conv2d(
    weight: Tensor,
    bits: int,
    weight_shape: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    zero_point: int = 0,
    impl: str = "auto",
) -> str:
    """Make at load what `tq::int_conv2d` would make on its first call with these arguments; returns the choice."""
    chosen = choose("int_conv2d", weight.device, impl)
    conv_form(chosen, weight, bits, weight_shape, stride, padding, dilation, groups, zero_point)
    return chosen


def prepare_matmul(
    weight: Tensor, bits: int, weight_shape: Sequence[int], zero_point: int = 0, impl: str = "auto"
) -> str:
    """Make at load what `tq::int_matmul` would make on its first call with these arguments; returns the choice."""
    chosen = choose("int_matmul", weight.device, impl)
    matmul_form(chosen, weight, bits, weight_shape, zero_point)
    return chosen


# id(weight) -> (weak reference, version, {key: form}).
_forms: dict[int, tuple[weakref.ref[Tensor], int, dict[tuple[Any, ...], Any]]] = {}


def conv_form(
    chosen: str,
    weight: Tensor,
    bits: int,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    zero_point: int,
) -> Any:
    """The prepared weight of a convolution: `cpu.ConvForm` for "cpu", else int8 OIHW. Checks what it depends on.

    These arguments are the form's key, so they are checked when it is made and not at every call.
    """

    def make() -> Any:
        check_packed(weight, bits, shape)
        check_conv(shape, stride, padding, dilation, groups, zero_point)
        codes = unpack_weight(weight, bits, shape)
        if chosen != "cpu":
            return codes
        return cpu.prepare_conv2d(codes, stride, padding, dilation, groups, zero_point)

    return _form(weight, (chosen, bits, *shape, *stride, *padding, *dilation, groups, zero_point), make)


def matmul_form(chosen: str, weight: Tensor, bits: int, shape: Sequence[int], zero_point: int) -> Any:
    """The prepared weight of a product: `cpu.LinearForm` for "cpu", else int8 [N, K]. Checks what it depends on."""

    def make() -> Any:
        check_packed(weight, bits, shape)
        check_matmul(shape, zero_point)
        codes = unpack_weight(weight, bits, shape)
        return codes if chosen != "cpu" else cpu.prepare_matmul(codes, zero_point)

    return _form(weight, (chosen, bits, *shape, zero_point), make)


def float_form(chosen: str, weight: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The unpacked weight as float32 of `shape`, for weight-only layers: kept for "cpu", made anew for "reference"."""
    if chosen == "reference":
        return unpack_weight(weight, bits, shape).to(torch.float32)
    form: Tensor = _form(weight, ("float", bits, *shape), lambda: unpack_weight(weight, bits, shape).to(torch.float32))
    return form


def _form(weight: Tensor, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    # Inference tensors have no version; an in-place change of one goes unseen.
    version = -1 if weight.is_inference() else weight._version
    ident = id(weight)
    entry = _forms.get(ident)
    if entry is None or entry[0]() is not weight or entry[1] != version:

        def forget(ref: weakref.ref[Tensor]) -> None:
            if (current := _forms.get(ident)) is not None and current[0] is ref:
                del _forms[ident]

        entry = _forms[ident] = (weakref.ref(weight, forget), version, {})
    form = entry[2].get(key)
    if form is None:
        # Tensors made under inference mode could not be used everywhere outside of it.
        with torch.inference_mode(False), torch.no_grad():
            form = entry[2][key] = make()
    return form


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


def check_float(x: Tensor, scale: Tensor, bias: Tensor | None, shape: Sequence[int]) -> None:
    """Raise ValueError unless x is floating, and scale and bias are float32 [out] on its device."""
    if not x.dtype.is_floating_point:
        raise ValueError(f"expected a floating x, got {_name(x.dtype)}: pass codes to int_conv2d or int_matmul instead")
    for name, t in (("scale", scale), ("bias", bias)):
        if t is not None and (t.dtype != torch.float32 or tuple(t.shape) != (shape[0],) or t.device != x.device):
            raise ValueError(
                f"expected {name} float32 [{shape[0]}] on {x.device}, got {_name(t.dtype)} {list(t.shape)} on "
                f"{t.device}: one number for each output channel"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
