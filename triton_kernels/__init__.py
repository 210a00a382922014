"""Low-bit kernels: the bit layout, the eager reference, and the `tq::` operators over them.

Other distributions also use the name `triton_kernels`; `__tq__` tells `tq` that it got this one. Submodules are
loaded on first use, so importing the package costs nothing and does not load torch:

    layout      how integer codes become bytes (the specification)
    reference   what every operator computes, exactly, on any device
    ops         the operators `torch.ops.tq.*`
    dispatch    the choice of an implementation, and what it keeps prepared from a weight
    cpu         the oneDNN int8 implementation
"""

import importlib
from types import ModuleType

__tq__ = True
_SUBMODULES = ("cpu", "dispatch", "layout", "ops", "reference")
__all__ = ["__tq__"]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
