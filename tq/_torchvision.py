"""Import torchvision also where its C++ extension does not load (a CUDA build of the wheel next to a CPU torch).

torchvision registers fake kernels for `nms` and `qnms` while it is imported, which fails with "operator
torchvision::nms does not exist" when the extension that defines them is missing. Data sets, transforms and
classification models need neither, so defining the two schemas is enough. All of tq imports torchvision here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

# A Library takes its definitions back when it is collected, so the fragment must live as long as the process.
_fragments: list[object] = []


def import_torchvision() -> ModuleType:
    """The torchvision package. Raises ValueError when it is not installed."""
    if "torchvision" not in sys.modules:
        spec = importlib.util.find_spec("torchvision")
        if spec is None or spec.origin is None:
            raise ValueError("torchvision is not installed: pip install torchvision")
        if not _load_extension(Path(spec.origin).parent):
            _define_schemas()
    return importlib.import_module("torchvision")


def _load_extension(package: Path) -> bool:
    """Load `_C` as torchvision itself will in a moment (a second load is a no-op); False when it does not load."""
    import torch

    for path in (*package.glob("_C*.so"), *package.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(path))
        except (OSError, ImportError):
            continue
        return True
    return False


def _define_schemas() -> None:
    import torch

    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _fragments.append(fragment)
