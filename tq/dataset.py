"""A data set: two splits of images and classes. Those of a folder are decoded when they are first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tq.imagefolder import Pictures, fit

Normal = tuple[float, ...]
"""one value a channel, of pixels in 0..1"""


class Split:
    """Images uint8 [N,C,H,W] and their classes int64 [N]."""

    def __init__(self, images: Tensor | Pictures, labels: Tensor) -> None:
        self._images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self._images.shape[-3:]
        return channels, height, width

    @property
    def images(self) -> Tensor:
        """All of them, kept from then on. Raises ValueError: a file is damaged, or memory does not suffice."""
        if isinstance(self._images, Pictures):
            fit(len(self), self.shape)
            self._images = self._images.decode()
        return self._images

    def take(self, chosen: Tensor) -> Tensor:
        """The images with these indices int64 [n], of a folder only these decoded."""
        if isinstance(self._images, Pictures):
            fit(len(chosen), self.shape)
            return self._images.decode(chosen.tolist())
        return self._images[chosen]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Two splits with the names of their classes.

    resize is the shorter side in pixels that images were given before the crop of their centre, None for no crop.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    constants: tuple[Normal, Normal] | None = None
    """mean and std in common use"""
    resize: int | None = None

    @cached_property
    def statistics(self) -> tuple[Normal, Normal]:
        """Mean and standard deviation per channel: the constants, or those of all training images."""
        return self.constants or _statistics(self.train.images)

    @property
    def mean(self) -> Normal:
        """Per channel, of values in 0..1."""
        return self.statistics[0]

    @property
    def std(self) -> Normal:
        """Per channel, like mean."""
        return self.statistics[1]


def _statistics(images: Tensor) -> tuple[Normal, Normal]:
    """From exact integer sums."""
    count = images.numel() // images.shape[1]
    total = square = torch.zeros(images.shape[1], dtype=torch.int64)
    for part in images.split(1024):
        total = total + part.sum((0, 2, 3), dtype=torch.int64)
        square = square + part.int().square_().sum((0, 2, 3), dtype=torch.int64)
    mean = total.double() / count
    std = (square.double() / count - mean.square()).clamp_min(0).sqrt()
    # A channel that is constant would divide by zero.
    std = torch.where(std > 0, std, 255.0)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
