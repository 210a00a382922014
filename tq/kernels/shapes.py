"""What `tq bench kernels` measures: matrices, the convolutions of three ResNets, and what is asked of each.

The convolutions are read off the networks themselves: a forward pass on meta tensors, with hooks. A convolution that
occurs in several networks is measured once and carries all their names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import nn

from tq._torchvision import import_torchvision
from tq.config import KernelBenchConfig
from tq.models import build
from triton_kernels.reference import conv_sizes

BITS = (8, 4, 2, 1)
ROWS = (1, 4, 16, 64, 256, 4096)
BATCH = {"resnet20": 256, "resnet18": 64, "resnet50": 64}
NETWORKS = {"resnet20": 32, "resnet18": 224, "resnet50": 224}
"""network -> image size"""
QUICK_BITS, QUICK_ROWS, QUICK_BATCH = (8, 1), (1, 16), 16


@dataclass(frozen=True)
class Shape:
    """A layer. weight: [N, K], or OIHW of a convolution of square images and one group. groups: where it comes from."""

    groups: tuple[str, ...]
    weight: tuple[int, ...]
    size: int = 1
    stride: int = 1
    padding: int = 0

    @property
    def conv(self) -> bool:
        """Whether it is a convolution."""
        return len(self.weight) == 4

    @property
    def name(self) -> str:
        """Such as "square 4096x4096" (out x in), or "resnet18: 64-128 3x3/2 @56" (in-out kernel/stride @size)."""
        if not self.conv:
            return f"{self.groups[0]} {self.weight[0]}x{self.weight[1]}"
        o, i, kh, kw = self.weight
        return f"{', '.join(self.groups)}: {i}-{o} {kh}x{kw}/{self.stride} @{self.size}"

    @property
    def k(self) -> int:
        """Weights of one output."""
        return prod(self.weight[1:])

    @property
    def input(self) -> tuple[int, ...]:
        """Shape of one row or image."""
        return (self.weight[1], self.size, self.size) if self.conv else (self.weight[1],)

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of its result."""
        if not self.conv:
            return (self.weight[0],)
        stride, padding = (self.stride,) * 2, (self.padding,) * 2
        return (self.weight[0], *conv_sizes(self.input[1:], self.weight[2:], stride, padding))

    @property
    def batch(self) -> int:
        """Images at once in the full set."""
        return max(BATCH[name] for name in self.groups)


@dataclass(frozen=True)
class Problem:
    """A layer on `rows` rows or images, and the (weight bits, activation) to measure it at."""

    shape: Shape
    rows: int
    kinds: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        """The shape's name and the number of rows."""
        return f"{self.shape.name} {'batch' if self.shape.conv else 'm'}={self.rows}"

    @property
    def operations(self) -> int:
        """2 * multiply-accumulates."""
        return 2 * self.rows * prod(self.shape.output) * self.shape.k


MATRICES = (
    *(Shape(("square",), (n, n)) for n in (4096, 8192, 16384)),
    *(Shape(("llm",), pair) for pair in ((4096, 14336), (14336, 4096))),
)
"""the third LLM-like one, 4096 x 4096, is the first of the squares"""
_QUICK_CONVS = ((16, 16), (32, 32), (64, 64))


@cache
def convolutions() -> tuple[Shape, ...]:
    """The distinct ones of NETWORKS, in order of first use."""
    found: dict[Shape, list[str]] = {}
    for network, size in NETWORKS.items():
        with torch.device("meta"), torch.no_grad():
            model = _network(network)

            def note(layer: nn.Conv2d, inputs: Any, _: Any, network: str = network) -> None:
                geometry = (inputs[0].shape[2], layer.stride[0], int(layer.padding[0]))
                names = found.setdefault(Shape((), tuple(layer.weight.shape), *geometry), [])
                names += [] if network in names else [network]

            for layer in model.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.register_forward_hook(note)
            model.eval()(torch.empty(1, 3, size, size))
    return tuple(replace(shape, groups=tuple(names)) for shape, names in found.items())


def _network(name: str) -> nn.Module:
    if name == "resnet20":
        return build(name, num_classes=10, in_channels=3, image_size=32)
    model: nn.Module = getattr(import_torchvision().models, name)(weights=None)
    return model


def is_quick(config: KernelBenchConfig, device: torch.device) -> bool:
    """Whether the small set is measured: when asked, and on a CPU unless --only or --m says what to measure."""
    return config.quick or (device.type == "cpu" and config.only is None and not config.m)


def problems(config: KernelBenchConfig, device: torch.device) -> list[Problem]:
    """What to measure. --only is searched in "NAME wBITS ACTIVATION". Raises ValueError when nothing is left."""
    quick = is_quick(config, device)
    bits = QUICK_BITS if quick else BITS
    floats = ("fp32",) if device.type == "cpu" else ("bf16", "fp16")
    found = []
    for shape in MATRICES[:1] if quick else MATRICES:
        for m in config.m or (QUICK_ROWS if quick else ROWS):
            found.append(Problem(shape, m, _kinds(bits, (*floats, "static", "dynamic", "codes"))))
    for shape in convolutions():
        if not quick or (shape.groups == ("resnet20",) and shape.weight[:2] in _QUICK_CONVS):
            kinds = _kinds(bits, (floats[0], "static", "codes"))
            found.append(Problem(shape, QUICK_BATCH if quick else shape.batch, kinds))
    if config.only:
        found = [replace(p, kinds=_matching(p, config.only)) for p in found]
    found = [p for p in found if p.kinds]
    if not found:
        raise ValueError(
            f"--only {config.only!r} leaves nothing to measure; try 'square 4096', 'resnet50' or 'w1 codes'"
        )
    return found


def _kinds(bits: tuple[int, ...], activations: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    return tuple((b, activation) for activation in activations for b in bits)


def _matching(problem: Problem, only: str) -> tuple[tuple[int, str], ...]:
    return tuple((b, a) for b, a in problem.kinds if re.search(only, f"{problem.name} w{b} {a}"))
