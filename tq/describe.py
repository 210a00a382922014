"""What a data set asks of a network, and what a file says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tq.data import DataSet
from tq.file_format import Info


def model_args(data: DataSet) -> dict[str, int]:
    """The arguments that every model builder takes, from the data."""
    channels, size, _ = data.train.shape
    return {"num_classes": len(data.classes), "in_channels": channels, "image_size": size}


def describe(model: str, data: DataSet, mean: Sequence[float], std: Sequence[float], metrics: dict[str, Any]) -> Info:
    """What a file says about itself: builder, how its images are prepared, class names, figures."""
    args = model_args(data)
    images = {"name": data.name, "size": args["image_size"], "channels": args["in_channels"]}
    if data.resize:
        images["resize"] = data.resize
    return Info({"name": model, "args": args}, {**images, "mean": list(mean), "std": list(std)}, data.classes, metrics)
