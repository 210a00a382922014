"""Low-bit kernels: the bit layout, the eager reference, and the `tq::` operators over them.

Other distributions also use the name `triton_kernels`; `__tq__` tells `tq` that it got this one. Submodules are
loaded on first use, so importing the package costs nothing and does not load torch.

What a layer is, and who computes it:

    layout          how integer codes become bytes (the specification)
    codebook        the same for powers of two
    spec            what a layer does with the numbers that enter and leave it
    reference       what every operator computes, exactly, on any device
    ops             the operators `torch.ops.tq.*`
    checks          what they refuse
    dispatch        the choice of an implementation, and what it keeps prepared from a weight
    cpu             the oneDNN int8 implementation

Whole networks:

    steps           a packed network as a list of steps
    native          these as one call on a CPU, compiled from native.cpp
    chain           these as operators one after the other

Triton, products:

    quant_matmul    integer inputs; planar is the layout of its weights, quantize_rows makes its inputs
    weight_only     floating inputs
    binary_matmul   1-bit weights with packed 1-bit or 2-bit inputs

Triton, convolutions:

    quant_conv2d    tiles, and the kernels of a call: conv_input, then conv_kernel or depthwise_conv2d
    conv_form       the layout of its weights

Triton, all of them:

    epilogue        the end of a layer on a tile
    launch          a kernel call as a value
    tuning          the choice of tiles
    fake_quant      fake quantization for training, by fake_quant_kernels
    offline, sass   machine code for GPUs that are not there, and what it must hold
"""

import importlib
import pkgutil
from types import ModuleType

__tq__ = True
__all__ = ["__tq__"]
_SUBMODULES = frozenset(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
