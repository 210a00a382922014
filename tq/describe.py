"""What a data set asks of a network, what a file says about itself, and the images as it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tq.data import DataSet, Normal, load
from tq.file_info import Info


def model_args(data: DataSet) -> dict[str, int]:
    """The arguments that every model builder takes, from the data."""
    channels, size, _ = data.train.shape
    return {"num_classes": len(data.classes), "in_channels": channels, "image_size": size}


def images_of(info: Info, name: str, root: str | None, *, image_size: int | None = None) -> DataSet:
    """The data set `name`, decoded when needed, as the file says, or with square images of `image_size` pixels.

    Raises ValueError.
    """
    size, resize = (image_size, None) if image_size else map(info.data.get, ("size", "resize"))
    return load(name, root=root, image_size=size, resize=resize, whole=False)


def normal_of(info: Info, images: DataSet, mean: Normal = (), std: Normal = ()) -> tuple[Normal, Normal]:
    """Mean and std per channel: those given, else the file's, else the data set's, which may have to be decoded."""
    return tuple(mean or info.data.get("mean") or images.mean), tuple(std or info.data.get("std") or images.std)


def describe(model: str, data: DataSet, mean: Sequence[float], std: Sequence[float], metrics: dict[str, Any]) -> Info:
    """What a file says about itself: builder, how its images are prepared, class names, figures."""
    args = model_args(data)
    images = {"name": data.name, "size": args["image_size"], "channels": args["in_channels"]}
    if data.resize:
        images["resize"] = data.resize
    return Info({"name": model, "args": args}, {**images, "mean": list(mean), "std": list(std)}, data.classes, metrics)
