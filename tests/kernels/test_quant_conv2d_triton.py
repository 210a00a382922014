"""The Triton convolution, run by Triton's interpreter where there is no GPU: bit-equal to the reference."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from triton_kernels import conv_form, conv_input, layout, quant_conv2d, reference
from triton_kernels.spec import NO_OUTPUT, Input, Output
from triton_kernels.tuning import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# kernel, stride, padding, dilation
GEOMETRIES = {
    "3x3": ((3, 3), 1, (1, 1), 1),
    "3x3s2": ((3, 3), 2, (1, 1), 1),
    "1x1s2": ((1, 1), 2, (0, 0), 1),
    "5x5": ((5, 5), 1, (2, 2), 1),
    "7x7s2": ((7, 7), 2, (3, 3), 1),
    "dilated": ((3, 3), 1, (2, 2), 2),
    "1x3": ((1, 3), 1, (0, 1), 1),
}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """New tensors hold NaN or the largest integer, so that an element that no program writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)


def random_weight(bits: int, *shape: int) -> Tensor:
    low, high = layout.code_range(bits)
    codes = torch.randint(low, high + 1, shape, dtype=torch.int8)
    return torch.where(codes >= 0, 1, -1).to(torch.int8) if bits == 1 else codes


def random_x(dtype: torch.dtype, *shape: int) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, shape, dtype=dtype)


def run(
    x: Tensor,
    codes: Tensor,
    bits: int,
    given: Input,
    out: Output = NO_OUTPUT,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    config: Config | None = None,
    expand: bool = False,
) -> tuple[Tensor, Tensor]:
    """(Triton's result, the reference's)."""
    o = codes.shape[0]
    # results of a few units, so that codes take many values
    size = (
        (codes[0].numel() ** 0.5) * (1 if x.is_floating_point() and given.inv_scale is None else 70) * 2 ** (bits - 1)
    )
    scale = torch.rand(o) / size * 3 if scale is None else scale
    packed, shape = layout.pack_weight(codes, bits), tuple(codes.shape)
    steps: dict[str, Any] = {"stride": (stride, stride), "padding": padding, "dilation": (dilation, dilation)}
    want = reference.quant_conv2d(x, packed, bits, shape, scale, bias, **steps, groups=groups, given=given, out=out)
    form = conv_form.prepare(packed.to(DEVICE), bits, shape, groups, expand=expand)
    moved = bias if bias is None else bias.to(DEVICE)
    given, out = on_device(given), on_device(out)
    got = quant_conv2d.quant_conv2d(x.to(DEVICE), form, scale.to(DEVICE), moved, given, out, **steps, config=config)
    assert got.is_contiguous(memory_format=torch.channels_last) and got.dtype == want.dtype
    return got.cpu(), want


def on_device(spec: Any) -> Any:
    tensors = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return dataclasses.replace(spec, **{name: t.to(DEVICE) for name, t in tensors.items() if isinstance(t, Tensor)})


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("channels", [3, 5, 16, 33])
def test_geometries(bits: int, name: str, channels: int) -> None:
    kernel, stride, padding, dilation = GEOMETRIES[name]
    number = list(GEOMETRIES).index(name) + channels
    dtype, zero = ((torch.uint8, 0), (torch.uint8, 128), (torch.int8, 0), (torch.int8, -101))[number % 4]
    codes = random_weight(bits, 13, channels, *kernel)
    x = random_x(dtype, 2, channels, 7, 6)
    got, want = run(
        x, codes, bits, Input(zero_point=zero), stride=stride, padding=padding, dilation=dilation, bias=torch.randn(13)
    )
    assert torch.equal(got, want)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize(("channels", "out", "groups"), [(33, 9, 3), (96, 6, 3), (7, 7, 7), (6, 18, 6), (1, 5, 1)])
def test_groups(bits: int, dtype: torch.dtype, channels: int, out: int, groups: int) -> None:
    codes = random_weight(bits, out, channels // groups, 3, 3)
    for stride, zero in ((1, 77), (2, 0)):
        x = random_x(dtype, 2, channels, 7, 5)
        got, want = run(x, codes, bits, Input(zero_point=zero), stride=stride, padding=(1, 1), groups=groups)
        assert torch.equal(got, want)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("name", ["3x3", "1x1s2"])
def test_whole_blocks_of_a_tap(bits: int, name: str) -> None:
    kernel, stride, padding, dilation = GEOMETRIES[name]
    codes, x = random_weight(bits, 40, 256, *kernel), random_x(torch.uint8, 1, 256, 5, 3)
    got, want = run(x, codes, bits, Input(zero_point=3), stride=stride, padding=padding, dilation=dilation)
    assert torch.equal(got, want)


def outputs() -> dict[str, Output]:
    shape = (2, 12, 7, 5)
    inv = torch.tensor(20.0)
    floats, stored = torch.randn(shape), random_x(torch.uint8, *shape)
    residual = {"residual": stored, "residual_scale": torch.tensor(0.013), "residual_zero_point": 11}
    return {
        "float32": Output(residual=floats, relu=True),
        "float16": Output(residual=floats.half(), dtype=torch.float16),
        "bfloat16": Output(dtype=torch.bfloat16, relu=True),
        "uint8": Output(inv_scale=inv, zero_point=100, **residual),
        "uint8 relu": Output(inv_scale=inv, relu=True, residual=floats),
        "4 bits": Output(inv_scale=torch.tensor(2.0), qmax=15, relu=True),
        "int8": Output(inv_scale=inv, zero_point=-3, qmin=-128, qmax=127, dtype=torch.int8, **residual),
        "binary": Output(binary=True, zero_point=1),
        "binary int8": Output(binary=True, dtype=torch.int8, residual=floats),
        "saturated": Output(inv_scale=torch.tensor(1e30), zero_point=7),
    }


@pytest.mark.parametrize("groups", [1, 12])
@pytest.mark.parametrize("name", outputs())
def test_outputs(name: str, groups: int) -> None:
    out = outputs()[name]
    codes, x = random_weight(4, 12, 12 // groups, 3, 3), random_x(torch.uint8, 2, 12, 7, 5)
    got, want = run(
        x, codes, 4, Input(zero_point=128), out, padding=(1, 1), groups=groups, scale=torch.randn(12) * 0.003
    )
    # the interpreter cuts off the low bits where a GPU rounds to bfloat16
    if out.dtype == torch.bfloat16 and DEVICE == "cpu":
        torch.testing.assert_close(got, want, rtol=2**-7, atol=0)
    else:
        assert torch.equal(got, want)
    assert got.float().unique().numel() > 1


@pytest.mark.parametrize("groups", [1, 4])
def test_scales_without_meaning_count_as_zero(groups: int) -> None:
    scale = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    codes, x = random_weight(8, 4, 4 // groups, 1, 1), random_x(torch.uint8, 1, 4, 3, 3)
    out = Output(inv_scale=torch.tensor(1.0), zero_point=9)
    got, want = run(x, codes, 8, Input(), out, scale=scale, groups=groups)
    assert torch.equal(got, want) and (got[:, 0] == 9).all()


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("groups", [1, 17])
def test_extremes(bits: int, groups: int) -> None:
    low, high = layout.code_range(bits)
    for weight, dtype, value, zero in (
        (low, torch.uint8, 255, 0),
        (high, torch.int8, -128, 127),
        (low, torch.int8, -128, -128),
        (high, torch.uint8, 0, 255),
    ):
        codes = torch.full((17, 17 // groups, 3, 3), weight, dtype=torch.int8)
        x = torch.full((1, 17, 4, 4), value, dtype=dtype)
        got, want = run(x, codes, bits, Input(zero_point=zero), padding=(1, 1), scale=torch.ones(17), groups=groups)
        assert torch.equal(got, want)


STATIC = {
    "uint8": {"zero_point": 37},
    "int8": {"qmin": -128, "qmax": 127, "zero_point": 5},
    "4 bits": {"qmax": 15},
    "odd range": {"qmin": -100, "qmax": 140, "zero_point": 20},
    "binary": {"binary": True},
}


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (20, 1), (6, 6)])
def test_floats_are_quantized_first(name: str, channels: int, groups: int) -> None:
    options: dict[str, Any] = STATIC[name]
    given = Input(inv_scale=None if options.get("binary") else torch.tensor(30.0), **options)
    x = torch.randn(2, channels, 8, 9) * 3
    x[0, 0, 0, :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.05])
    codes = random_weight(2, 12, channels // groups, 3, 3)
    for layout_of_x in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        got, want = run(layout_of_x, codes, 2, given, padding=(1, 1), stride=2, groups=groups)
        assert torch.equal(got, want)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (18, 1), (18, 2), (6, 6)])
def test_weight_only(bits: int, dtype: torch.dtype, channels: int, groups: int) -> None:
    codes, x = random_weight(bits, 12, channels // groups, 3, 3), random_x(dtype, 2, channels, 7, 5)
    got, want = run(x, codes, bits, Input(), padding=(1, 1), groups=groups, bias=torch.randn(12))
    assert (got - want).abs().mean() < 1e-3 * want.abs().mean()


def test_any_strides_and_tiles() -> None:
    codes, x = random_weight(4, 40, 24, 3, 3), random_x(torch.uint8, 2, 6, 5, 24).permute(0, 3, 2, 1)
    residual = torch.randn(2, 6, 5, 40).permute(0, 3, 2, 1)
    for rows, columns, split in ((16, 16, 1), (64, 32, 2), (128, 128, 4)):
        config = Config((("BM", rows), ("BN", columns), ("S", 64), ("SPLIT", split)))
        got, want = run(x, codes, 4, Input(), Output(residual=residual), padding=(1, 1), config=config)
        assert torch.equal(got, want)


@pytest.mark.parametrize("groups", [1, 6])
def test_long_offsets(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    for module in (conv_input, quant_conv2d):
        monkeypatch.setattr(module, "wide", lambda *tensors: True)
    for x, given in (
        (random_x(torch.uint8, 2, 6, 5, 7), Input(zero_point=4)),
        (torch.randn(2, 6, 5, 7), Input(inv_scale=torch.tensor(30.0))),
    ):
        got, want = run(x, random_weight(2, 6, 6 // groups, 3, 3), 2, given, padding=(1, 1), groups=groups)
        assert torch.equal(got, want)


@pytest.mark.parametrize("bits", layout.BITS)
def test_expanded_weights(bits: int) -> None:
    codes, x = random_weight(bits, 9, 40, 3, 3), random_x(torch.uint8, 1, 40, 5, 6)
    got, want = run(x, codes, bits, Input(zero_point=2), padding=(1, 1), expand=True)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_split_sum_with_spare_weights(dtype: torch.dtype) -> None:
    codes, x = random_weight(1, 9, 70, 3, 3), random_x(dtype, 1, 70, 4, 5)
    config = Config((("BM", 64), ("BN", 16), ("S", 32), ("SPLIT", 2)))
    out = Output(inv_scale=torch.tensor(20.0), zero_point=100, residual=torch.randn(1, 9, 4, 5), relu=True)
    got, want = run(x, codes, 1, Input(zero_point=5), out, padding=(1, 1), config=config, bias=torch.randn(9))
    assert torch.equal(got, want)


def test_eight_bit_blocks_are_free() -> None:
    codes, x = random_weight(8, 16, 128, 3, 1), random_x(torch.int8, 1, 128, 6, 3)
    for block in (32, 64, 128):
        config = Config((("BM", 16), ("BN", 16), ("S", block), ("SPLIT", 1)))
        got, want = run(x, codes, 8, Input(zero_point=-9), padding=(1, 0), config=config)
        assert torch.equal(got, want)


def test_empty_batch() -> None:
    for channels, groups in ((3, 1), (20, 1), (4, 4)):
        codes = random_weight(8, 4, channels // groups, 3, 3)
        for dtype, given in ((torch.uint8, Input()), (torch.float32, Input(inv_scale=torch.tensor(1.0)))):
            got, want = run(random_x(dtype, 0, channels, 5, 5), codes, 8, given, groups=groups)
            assert got.shape == want.shape == (0, 4, 3, 3)


def test_refuses_inputs_without_a_kernel() -> None:
    form = conv_form.prepare(layout.pack_weight(random_weight(8, 4, 4, 1, 1), 8).to(DEVICE), 8, (4, 4, 1, 1))
    x, scale = torch.randn(1, 4, 2, 2, device=DEVICE), torch.ones(4, device=DEVICE)
    with pytest.raises(ValueError, match="got dynamic inputs"):
        quant_conv2d.quant_conv2d(x, form, scale, given=Input(dynamic=True))
    with pytest.raises(ValueError, match=r"expected x \[N, 4, H, W\]"):
        quant_conv2d.quant_conv2d(x[:, :3], form, scale)


def test_cases_cover_the_widths() -> None:
    cases = quant_conv2d.cases()
    widths = {launch.constants["BITS"] for case in cases for launch in case.launches if "BITS" in launch.constants}
    assert widths == set(layout.BITS) and len({case.name for case in cases}) == len(cases)
