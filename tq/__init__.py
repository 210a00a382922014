"""tq: low-bit convolutional networks that really get small and really get fast.

    model = tq.attach(model, "w1a2")        # train it, then
    tq.save(model, "model.safetensors")     # packed: 1 bit is 1 bit
    model = tq.load("model.safetensors")    # predicts bit for bit what training measured
    model = tq.fuse(model, images)          # the same predictions, and fast: integers from layer to layer
    model = tq.quantize(model, loader, "w8a8")   # without training

Names load on first use, so that `tq --help` and the dashboard need no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tq.attach import attach as attach
    from tq.attach import coverage as coverage
    from tq.checkpoint import inspect as inspect
    from tq.checkpoint import load as load
    from tq.checkpoint import save as save
    from tq.conversion import convert as convert
    from tq.file_info import Info as Info
    from tq.fusion import fuse as fuse
    from tq.post_training import quantize as quantize
    from tq.scheme import Scheme as Scheme

__version__ = "0.1.0"
_HOME = {
    "attach": "tq.attach",
    "coverage": "tq.attach",
    "convert": "tq.conversion",
    "save": "tq.checkpoint",
    "load": "tq.checkpoint",
    "inspect": "tq.checkpoint",
    "Info": "tq.file_format",
    "fuse": "tq.fusion",
    "quantize": "tq.post_training",
    "Scheme": "tq.scheme",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tq' has no attribute {name!r}")
    _check_kernels()
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def _check_kernels() -> None:
    import triton_kernels

    # other distributions ship a package of this name too
    if not getattr(triton_kernels, "__tq__", False):
        raise ImportError(
            f"the package triton_kernels at {triton_kernels.__path__[0]} is not tq's own; "
            "uninstall the other one or install tq into an environment of its own"
        )


class _Package(ModuleType):
    """Importing the module tq.attach must not put it where the function of that name is."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
