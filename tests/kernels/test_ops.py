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
from triton_kernels.launch import interpreted

tq = torch.ops.tq
IMPLS = ["reference", "auto" if cpu.probe("int_conv2d") or cpu.probe("int_matmul") else "cpu"]
if interpreted():  # on a machine with a GPU, tests/gpu runs the kernels
    IMPLS.append("triton")
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


INPUTS: dict[str, dict[str, Any]] = {
    "unsigned": {"inv_scale": INV},
    "signed": {"inv_scale": INV, "qmin": -128, "qmax": 127},
    "asymmetric": {"inv_scale": INV, "qmin": 0, "qmax": 15, "zero_point": 5},
    "binary": {"binary": True},
    "float": {},
    "uint8": {"zero_point": 7},
    "int8": {"zero_point": -3},
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "relu": {"relu": True},
    "half": {"out_dtype": torch.float16},
    "uint8": {"relu": True, "out_inv_scale": torch.tensor(9.0), "out_qmax": 200},
    "int8": {"out_inv_scale": torch.tensor(9.0), "out_zero_point": -5, "out_qmin": -100, "out_qmax": 99}
    | {"out_dtype": torch.int8},
    "binary": {"out_binary": True, "out_zero_point": 1},
}


def inputs_of(kind: str, *shape: int) -> Tensor:
    if kind in ("uint8", "int8"):
        codes = random_u8(*shape)
        return codes if kind == "uint8" else codes.view(torch.int8)
    return torch.randn(shape)


def specs(**options: Any) -> dict[str, Any]:
    given, out = ops._specs(options)
    return {"given": given, "out": out}


def same(got: Tensor, want: Tensor, kind: str) -> bool:
    """Bit for bit; floats are summed in another order, which can also tip one of their codes."""
    if kind != "float":
        return torch.equal(got, want)
    if got.is_floating_point():
        return torch.allclose(got, want, rtol=1e-3, atol=1e-4)
    return got.dtype == want.dtype and bool((got != want).float().mean() < 0.02)


def residual_of(kind: str, *shape: int) -> dict[str, Any]:
    if kind == "codes":
        codes = random_u8(*shape)
        return {"residual": codes, "residual_scale": torch.tensor(0.03), "residual_zero_point": 100}
    return {"residual": torch.randn(shape)} if kind == "float" else {}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("result", OUTPUTS)
def test_quant_ops_equal_the_reference(impl: str, bits: int, kind: str, result: str) -> None:
    torch.manual_seed(bits)
    codes = random_codes(bits, 8, 6, 3, 3)
    packed, scale, bias = layout.pack_weight(codes, bits), torch.rand(8) * 0.1, torch.randn(8)
    residuals = ("none", "float", "codes")
    for residual in residuals if impl != "triton" else residuals[bits % 3 :][:1]:  # the interpreter is slow
        x, given = inputs_of(kind, 2, 12, 9, 7), INPUTS[kind]
        tail = OUTPUTS[result] | residual_of(residual, 2, 8, 5, 4)
        conv = {"stride": [2, 2], "padding": [1, 1], "groups": 2}
        got = tq.quant_conv2d(x, packed, bits, codes.shape, scale, bias, **conv, **given, **tail, impl=impl)
        want = reference.quant_conv2d(x, packed, bits, codes.shape, scale, bias, **conv, **specs(**given, **tail))
        assert same(got, want, kind) and got.is_contiguous(memory_format=torch.channels_last)
        rows, tail = inputs_of(kind, 3, 5, 54), OUTPUTS[result] | residual_of(residual, 3, 5, 8)
        got = tq.quant_matmul(rows, packed, bits, [8, 54], scale, bias, **given, **tail, impl=impl)
        want = reference.quant_matmul(rows, packed, bits, [8, 54], scale, bias, **specs(**given, **tail))
        assert same(got, want, kind) and got.is_contiguous()


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("kind", ["float", "dynamic", "packed1", "packed2", "packed4", "binary1"])
@pytest.mark.parametrize("groups", [1, 3])
def test_quant_matmul_of_rows(impl: str, bits: int, kind: str, groups: int) -> None:
    torch.manual_seed(bits)
    codes, scale, bias = random_codes(bits, 8, 54), torch.rand(8, groups), torch.randn(8)
    if kind[-1].isdigit():
        x_bits = int(kind[-1])
        values = torch.randint(0, 2**x_bits, (5, 54))
        stored = values * 2 - 1 if x_bits == 1 else values - 2 ** (x_bits - 1)
        x = layout.pack(stored.to(torch.int8), x_bits)
        options: dict[str, Any] = {"x_bits": x_bits, "binary": kind == "binary1", "zero_point": kind != "binary1"}
        centred = values.double() * 2 - 1 if kind == "binary1" else values.double() - 1
        row_scale = torch.ones(5, 1).double()
    else:
        x = torch.randn(5, 54)
        options = {"dynamic": kind == "dynamic"}
        row_scale = x.abs().amax(1, keepdim=True).double() / 127 if kind == "dynamic" else torch.ones(5, 1).double()
        centred = torch.round(x.double() / row_scale) if kind == "dynamic" else x.double()
    got = tq.quant_matmul(x, layout.pack_weight(codes, bits), bits, [8, 54], scale, bias, **options, impl=impl)
    wide = codes.double() * scale.double().repeat_interleave(54 // groups, 1)
    torch.testing.assert_close(got.double(), (centred * row_scale) @ wide.T + bias.double(), rtol=1e-4, atol=1e-4)


def test_quantize_rows_is_exact_and_has_a_scale_for_zeros() -> None:
    x = torch.tensor([[0.0, 0.0], [127.0, -1.0], [-2.54, 0.03]])
    codes, scale = reference.quantize_rows(x)
    assert codes.tolist() == [[0, 0], [127, -1], [-127, 2]] and codes.dtype == torch.int8
    assert torch.equal(scale, torch.tensor([[1.0], [1.0], [2.54 / 127]]))
    assert reference.quantize_rows(torch.empty(0, 5))[0].shape == (0, 5)


def test_codes_of_an_output_are_the_next_inputs_codes() -> None:
    y = torch.cat([torch.randn(1000) * 5, torch.tensor([float("inf"), -float("inf"), float("nan"), 1e30])])
    for zero, low, high in ((0, 0, 255), (0, -128, 127), (0, 0, 3), (37, 0, 255)):
        offset = reference.u8_zero_point(zero, low, high)
        want = reference.quantize_u8(y, INV, zero, low, high)
        assert torch.equal(reference.codes_of(y, INV, offset, 0, high - low), want)
    want = reference.quantize_u8(y, None, 0, -1, 1, binary=True)
    assert torch.equal(reference.codes_of(y, None, 1, 0, 0, binary=True), want)


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batches_give_empty_outputs(impl: str) -> None:
    packed, scale = layout.pack_weight(random_codes(4, 8, 6, 3, 3), 4), torch.rand(8)
    for x in (torch.randn(0, 6, 5, 5), random_u8(0, 6, 5, 5)):
        options: dict[str, Any] = {} if x.dtype == torch.uint8 else {"inv_scale": INV}
        got = tq.quant_conv2d(x, packed, 4, [8, 6, 3, 3], scale, out_inv_scale=INV, **options, impl=impl)
        assert got.shape == (0, 8, 3, 3) and got.dtype == torch.uint8
        rows = x.reshape(0, 54)
        assert tq.quant_matmul(rows, packed, 4, [8, 54], scale, **options, impl=impl).shape == (0, 8)


@pytest.mark.parametrize("impl", IMPLS)
def test_views_of_any_alignment(impl: str) -> None:
    codes, scale = random_codes(8, 8, 6, 3, 3), torch.rand(8)
    packed = layout.pack_weight(codes, 8)
    whole = random_u8(2, 7, 11, 9)
    for x in (
        whole[:, 1:, 1:, 3:],
        whole.transpose(2, 3)[:, :6],
        whole.permute(0, 2, 3, 1)[..., :6].permute(0, 3, 1, 2),
    ):
        got = tq.quant_conv2d(x, packed, 8, codes.shape, scale, impl=impl)
        assert torch.equal(got, reference.quant_conv2d(x.contiguous(), packed, 8, codes.shape, scale))
    rows = random_u8(5, 60)[:, 3:57]
    got = tq.quant_matmul(rows, packed, 8, [8, 54], scale, impl=impl)
    assert torch.equal(got, reference.quant_matmul(rows.contiguous(), packed, 8, [8, 54], scale))


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
        ("quant_matmul", (random_u8(5, 54), *linear, scale), {"out_inv_scale": INV, "out_dtype": torch.uint8}),
        ("quant_matmul", (torch.randn(5, 54), *linear, scale), {"dynamic": True, "out_dtype": torch.bfloat16}),
        ("quant_conv2d", (random_u8(2, 6, 9, 9), *conv, scale), {"out_binary": True, "out_zero_point": 1}),
    ]


@pytest.mark.parametrize("case", range(12))
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
    call("expected impl to be one of .*'cublas'", impl="cublas")
    big = torch.zeros(1, 65794, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at most 65793 weights an output"):
        tq.int_matmul(random_u8(1, 65794), big, 8, [1, 65794])
    with pytest.raises(ValueError, match=r"expected x uint8 \[..., 54\]"):
        tq.int_matmul(random_u8(2, 53), packed, 4, [8, 54])
    with pytest.raises(ValueError, match=r"expected scale float32 \[8\]"):
        tq.quant_matmul(torch.randn(2, 54), packed, 4, [8, 54], torch.rand(7))
    with pytest.raises(ValueError, match=r"expected a residual \[2, 8\]"):
        tq.quant_matmul(torch.randn(2, 54), packed, 4, [8, 54], torch.rand(8), residual=torch.randn(8))
    with pytest.raises(ValueError, match="with the zero point among them"):
        tq.quant_matmul(torch.randn(2, 54), packed, 4, [8, 54], torch.rand(8), inv_scale=INV, zero_point=-1)


def test_errors_of_whole_layers_name_what_was_expected() -> None:
    packed, scale = layout.pack_weight(random_codes(4, 8, 6, 3, 3), 4), torch.rand(8)
    rows, image = torch.randn(2, 54), torch.randn(1, 6, 8, 8)

    def call(message: str, x: Tensor = rows, scale: Tensor = scale, **options: Any) -> None:
        op, shape = (tq.quant_conv2d, [8, 6, 3, 3]) if x.dim() == 4 else (tq.quant_matmul, [8, 54])
        for impl in (options.pop("impl", None),) if "impl" in options else IMPLS:
            with pytest.raises(ValueError, match=message):
                op(x, packed, 4, shape, scale, **options, impl=impl)

    call("expected x float32 or float16 or bfloat16 or codes uint8 or int8, got int64", torch.zeros(2, 54).long())
    call(r"expected x \[..., 54\] on cpu, got \[2, 53\]", torch.randn(2, 53))
    call("at most one of inv_scale, binary and dynamic", inv_scale=INV, dynamic=True)
    call(r"expected inv_scale as one float32 on cpu, got float32 \[2\]", inv_scale=torch.ones(2))
    call("expected a zero_point alone for uint8 codes", random_u8(2, 54), binary=True)
    call("expected zero_point in -128..127, got 200", random_u8(2, 54).view(torch.int8), zero_point=200)
    call("expected packed codes uint8 of x_bits 1, 2 or 4", random_u8(2, 54), x_bits=3)
    call("expected packed codes uint8 of x_bits 1, 2 or 4", random_u8(2, 54), x_bits=2, binary=True)
    call("expected a zero point that 2 bits hold, got 4", random_u8(2, 14), x_bits=2, zero_point=4)
    call("a number of groups that divides 54, got 4", scale=torch.rand(8, 4))
    call(r"expected scale float32 \[8\] on cpu, got float32 \[8, 2\]", image, scale=torch.rand(8, 2))
    call("expected an output of uint8 or int8, got float32", out_inv_scale=INV, out_dtype=torch.float32)
    call("expected an output of float32 or float16 or bfloat16, got int8", out_dtype=torch.int8)
    call("expected out_qmax in 0..255, got 256", out_inv_scale=INV, out_qmax=256)
    call("out_qmin <= out_zero_point <= out_qmax", out_inv_scale=INV, out_zero_point=3, out_qmin=4)
    call("expected a binary output's code in 0..255, got -1", out_binary=True)
    call("or of uint8 or int8 with a residual_scale", residual=random_u8(2, 8))
    call("or of uint8 or int8 with a residual_scale", residual=torch.randn(2, 8), residual_scale=INV)
    call("expected residual_zero_point in 0..255", residual=random_u8(2, 8), residual_scale=INV, residual_zero_point=-1)
    if "cpu" in IMPLS:
        call('with impl "cpu" and quantized inputs, got 2 groups', scale=torch.rand(8, 2), dynamic=True, impl="cpu")
