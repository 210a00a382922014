"""What only a GPU can show: the operators and fused networks on CUDA tensors, under CUDA graphs, on poisoned memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tq.conversion import convert
from tq.fusion import fuse, fused_parts
from triton_kernels import layout, ops, reference
from triton_kernels.spec import Input, Output

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
tq = torch.ops.tq


def weight(bits: int, *shape: int) -> Tensor:
    low, high = layout.code_range(bits)
    codes = torch.randint(low, high + 1, shape, dtype=torch.int8)
    return layout.pack_weight(torch.where(codes >= 0, 1, -1).to(torch.int8) if bits == 1 else codes, bits)


def poison(shape: torch.Size, dtype: torch.dtype) -> None:
    """Leave memory of this size behind that the next allocation takes over, full of NaN or 0xFF."""
    block = torch.empty(shape, dtype=dtype, device="cuda")
    block.fill_(torch.nan if dtype.is_floating_point else -1 if dtype == torch.int8 else 255)
    del block


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("codes_out", [False, True])
def test_convolutions_equal_the_reference(bits: int, codes_out: bool) -> None:
    for channels, out, kernel, stride, size in (
        (3, 16, 3, 1, 33),
        (64, 64, 3, 1, 14),
        (256, 512, 1, 2, 7),
        (48, 48, 5, 2, 15),
    ):
        packed, shape = weight(bits, out, channels, kernel, kernel), [out, channels, kernel, kernel]
        x = torch.randint(0, 256, (3, channels, size, size), dtype=torch.uint8)
        scale, bias, inverse = torch.rand(out) * 1e-3, torch.randn(out), torch.tensor(9.0)
        tail = {"out_inv_scale": inverse} if codes_out else {}
        spec = Output(relu=True, inv_scale=inverse) if codes_out else Output(relu=True)
        geometry = {"stride": [stride] * 2, "padding": [kernel // 2] * 2}
        want = reference.quant_conv2d(
            x, packed, bits, shape, scale, bias, **geometry, given=Input(zero_point=3), out=spec
        )
        poison(want.shape, want.dtype)
        got = tq.quant_conv2d(
            x.cuda(), packed.cuda(), bits, shape, scale.cuda(), bias.cuda(), **geometry, zero_point=3, relu=True,
            **{name: value.cuda() for name, value in tail.items()}, impl="triton",
        )  # fmt: skip
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("m", [1, 7, 16, 65, 300])
def test_products_equal_the_reference(bits: int, m: int) -> None:
    for n, k in ((17, 129), (512, 1024)):
        packed, scale = weight(bits, n, k), torch.rand(n) * 1e-3
        x = torch.randint(0, 256, (m, k), dtype=torch.uint8)
        want = reference.quant_matmul(x, packed, bits, [n, k], scale, given=Input(zero_point=128))
        poison(want.shape, want.dtype)
        got = tq.quant_matmul(x.cuda(), packed.cuda(), bits, [n, k], scale.cuda(), zero_point=128, impl="triton")
        assert torch.equal(got.cpu(), want)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            rows = torch.randn(m, k, dtype=dtype)
            want = reference.quant_matmul(rows, packed, bits, [n, k], scale)
            got = tq.quant_matmul(rows.cuda(), packed.cuda(), bits, [n, k], scale.cuda(), impl="triton").cpu()
            assert float((got - want).abs().mean() / want.abs().mean()) < 1e-3


def test_operators_under_a_cuda_graph_and_the_compiler() -> None:
    packed, scale = weight(4, 64, 32, 3, 3).cuda(), torch.rand(64, device="cuda")
    x = torch.randint(0, 256, (2, 32, 9, 9), dtype=torch.uint8, device="cuda")

    def run(x: Tensor) -> Tensor:
        return tq.quant_conv2d(x, packed, 4, [64, 32, 3, 3], scale, padding=[1, 1], impl="triton")

    want = run(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(x)
    captured.fill_(torch.nan)
    graph.replay()
    assert torch.equal(captured, want)
    assert torch.equal(torch.compile(run, fullgraph=True)(x), want)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a4", "w1a2"])
def test_networks_predict_the_same_fused_and_on_a_cpu(
    scheme: str, quantized: Callable[..., nn.Module], images: Callable[..., Tensor]
) -> None:
    assert ops.choose("int_conv2d", "cuda") == "triton"
    packed = convert(quantized("resnet20", scheme, first_last="8"))
    x = images("resnet20", 5)
    want, there = packed(x), convert(quantized("resnet20", scheme, first_last="8").cuda())
    fused = fuse(there, x.cuda())
    assert fused_parts(fused) and torch.equal(fused(x.cuda()), there(x.cuda()))
    # pooling sums in another order on a GPU
    torch.testing.assert_close(there(x.cuda()).cpu(), want, rtol=0.05, atol=0.05)
