"""Who runs a `Program`: one native call on a CPU, or the operators of `torch.ops.tq` one after the other.

In the chain, a value that only convolutions read, all in the same codes, leaves its operator as codes; any other leaves
as floats and is quantized once for each kind of codes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_kernels import native, ops, reference
from triton_kernels.steps import Codes, Program, Step, check_inputs

Executor = Callable[[Sequence[Tensor]], list[Tensor]]


def choices(program: Program, device: torch.device, impl: str = "auto") -> list[str]:
    """What to try for `impl`, best first. Raises ValueError for an unknown name."""
    if impl != "auto":
        return [impl]
    return ["native", "auto"] if not _why_not_native(program, device) else ["auto"]


def executor(program: Program, device: torch.device, impl: str) -> tuple[Executor, str]:
    """What runs a program on a device, and its name. impl: "native" or one of `ops.IMPLS`. Raises ValueError."""
    if impl == "native":
        if why := _why_not_native(program, device):
            raise ValueError(f'expected what impl "native" needs, but {why}: use impl "auto" or "cpu"')
        plan = native.Plan(program)
        return plan, f"native ({plan.isa})"
    chosen = ops.choose("int_conv2d", device, impl)
    return Chain(program, device, chosen), f"chain of operators ({chosen})"


def _why_not_native(program: Program, device: torch.device) -> str:
    if device.type != "cpu":
        return f"the tensors are on {device.type}"
    return native.why_not() or native.why_not_program(program)


class Chain:
    """A program as a loop over operators."""

    def __init__(self, program: Program, device: torch.device, impl: str) -> None:
        self.program, self.impl = program, impl
        every = {s.conv.reads for s in program.steps if s.conv is not None}
        self._inverse = {codes: torch.tensor(codes.inverse, device=device) for codes in every}
        values = range(-len(program.inputs), len(program.steps))
        self._formats = {v: program.codes(v) for v in values}
        # what only convolutions read, in the same codes, leaves its operator as these
        self._out = {
            v: formats[0] if len(formats) == 1 and not program.reads_float(v) else None
            for v, formats in self._formats.items()
        }

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """float32 tensors [N, C, H, W] or [N, C] in, [N, C, H, W] out."""
        check_inputs(self.program, inputs)
        floats: dict[int, Tensor] = {}
        coded: dict[tuple[int, Codes], Tensor] = {}

        def keep(value: int, y: Tensor) -> None:
            formats = self._formats[value]
            if y.dtype == torch.uint8:
                coded[value, formats[0]] = y
                return
            floats[value] = y
            for codes in formats:
                coded[value, codes] = reference.codes_of(
                    y, self._inverse[codes], codes.zero_point, codes.qmin, codes.qmax, binary=codes.binary
                )

        for j, x in enumerate(inputs):
            keep(-1 - j, x.reshape(*x.shape[:2], *self.program.inputs[j][1:]))
        for i, step in enumerate(self.program.steps):
            keep(i, self._conv(i, step, coded, floats) if step.conv is not None else _plain(step, floats))
        return [floats[v] for v in self.program.outputs]

    def _conv(
        self, value: int, step: Step, coded: dict[tuple[int, Codes], Tensor], floats: dict[int, Tensor]
    ) -> Tensor:
        conv, out = step.conv, self._out[value]
        assert conv is not None
        y: Tensor = torch.ops.tq.quant_conv2d(
            coded[step.source, conv.reads], conv.packed, conv.bits, conv.shape, conv.scale, conv.bias,
            stride=step.stride, padding=step.padding, dilation=step.dilation, groups=conv.groups,
            zero_point=conv.reads.zero_point,
            residual=None if step.residual is None else floats[step.residual], relu=step.relu,
            out_inv_scale=None if out is None or out.binary else self._inverse[out],
            out_zero_point=0 if out is None else out.zero_point, out_qmin=0 if out is None else out.qmin,
            out_qmax=255 if out is None else out.qmax, out_binary=out is not None and out.binary, impl=self.impl,
        )  # fmt: skip
        return y


def _plain(step: Step, floats: dict[int, Tensor]) -> Tensor:
    x = floats[step.source]
    match step.kind:
        case "mean":
            return x.mean((2, 3), keepdim=True)
        case "max_pool":
            return F.max_pool2d(x, step.kernel, step.stride, step.padding, step.dilation)
        case "pad_shortcut":
            behind = step.channels - step.front - x.shape[1]
            return F.pad(x[:, :, :: step.stride[0], :: step.stride[1]], (0, 0, 0, 0, step.front, behind))
    y = x if step.residual is None else x + floats[step.residual]
    return torch.relu(y) if step.relu else y
