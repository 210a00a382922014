"""The operators of tq, and its native plan, as contenders of a benchmark."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tq.kernels.layers import DTYPES, FLOAT_ERROR, Layer
from tq.kernels.peers import Call, Contender
from tq.kernels.shapes import Problem
from triton_kernels import native, ops, reference
from triton_kernels.spec import Output
from triton_kernels.steps import Codes, Conv, Program, Step


def ours(problem: Problem, layer: Layer) -> list[Contender]:
    """An operator call for each of the problem's kinds; on a CPU also one-step plans for convolutions of floats."""
    found = [operator(problem, layer, bits, activation) for bits, activation in problem.kinds]
    if layer.device.type == "cpu" and problem.shape.conv and not native.why_not():
        found += [_native(problem, layer, bits) for bits, activation in problem.kinds if activation == "static"]
    return found


def operator(problem: Problem, layer: Layer, bits: int, activation: str) -> Contender:
    """`tq::quant_matmul` or `tq::quant_conv2d` with the implementation that "auto" chooses."""
    q, conv = layer.quantized(activation), problem.shape.conv

    def make() -> Call:
        x, packed, scale = layer.repeat(q.x, problem.rows), layer.packed(bits), layer.scale(bits, activation)
        options: dict[str, Any] = {
            **{name: getattr(q.given, name) for name in ("inv_scale", "zero_point", "qmin", "qmax")},
            **({**layer.geometry, "bias": layer.bias} if conv else {"dynamic": q.given.dynamic}),
            "relu": q.out.relu, "out_inv_scale": q.out.inv_scale, "out_dtype": q.out.dtype,
        }  # fmt: skip
        op = torch.ops.tq.quant_conv2d if conv else torch.ops.tq.quant_matmul
        return lambda: op(x, packed, bits, problem.shape.weight, scale, **options)

    op = "float" if activation in DTYPES else "int_conv2d" if conv else "int_matmul"
    return Contender(
        name=f"tq {ops.choose(op, layer.device)}",
        bits=bits,
        activation=activation,
        input=q.x.dtype,
        output=q.out.out_dtype,
        make=make,
        expected=lambda: layer.expected(bits, activation),
        error=FLOAT_ERROR if activation in DTYPES else None,
        ours=True,
    )


def _native(problem: Problem, layer: Layer, bits: int) -> Contender:
    """One convolution as a plan: float images in and out, as at the borders of a fused network."""
    q, shape = layer.quantized("static"), problem.shape
    assert q.given.inv_scale is not None
    codes = Codes(float(q.given.inv_scale), q.given.zero_point, q.given.qmin, q.given.qmax)
    scale, bias = layer.scale(bits, "static"), layer.bias
    assert bias is not None

    def make() -> Call:
        conv = Conv(packed=layer.packed(bits), bits=bits, shape=shape.weight, scale=scale, bias=bias, reads=codes)  # type: ignore[arg-type]
        geometry: dict[str, Any] = {**layer.geometry, "kernel": shape.weight[2:]}
        step = Step(kind="conv", source=-1, conv=conv, relu=True, **geometry)
        plan = native.Plan(Program((step,), (shape.input,), (0,)))  # type: ignore[arg-type]
        x = layer.repeat(q.x, problem.rows)
        return lambda: plan([x])[0]

    def expected() -> Tensor:
        return reference.quant_conv2d(
            q.x, layer.packed(bits), bits, shape.weight, scale, bias,
            **layer.geometry, given=q.given, out=Output(relu=True),
        )  # fmt: skip

    return Contender(
        name="tq native",
        bits=bits,
        activation="static",
        input=torch.float32,
        output=torch.float32,
        make=make,
        expected=expected,
        ours=True,
    )
