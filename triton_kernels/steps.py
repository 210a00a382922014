"""A packed network, or a part of one, as a list of steps: what `native` compiles to one call and `chain` runs op by op.

Step i reads values and makes value i. Value -1 - j is input j. A value is an image [N, C, H, W] of floats; a vector
[N, C] is an image of one pixel. A convolution quantizes the value that it reads as its `Codes` say, and which step does
that quantization, once for all readers of the same codes, is the executor's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from triton_kernels.reference import conv_sizes

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Codes:
    """uint8 codes of a float: clamp(round(y * inverse) + zero_point, qmin, qmax), zero_point +- 1 with `binary`."""

    inverse: float
    zero_point: int
    qmin: int
    qmax: int
    binary: bool = False


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution's or linear layer's own numbers. packed, bits, shape (OIHW): the weight as `layout` has it; scale
    float32 [O] with the input's scale in it; bias float32 [O]."""

    packed: Tensor
    bits: int
    shape: tuple[int, int, int, int]
    scale: Tensor
    bias: Tensor
    reads: Codes
    groups: int = 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """kind: "conv" (residual and ReLU included), "add" (value + residual, then ReLU; either may be absent), "mean" over
    the image, "max_pool", or "pad_shortcut" (every stride-th pixel, with `front` zero channels before and the rest of
    `channels` after). Geometry is (height, width)."""

    kind: str
    source: int
    residual: int | None = None
    relu: bool = False
    conv: Conv | None = None
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    front: int = 0
    channels: int = 0


@dataclass(frozen=True)
class Program:
    """Steps, the shapes [C, H, W] of the inputs, and the values that are its outputs."""

    steps: tuple[Step, ...]
    inputs: tuple[Shape, ...]
    outputs: tuple[int, ...]
    shapes: tuple[Shape, ...] = field(init=False)

    def __post_init__(self) -> None:
        shapes: list[Shape] = []
        for step in self.steps:
            known = {-1 - i: s for i, s in enumerate(self.inputs)} | dict(enumerate(shapes))
            shapes.append(_shape(step, known[step.source]))
            if step.residual is not None and known[step.residual] != shapes[-1]:
                raise ValueError(
                    f"expected a residual of shape {shapes[-1]}, got {known[step.residual]}: only equal shapes can be "
                    f"added in one step"
                )
        object.__setattr__(self, "shapes", tuple(shapes))

    def shape(self, value: int) -> Shape:
        """[C, H, W] of a value."""
        return self.inputs[-1 - value] if value < 0 else self.shapes[value]

    def reads_float(self, value: int) -> bool:
        """Whether a step reads a value as floats, or it is an output."""
        floats = (s.residual == value or (s.source == value and s.conv is None) for s in self.steps)
        return value in self.outputs or any(floats)

    def codes(self, value: int) -> list[Codes]:
        """The distinct codes in which convolutions read a value, in order of first use."""
        return list(dict.fromkeys(s.conv.reads for s in self.steps if s.conv is not None and s.source == value))


def _shape(step: Step, source: Shape) -> Shape:
    c, h, w = source
    if step.kind == "mean":
        return c, 1, 1
    if step.kind == "add":
        return source
    sizes = conv_sizes((h, w), step.kernel, step.stride, step.padding, step.dilation)
    if min(sizes) < 1:
        raise ValueError(
            f"expected an image of at least the {step.kind}'s kernel {step.kernel}, got {h} x {w}: use larger images"
        )
    if step.conv is not None:
        out, per_group, *_ = step.conv.shape
        if per_group * step.conv.groups != c:
            raise ValueError(f"expected {per_group * step.conv.groups} channels, got {c}: the layers do not fit")
        return out, *sizes
    if step.kind == "pad_shortcut" and not 0 <= step.front <= step.channels - c:
        raise ValueError(f"expected a shortcut that adds channels to {c}, got {step.front} in front of {step.channels}")
    return step.channels or c, *sizes


def check_inputs(program: Program, inputs: Sequence[Tensor]) -> None:
    """Raise ValueError unless `inputs` are float32 [N, C, H, W] or [N, C] of the program's shapes, N the same."""
    for x, (c, h, w) in zip(inputs, program.inputs, strict=True):
        fits = tuple(x.shape[1:]) == (c, h, w) or (h == w == 1 and tuple(x.shape[1:]) == (c,))
        got = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        if x.dtype != torch.float32:
            raise ValueError(f"expected a float32 batch, got {got}: convert it with .float()")
        if not fits:
            raise ValueError(
                f"expected a float32 batch [N, {c}, {h}, {w}], got {got}: this network was fused for that image size; "
                f"fuse it again for another"
            )
        if x.shape[0] != inputs[0].shape[0]:
            raise ValueError(f"expected {inputs[0].shape[0]} images in each input, got {got}: batches must be alike")
