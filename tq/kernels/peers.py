"""Who else computes a benchmarked layer: what PyTorch offers for it, and optional packages.

A contender is made when its turn comes; what fails to be made or run keeps its row, with the reason instead of a time.
torchao and GemLite are compared where they can be imported, and needed nowhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from tq.kernels.layers import DTYPES, FLOAT_ERROR, Layer
from tq.kernels.shapes import Problem
from triton_kernels import reference
from triton_kernels.layout import unpack_stored, unpack_weight

PEER_ERROR = 1e-2
"""relative mean error allowed to 16-bit peers, which round weights and outputs to 8 or 11 bits and add in any order"""
OWN_ERROR = 3e-2
"""the same for peers that choose their own integers for weights (and activations) that were integers times a scale"""
Call = Callable[[], Tensor]
# layer, weight bits, float dtype -> the layer as a package makes it
Convert = Callable[[Layer, int, torch.dtype], Any]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row. make: prepare it and return the call. expected: the distinct rows' outputs. error: see `Layer.check`."""

    name: str
    bits: int
    activation: str
    input: torch.dtype
    output: torch.dtype
    make: Callable[[], Call]
    expected: Callable[[], Tensor]
    error: float | None = None
    ours: bool = False
    float_layer: bool = False

    @property
    def integer(self) -> bool:
        """Whether it multiplies integers, so that the int8 peak is its ceiling."""
        return self.activation not in DTYPES


def peers(problem: Problem, layer: Layer) -> list[Contender]:
    """All but ours, those that compute the float layer first."""
    found = _float_peers(problem, layer)
    return found if problem.shape.conv else [*found, _int_mm(problem, layer), *_packages(problem, layer)]


def _float_peers(problem: Problem, layer: Layer) -> list[Contender]:
    """The float layer, eager (cuBLAS, cuDNN or oneDNN behind it) and compiled."""
    dtype, conv, device = layer.float_dtype, problem.shape.conv, layer.device.type
    name = next(name for name, known in DTYPES.items() if known == dtype)
    x = layer.x.to(dtype)

    def module() -> nn.Module:
        return _module(layer, 8, dtype)

    def eager() -> Call:
        model, images = module(), layer.repeat(x, problem.rows)
        return lambda: model(images)

    def compiled() -> Call:
        torch._dynamo.reset()
        images, run = layer.repeat(x, problem.rows), torch.compile(module(), fullgraph=True, dynamic=False)
        # read while tracing: on a CPU the weights then are constants, laid out once
        with inductor.patch(freezing=device == "cpu"):
            run(images)
        return lambda: run(images)

    eager_row = Contender(
        name=f"torch {name}" if device == "cpu" else f"{'cuDNN' if conv else 'cuBLAS'} {name}",
        bits=8 * dtype.itemsize,
        activation=name,
        input=dtype,
        output=dtype,
        make=eager,
        expected=lambda: _float_result(layer, 8, dtype),
        error=FLOAT_ERROR if dtype == torch.float32 else PEER_ERROR,
        float_layer=True,
    )
    return [eager_row, replace(eager_row, name=f"torch.compile {name}", make=compiled)]


def _module(layer: Layer, bits: int, dtype: torch.dtype) -> nn.Module:
    weight = layer.float_weight(bits, dtype)
    model: nn.Module
    with torch.device("meta"):
        if layer.bias is None:
            model = nn.Linear(layer.shape.k, layer.shape.weight[0], bias=False)
        else:
            o, i, kh, _ = layer.shape.weight
            model = nn.Conv2d(i, o, kh, layer.shape.stride, layer.shape.padding)
    for name, value in (("weight", weight), ("bias", layer.bias)):
        if value is not None:
            setattr(model, name, nn.Parameter(value.to(dtype), requires_grad=False))
    if layer.bias is None:
        return model.eval()
    return nn.Sequential(model, nn.ReLU()).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def _float_result(layer: Layer, bits: int, dtype: torch.dtype) -> Tensor:
    """What the float layer gives for the distinct rows, computed in float64 and rounded to `dtype`."""

    def make() -> Tensor:
        y: Tensor = _module(layer, bits, dtype).cpu().double()(layer.x.to(dtype).cpu().double()).to(dtype)
        return y

    return layer.keep(bits, f"float layer {dtype}", make)


def _int_mm(problem: Problem, layer: Layer) -> Contender:
    step = layer.quantized("static").step
    x = torch.clamp(torch.round(layer.x / step), -128, 127).to(torch.int8)
    shape = problem.shape

    def weight() -> Tensor:
        return unpack_weight(layer.packed(8), 8, shape.weight)

    def make() -> Call:
        rows, columns = layer.repeat(x, problem.rows), weight().t()
        return lambda: torch._int_mm(rows, columns)

    return Contender(
        name="torch._int_mm",
        bits=8,
        activation="codes",
        input=torch.int8,
        output=torch.int32,
        make=make,
        expected=lambda: layer.keep(8, "sums", lambda: reference.int_matmul(x.cpu(), weight().cpu()).to(torch.int32)),
    )


def _packages(problem: Problem, layer: Layer) -> list[Contender]:
    """torchao in bfloat16 and GemLite in float16, in which each is at home, on a GPU."""
    if layer.device.type != "cuda":
        return []
    bf16, fp16 = torch.bfloat16, torch.float16
    found = (
        ("torchao int8", 8, "bf16", bf16, _torchao("Int8WeightOnlyConfig")),
        ("torchao int8", 8, "dynamic", bf16, _torchao("Int8DynamicActivationInt8WeightConfig")),
        ("torchao int4", 4, "bf16", bf16, _torchao("Int4WeightOnlyConfig", int4_packing_format="tile_packed_to_4d")),
        ("GemLite A16W8", 8, "fp16", fp16, _gemlite_int8("A16W8_INT8")),
        ("GemLite A8W8", 8, "dynamic", fp16, _gemlite_int8("A8W8_int8_dynamic")),
        *((f"GemLite A16W{bits}", bits, "fp16", fp16, _gemlite) for bits in (4, 2, 1)),
    )
    return [_package(problem, layer, *one) for one in found]


def _package(
    problem: Problem, layer: Layer, name: str, bits: int, activation: str, dtype: torch.dtype, convert: Convert
) -> Contender:
    x = layer.x.to(dtype)

    def make() -> Call:
        if importlib.util.find_spec(name.split()[0].lower()) is None:
            raise ModuleNotFoundError("not installed")
        model, rows = convert(layer, bits, dtype), layer.repeat(x, problem.rows)
        return lambda: model(rows)

    return Contender(
        name=name,
        bits=bits,
        activation=activation,
        input=dtype,
        output=dtype,
        make=make,
        expected=lambda: _float_result(layer, bits, dtype),
        error=OWN_ERROR,
    )


def _torchao(config: str, **options: Any) -> Convert:
    def convert(layer: Layer, bits: int, dtype: torch.dtype) -> nn.Module:
        quantization: Any = importlib.import_module("torchao.quantization")
        model = _module(layer, bits, dtype)
        quantization.quantize_(model, getattr(quantization, config)(**options))
        return model

    return convert


def _gemlite_int8(processor: str) -> Convert:
    def convert(layer: Layer, bits: int, dtype: torch.dtype) -> Any:
        helper: Any = importlib.import_module("gemlite.helper")
        made = getattr(helper, processor)(device=str(layer.device), dtype=dtype)
        return made.from_linear(_module(layer, bits, dtype), del_orig=False)

    return convert


def _gemlite(layer: Layer, bits: int, dtype: torch.dtype) -> Any:
    """Our own codes and one scale an output: weight = (stored - zero) * scale."""
    helper: Any = importlib.import_module("gemlite.helper")
    stored, zero = unpack_stored(layer.packed(bits), bits, layer.shape.k), 0.5 if bits == 1 else float(1 << bits - 1)
    scale = layer.weight_scale(bits).view(-1, 1).to(dtype) * (2 if bits == 1 else 1)
    made = helper.A16Wn(device=str(layer.device), dtype=dtype)
    return made.from_weights(stored, scale, torch.full_like(scale, zero), bits, layer.shape.k)
