"""What a file says about itself beside its tensors: its model, how its images are prepared, classes, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tq.imagefolder import check_resize


@dataclass(frozen=True)
class Info:
    """Every value is plain JSON."""

    model: dict[str, Any] | None = None
    """{"name": a builder of tq.models, "args": {...}}; None for a network that only its owner can build"""
    data: dict[str, Any] = field(default_factory=dict)
    """{"name", "size", "channels", "mean", "std"}; "resize", the shorter side before the crop to "size", if another"""
    classes: tuple[str, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)


def info_of(metadata: Mapping[str, str], path: str | Path) -> Info:
    """From a header's strings. Raises ValueError: anybody may have written them."""
    try:
        parsed = {k: json.loads(metadata.get(k, "null")) for k in ("model", "data", "classes", "metrics")}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the header's metadata is not JSON ({error}); the file is damaged") from None
    try:
        for key, kind in (("model", dict), ("data", dict), ("classes", list), ("metrics", dict)):
            if not isinstance(parsed[key], kind | None):
                raise ValueError(f"{key} in the header must be a JSON {kind.__name__}, got {parsed[key]!r}")
        data, classes = parsed["data"] or {}, tuple(parsed["classes"] or ())
        _check_data(data)
        if not all(isinstance(name, str) for name in classes):
            raise ValueError(f"classes in the header must be names, got {parsed['classes']!r}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}; the file is damaged") from None
    return Info(parsed["model"], data, classes, parsed["metrics"] or {})


def _check_data(data: Mapping[str, Any]) -> None:
    """Of what is there; a network that only its owner can build need not say all of it."""
    if not isinstance(data.get("name", ""), str):
        raise ValueError(f"name of the data set in the header must be a text, got {data['name']!r}")
    for key in ("size", "channels"):
        if key in data and not (type(data[key]) is int and data[key] > 0):
            raise ValueError(f"{key} of the images in the header must be at least 1, got {data[key]!r}")
    for key in ("mean", "std"):
        if key in data and not (isinstance(data[key], list) and all(map(_is_number, data[key]))):
            raise ValueError(f"{key} in the header must be a list of numbers, got {data[key]!r}")
    lengths = {len(data[key]) for key in ("mean", "std") if key in data}
    if lengths and lengths != {data.get("channels", max(lengths))}:
        raise ValueError(f"mean and std in the header must have a value for each channel, got {dict(data)}")
    if min(data.get("std", [1]), default=1) <= 0:
        raise ValueError(f"std in the header must be above 0, got {data['std']}")
    check_resize(data.get("size"), data.get("resize"))


def _is_number(value: Any) -> bool:
    """Neither NaN nor infinite, nor a whole number beyond all floats."""
    return type(value) in (int, float) and abs(value) < 1e30
