"""Which implementation runs an operator, and what it keeps prepared from a weight.

The operators take the canonical packed weight, so they are pure functions of their arguments: they compile without
guards, export, and a module that calls them copies and saves like any other. What an implementation makes of a weight
(oneDNN's blocked copy, a float copy) is kept here, found by the tensor's identity and version: made on first use or by
`prepare_*`, remade after an in-place change or a move to another device, dropped with the tensor.
"""

import importlib.util
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from triton_kernels import cpu
from triton_kernels.checks import check_conv, check_matmul
from triton_kernels.layout import check_packed, unpack_weight

IMPLS = ("auto", "reference", "cpu", "triton")


def choose(op: str, device: torch.device | str, impl: str = "auto") -> str:
    """The implementation, "reference", "cpu" or "triton", that `impl` means for an operation on a device.

    op: "int_conv2d", "int_matmul", or "float" for a weight-only layer. Raises ValueError for an unknown name,
    and for one that cannot be followed on this device.
    """
    if impl not in IMPLS:
        raise ValueError(f"expected impl to be one of {IMPLS}, got {impl!r}: choose one of these")
    if impl in _WHY_NOT and (missing := _WHY_NOT[impl](op, torch.device(device))):
        raise ValueError(f'expected what impl "{impl}" needs, but {missing}: use impl "auto" or "reference"')
    if impl != "auto":
        return impl
    best = "cpu" if torch.device(device).type == "cpu" else "triton"
    return "reference" if _WHY_NOT[best](op, torch.device(device)) else best


def describe(device: torch.device | str = "cpu") -> str:
    """One line that says what "auto" runs on a device, and why where it is only the reference."""
    device = torch.device(device)
    best, what = ("cpu", "oneDNN int8, exact") if device.type == "cpu" else ("triton", "exact")
    whys = {op: _WHY_NOT[best](op, device) for op in cpu.OPS}
    return "; ".join(
        f"{op}: reference (exact, slow: {why})" if why else f"{op}: {best} ({what})" for op, why in whys.items()
    )


def _why_not_cpu(op: str, device: torch.device) -> str:
    if device.type != "cpu":
        return f"the tensors are on {device.type}"
    return "" if op == "float" else cpu.probe(op)


@cache
def _why_not_triton(op: str, device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    from triton_kernels.launch import interpreted

    if device.type == "cpu":
        return "" if interpreted() else "the tensors are on cpu, where Triton only interprets (TRITON_INTERPRET=1)"
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"there is no GPU for tensors on {device.type}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 5):
        return "the GPU is older than compute capability 7.5"
    return ""


_WHY_NOT: dict[str, Callable[[str, torch.device], str]] = {"cpu": _why_not_cpu, "triton": _why_not_triton}


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
    """The weight of a convolution as an implementation takes it; for "reference" int8 OIHW. Checks what it depends on.

    These arguments are the form's key, so they are checked when it is made and not at every call.
    """

    def make() -> Any:
        check_packed(weight, bits, shape)
        check_conv(shape, stride, padding, dilation, groups, zero_point)
        if chosen == "triton":
            return importlib.import_module("triton_kernels.quant_conv2d").prepare(weight, bits, shape, groups)
        codes = unpack_weight(weight, bits, shape)
        if chosen == "reference":
            return codes
        return cpu.prepare_conv2d(codes, stride, padding, dilation, groups, zero_point)

    return _form(weight, (chosen, bits, *shape, *stride, *padding, *dilation, groups, zero_point), make)


def matmul_form(chosen: str, weight: Tensor, bits: int, shape: Sequence[int], zero_point: int, groups: int = 1) -> Any:
    """The weight of a product as an implementation takes it; for "reference" int8 [N, K]. Checks what it depends on.

    groups: scales of one output.
    """

    def make() -> Any:
        check_packed(weight, bits, shape)
        check_matmul(shape, zero_point)
        if chosen == "triton":
            group = shape[1] // groups if groups > 1 else None
            return importlib.import_module("triton_kernels.planar").prepare_matmul(weight, bits, shape, group)
        codes = unpack_weight(weight, bits, shape)
        return codes if chosen == "reference" else cpu.prepare_matmul(codes, zero_point)

    return _form(weight, (chosen, bits, *shape, zero_point, groups), make)


def float_form(weight: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The unpacked weight as float32 of `shape`, kept, for weight-only layers on a CPU."""
    form: Tensor = _form(weight, ("float", bits, *shape), lambda: unpack_weight(weight, bits, shape).to(torch.float32))
    return form


def ones(weight: Tensor) -> Tensor:
    """float32 [out], the scale that leaves accumulators what they are; kept, because it is needed at every call."""
    found: Tensor = _form(weight, ("ones",), lambda: torch.ones(weight.shape[0], device=weight.device))
    return found


def _form(weight: Tensor, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    # Inference tensors have no version; an in-place change of one goes unseen.
    version = -1 if weight.is_inference() else weight._version
    ident = id(weight)
    entry = _forms.get(ident)
    if entry is None or entry[0]() is not weight or entry[1] != version:
        # the table as a default: at the interpreter's exit the module's own name for it is gone before the last tensor
        def forget(ref: weakref.ref[Tensor], forms: dict[int, Any] = _forms) -> None:
            if (current := forms.get(ident)) is not None and current[0] is ref:
                del forms[ident]

        entry = _forms[ident] = (weakref.ref(weight, forget), version, {})
    form = entry[2].get(key)
    if form is None:
        # Tensors made under inference mode could not be used everywhere outside of it.
        with torch.inference_mode(False), torch.no_grad():
            form = entry[2][key] = make()
    return form
