"""The operators: equal to integer oracles at every width, clean for the compiler, and clear in refusing."""

import copy
import gc
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triton_kernels import cpu, dispatch, layout, ops, reference

tq = torch.ops.tq
IMPLS = ["reference", "auto"] if cpu.probe("int_conv2d") or cpu.probe("int_matmul") else ["reference", "cpu"]
needs_cpu = pytest.mark.skipif("cpu" not in IMPLS, reason="oneDNN int8 is not exact on this machine")
INV = torch.tensor(20.0)


def random_codes(bits: int, *shape: int) -> Tensor:
    low, high = layout.code_range(bits)
    codes = torch.randint(low, high + 1, shape, dtype=torch.int8)
    return torch.where(codes >= 0, 1, -1).to(torch.int8) if bits == 1 else codes


def random_u8(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


class Packed(nn.Module):
    """A packed convolution as a model would hold it: buffers and numbers only."""

    packed: Tensor
    scale: Tensor
    bias: Tensor
    inv_scale: Tensor

    def __init__(self, channels: int, out: int, kernel: int = 3, stride: int = 1, bits: int = 4, signed: bool = False):
        super().__init__()
        codes = random_codes(bits, out, channels, kernel, kernel)
        self.bits, self.shape, self.stride, self.padding = bits, list(codes.shape), [stride] * 2, [kernel // 2] * 2
        self.qmin, self.qmax = (-128, 127) if signed else (0, 255)
        self.zero = reference.u8_zero_point(0, self.qmin, self.qmax)
        self.register_buffer("packed", layout.pack_weight(codes, bits))
        self.register_buffer("scale", torch.rand(out) * 0.02 / kernel / channels**0.5)
        self.register_buffer("bias", torch.randn(out) * 0.1)
        self.register_buffer("inv_scale", INV.clone())

    def forward(self, x: Tensor) -> Tensor:
        q = reference.quantize_u8(x, self.inv_scale, 0, self.qmin, self.qmax)
        acc = tq.int_conv2d(q, self.packed, self.bits, self.shape, self.stride, self.padding, [1, 1], 1, self.zero)
        return reference.epilogue(acc, self.scale, self.bias)


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, bits: int):
        super().__init__()
        self.a, self.b = Packed(channels, out, 3, stride, bits), Packed(out, out, 3, 1, bits)
        self.skip = Packed(channels, out, 1, stride, bits) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))) + self.skip(x))


def resnet20_like() -> nn.Module:
    """21 convolutions at all widths, of few different shapes so that it compiles fast."""
    blocks = [Block(16, 16, 1, layout.BITS[i % 4]) for i in range(6)]
    blocks += [Block(16, 32, 2, 4), Block(32, 32, 1, 2), Block(32, 32, 1, 1)]
    return nn.Sequential(Packed(3, 16, signed=True), nn.ReLU(), *blocks, Packed(32, 10, 1, bits=8)).eval()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize(("channels", "out", "groups"), [(3, 16, 1), (7, 5, 1), (12, 8, 4), (9, 9, 9)])
def test_int_conv2d(impl: str, bits: int, channels: int, out: int, groups: int) -> None:
    torch.manual_seed(bits)
    for kernel, stride, dilation, zero_point in (
        (1, 1, 1, 0),
        (3, 2, 1, 128),
        (3, 1, 2, 3),
        (5, 2, 1, 0),
        (7, 1, 1, 128),
    ):
        codes = random_codes(bits, out, channels // groups, kernel, kernel)
        x, pad = random_u8(2, channels, 15, 11), kernel // 2
        geometry = [stride] * 2, [pad] * 2, [dilation] * 2, groups
        got = tq.int_conv2d(x, layout.pack_weight(codes, bits), bits, codes.shape, *geometry, zero_point, impl)
        want = F.conv2d(x.double() - zero_point, codes.double(), None, stride, pad, dilation, groups)
        assert torch.equal(got.double(), want)
        assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("k", [1, 63, 1000, 4608])
def test_int_matmul(impl: str, bits: int, k: int) -> None:
    codes = random_codes(bits, 11, k)
    for shape in ((k,), (0, k), (1, k), (2, 9, k)):
        x = random_u8(*shape)
        got = tq.int_matmul(x, layout.pack_weight(codes, bits), bits, codes.shape, 128, impl)
        assert torch.equal(got.double(), (x.double() - 128) @ codes.double().t())


@needs_cpu
@pytest.mark.parametrize("zero_point", [0, 128])
def test_implementations_agree_beyond_float32(zero_point: int) -> None:
    codes = torch.full((4, 1024, 3, 3), -127, dtype=torch.int8)
    codes[1::2, ::3] = 126
    x = torch.full((1, 1024, 5, 5), 255, dtype=torch.uint8)
    args = (x, layout.pack_weight(codes, 8), 8, codes.shape, [1, 1], [1, 1], [1, 1], 1, zero_point)
    a, b = tq.int_conv2d(*args, "cpu"), tq.int_conv2d(*args, "reference")
    assert a.abs().max() > 2**24 and torch.equal(a, b)


def int_oracle(x: Tensor, inv: float, low: int, high: int, zero: int) -> Tensor:
    return torch.clamp(torch.round(x.float() * inv) + zero, low, high) - zero


@pytest.mark.parametrize(
    ("zero_point", "qmin", "qmax"), [(0, 0, 255), (0, -128, 127), (0, 0, 3), (0, -8, 7), (37, 0, 255)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantize_u8_is_quantize_input_with_an_offset(
    zero_point: int, qmin: int, qmax: int, dtype: torch.dtype
) -> None:
    special = [0.0, -0.0, 0.025, 0.075, -0.025, float("inf"), -float("inf"), float("nan"), 1e-9, 3e9]
    x = torch.cat([torch.randn(1000) * 5, torch.tensor(special)]).to(dtype)
    centred = reference.quantize_input(x, INV, zero_point, qmin, qmax)
    stored = reference.quantize_u8(x, INV, zero_point, qmin, qmax)
    offset = reference.u8_zero_point(zero_point, qmin, qmax)
    assert torch.equal(stored.float() - offset, centred)
    want = int_oracle(x, 20.0, qmin, qmax, zero_point)
    assert torch.equal(centred[:-3], want[:-3]) and centred[-3] == 0 and torch.equal(centred[-2:], want[-2:])


def test_quantize_u8_compiled_is_bit_identical() -> None:
    special = torch.tensor([0.025, 0.075, -0.025, float("inf"), -float("inf"), float("nan"), 3e9])
    x = torch.cat([torch.randn(1000) * 5, special])

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return reference.quantize_u8(x, INV, 37, 0, 255), reference.quantize_u8(x, INV, 0, -128, 127)

    for got, want in zip(torch.compile(both, fullgraph=True)(x), both(x), strict=True):
        assert torch.equal(got, want)


def test_binary_inputs_have_three_values_with_padding() -> None:
    x = torch.tensor([[[[-1.0, 0.0], [2.0, float("nan")]]]])
    stored = reference.quantize_u8(x, None, 0, -1, 1, binary=True)
    assert stored.flatten().tolist() == [0, 2, 2, 0]
    assert reference.quantize_input(x, None, 0, -1, 1, binary=True).flatten().tolist() == [-1, 1, 1, -1]
    packed = layout.pack_weight(torch.ones(1, 1, 3, 3, dtype=torch.int8), 1)
    for impl in IMPLS:
        acc = tq.int_conv2d(stored, packed, 1, [1, 1, 3, 3], [1, 1], [1, 1], [1, 1], 1, 1, impl)
        assert acc.flatten().tolist() == [0.0] * 4


QUANT = [
    {"inv_scale": INV},
    {"inv_scale": INV, "qmin": -128, "qmax": 127},
    {"inv_scale": INV, "qmin": 0, "qmax": 15, "zero_point": 5},
    {"binary": True},
    {},
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("quant", QUANT)
def test_quant_ops_equal_the_reference(impl: str, bits: int, quant: dict[str, Any]) -> None:
    torch.manual_seed(bits)
    codes = random_codes(bits, 8, 6, 3, 3)
    packed, scale, bias = layout.pack_weight(codes, bits), torch.rand(8), torch.randn(8)
    x, residual = torch.randn(2, 12, 9, 7), torch.randn(2, 8, 5, 4)
    conv = {"stride": [2, 2], "padding": [1, 1], "groups": 2, "residual": residual, "relu": True, **quant}
    got = tq.quant_conv2d(x, packed, bits, codes.shape, scale, bias, **conv, impl=impl)
    assert torch.equal(got, reference.quant_conv2d(x, packed, bits, codes.shape, scale, bias, **conv))
    shape = [8, 54]
    rows, matmul = torch.randn(3, 5, 54), {"relu": True, "residual": torch.randn(3, 5, 8), **quant}
    got = tq.quant_matmul(rows, packed, bits, shape, scale, bias, **matmul, impl=impl)
    assert torch.equal(got, reference.quant_matmul(rows, packed, bits, shape, scale, bias, **matmul))
    no_bias = tq.quant_matmul(rows, packed, bits, shape, scale, **quant, impl=impl)
    assert torch.equal(no_bias, reference.quant_matmul(rows, packed, bits, shape, scale, **quant))


def test_quant_conv2d_against_float64() -> None:
    codes, scale, bias = random_codes(4, 8, 3, 3, 3), torch.rand(8), torch.randn(8)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64).float()
    got = tq.quant_conv2d(x, layout.pack_weight(codes, 4), 4, codes.shape, scale, bias, inv_scale=INV, padding=[1, 1])
    q = int_oracle(x, 20.0, 0, 255, 0).double()
    want = F.conv2d(q, codes.double(), None, 1, 1) * scale.double().view(-1, 1, 1) + bias.double().view(-1, 1, 1)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)


def opcheck_cases() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    codes = random_codes(4, 8, 6, 3, 3)
    packed, scale, bias = layout.pack_weight(codes, 4), torch.rand(8), torch.randn(8)
    conv, linear = [packed, 4, [8, 6, 3, 3]], [packed, 4, [8, 54]]
    layer = {"inv_scale": INV, "residual": torch.randn(2, 8, 5, 5), "relu": True}
    return [
        ("int_conv2d", (random_u8(2, 6, 9, 9), *conv, [2, 1], [1, 0], [1, 1], 1, 128), {}),
        ("int_conv2d", (random_u8(2, 6, 9, 9), *conv, [1, 1], [1, 1], [1, 1], 1, 0, "reference"), {}),
        ("int_conv2d", (random_u8(0, 6, 9, 9), *conv), {}),
        ("int_matmul", (random_u8(5, 54), *linear, 128), {}),
        ("int_matmul", (random_u8(2, 5, 54), *linear, 0, "reference"), {}),
        ("quant_conv2d", (torch.randn(2, 6, 9, 9), *conv, scale, bias), {**layer, "stride": [2, 2], "padding": [1, 1]}),
        ("quant_conv2d", (torch.randn(2, 6, 9, 9), *conv, scale), {}),
        ("quant_matmul", (torch.randn(2, 5, 54), *linear, scale, bias), {"inv_scale": INV, "impl": "reference"}),
        ("quant_matmul", (torch.randn(5, 54).bfloat16(), *linear, scale), {"binary": True}),
    ]


@pytest.mark.parametrize("case", range(9))
def test_opcheck(case: int) -> None:
    name, args, kwargs = opcheck_cases()[case]
    torch.library.opcheck(getattr(tq, name).default, args, kwargs)


def test_compiled_chain_is_bit_identical_and_prepares_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    made: list[Tensor] = []

    def unpack(packed: Tensor, *args: Any) -> Tensor:
        made.append(packed)
        return layout.unpack_weight(packed, *args)

    monkeypatch.setattr(dispatch, "unpack_weight", unpack)
    model = resnet20_like()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (2, 5, 3):
            x = torch.randn(batch, 3, 32, 32)
            want = model(x)
            assert want.std() > 0.01 and torch.equal(compiled(x), want)
        with torch.inference_mode():
            assert torch.equal(compiled(x), want) and torch.equal(model(x), want)
    layers = sum(isinstance(m, Packed) for m in model.modules())
    assert len(made) == layers == 21, "each weight is prepared once, not at every call or compilation"


def test_compile_with_dynamic_shapes_does_not_recompile() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(Packed(3, 8, signed=True), nn.ReLU(), Packed(8, 8, stride=2, bits=2))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for batch, size in ((2, 16), (3, 17), (9, 24)):
            x = torch.randn(batch, 3, size, size + 2)
            assert torch.equal(compiled(x), model(x))
    assert counter.frame_count == 1


def test_compile_fused_op() -> None:
    codes, scale = random_codes(2, 8, 3, 3, 3), torch.rand(8)
    packed = layout.pack_weight(codes, 2)

    def layer(x: Tensor) -> Tensor:
        return tq.quant_conv2d(x, packed, 2, [8, 3, 3, 3], scale, inv_scale=INV, padding=[1, 1], relu=True) * 2

    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_module_copies_saves_exports_and_follows_changes() -> None:
    model = Packed(3, 8)
    x = torch.randn(2, 3, 8, 8)
    want = model(x)
    twin, other = copy.deepcopy(model), Packed(3, 8)
    assert torch.equal(twin(x), want) and not torch.equal(other(x), want)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), want), "an in-place change of the weight is seen"
    assert torch.equal(torch.export.export(model, (x,)).module()(x), want)


def test_prepared_weights_are_dropped_with_the_tensor() -> None:
    packed = layout.pack_weight(random_codes(4, 8, 3, 3, 3), 4)
    assert ops.prepare_conv2d(packed, 4, [8, 3, 3, 3]) == ops.choose("int_conv2d", "cpu")
    assert ops.prepare_matmul(packed, 4, [8, 27]) == ops.choose("int_matmul", "cpu")
    ident = id(packed)
    assert len(dispatch._forms[ident][2]) == 2
    del packed
    gc.collect()
    assert ident not in dispatch._forms


def test_auto_says_when_it_is_only_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "probe", lambda op: "this is a test")
    assert ops.choose("int_conv2d", "cpu") == "reference"
    assert "reference (exact, slow: this is a test)" in ops.describe()
    with pytest.raises(ValueError, match='impl "cpu" needs, but this is a test'):
        ops.choose("int_conv2d", "cpu", "cpu")
    assert "on cuda" in ops.describe("cuda")


def test_errors_name_what_was_expected() -> None:
    packed = layout.pack_weight(random_codes(4, 8, 6, 3, 3), 4)
    good = (random_u8(1, 6, 8, 8), packed, 4, [8, 6, 3, 3], [1, 1], [1, 1], [1, 1], 1, 0)

    def call(message: str, **change: Any) -> None:
        names = ("x", "weight", "bits", "shape", "stride", "padding", "dilation", "groups", "zero_point")
        args = [change.get(name, value) for name, value in zip(names, good, strict=True)]
        with pytest.raises(ValueError, match=message):
            tq.int_conv2d(*args, change.get("impl", "auto"))

    call(r"expected x uint8 \[N, 6, H, W\] on cpu, got float32", x=torch.randn(1, 6, 8, 8))
    call(r"expected x uint8 \[N, 6, H, W\] on cpu, got uint8 \[1, 5, 8, 8\]", x=random_u8(1, 5, 8, 8))
    call("padded input of at least 3", x=random_u8(1, 6, 2, 8), padding=[0, 0])
    call("expected a packed weight uint8", bits=2)
    call(r"bits to be one of \(1, 2, 4, 8\), got 3", bits=3)
    call("expected positive stride", stride=[0, 1])
    call("divisible by groups", groups=3)
    call("two numbers each", stride=[1])
    call("zero point in 0..255, got 256", zero_point=256)
    call("expected impl to be one of .*'triton'", impl="triton")
    big = torch.zeros(1, 65794, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at most 65793 weights an output"):
        tq.int_matmul(random_u8(1, 65794), big, 8, [1, 65794])
    with pytest.raises(ValueError, match=r"expected x uint8 \[..., 54\]"):
        tq.int_matmul(random_u8(2, 53), packed, 4, [8, 54])
    with pytest.raises(ValueError, match=r"expected scale float32 \[8\]"):
        tq.quant_matmul(torch.randn(2, 54), packed, 4, [8, 54], torch.rand(7))
    with pytest.raises(ValueError, match="expected a floating x"):
        tq.quant_matmul(random_u8(2, 54), packed, 4, [8, 54], torch.rand(8))
    with pytest.raises(ValueError, match=r"expected a residual \[2, 8\]"):
        tq.quant_matmul(torch.randn(2, 54), packed, 4, [8, 54], torch.rand(8), residual=torch.randn(8))
    with pytest.raises(ValueError, match="with the zero point among them"):
        tq.quant_matmul(torch.randn(2, 54), packed, 4, [8, 54], torch.rand(8), inv_scale=INV, zero_point=-1)
