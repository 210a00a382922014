"""The bit layout: test vectors, round trips at odd sizes, and the errors."""

import pkgutil
import re
import subprocess
import sys

import pytest
import torch

import triton_kernels
from triton_kernels import layout

VECTORS = [
    (1, [1, -1, -1, 1, 1, -1, -1, -1, 1], "19 01"),
    (2, [-2, -1, 0, 1, 1], "e4 03"),
    (4, [-8, 7, 0], "f0 08"),
    (8, [-128, 0, 127], "00 80 ff"),
]


def codes_of(bits: int, *shape: int) -> torch.Tensor:
    low, high = layout.code_range(bits)
    codes = torch.randint(low, high + 1, shape, dtype=torch.int8)
    return torch.where(codes >= 0, 1, -1).to(torch.int8) if bits == 1 else codes


@pytest.mark.parametrize(("bits", "codes", "packed"), VECTORS)
def test_pack_vectors(bits: int, codes: list[int], packed: str) -> None:
    got = layout.pack(torch.tensor(codes, dtype=torch.int8), bits)
    assert bytes(got.tolist()).hex(" ") == packed
    assert f"{packed}\n" in layout.__doc__
    assert layout.unpack(got, bits, len(codes)).tolist() == codes


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("k", [0, 1, 3, 7, 8, 9, 63, 1000])
def test_pack_round_trip(bits: int, k: int) -> None:
    codes = codes_of(bits, 5, 2, k)
    packed = layout.pack(codes, bits)
    assert packed.shape == (5, 2, layout.row_bytes(k, bits)) and packed.dtype == torch.uint8
    assert torch.equal(layout.unpack(packed, bits, k), codes)


@pytest.mark.parametrize("bits", layout.BITS)
def test_pack_places_every_element_at_its_bit(bits: int) -> None:
    codes = codes_of(bits, 13)
    number = int.from_bytes(bytes(layout.pack(codes, bits).tolist()), "little")
    stored = [number >> (i * bits) & ((1 << bits) - 1) for i in range(13)]
    want = [(v + 1) // 2 if bits == 1 else v + 2 ** (bits - 1) for v in codes.tolist()]
    assert stored == want
    assert number >> (13 * bits) == 0, "the filling bits are zero"


@pytest.mark.parametrize("bits", layout.BITS)
def test_pack_non_contiguous_and_all_codes(bits: int) -> None:
    low, high = layout.code_range(bits)
    every = torch.tensor([v for v in range(low, high + 1) if bits > 1 or v], dtype=torch.int8)
    assert torch.equal(layout.unpack(layout.pack(every, bits), bits, len(every)), every)
    codes = codes_of(bits, 9, 6).t()
    assert torch.equal(layout.pack(codes, bits), layout.pack(codes.contiguous(), bits))


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("shape", [(4, 3, 5, 3), (7, 1, 1, 1), (2, 33), (0, 3, 3, 3)])
def test_pack_weight_round_trip(bits: int, shape: tuple[int, ...]) -> None:
    codes = codes_of(bits, *shape)
    packed = layout.pack_weight(codes, bits)
    layout.check_packed(packed, bits, shape)
    assert torch.equal(layout.unpack_weight(packed, bits, shape), codes)


def test_pack_weight_puts_input_channels_fastest() -> None:
    codes = torch.arange(2 * 3 * 2 * 2, dtype=torch.int8).reshape(2, 3, 2, 2)
    rows = layout.unpack(layout.pack_weight(codes, 8), 8, 12)
    assert rows[1].tolist() == codes[1].permute(1, 2, 0).flatten().tolist()


@pytest.mark.parametrize(("bits", "value"), [(1, 0), (1, 2), (1, -2), (2, 2), (2, -3), (4, 8), (4, -9)])
def test_pack_rejects_codes_out_of_range(bits: int, value: int) -> None:
    codes = torch.ones(4, dtype=torch.int8)
    codes[2] = value
    with pytest.raises(ValueError, match=f"expected {bits}-bit codes|expected one-bit codes"):
        layout.pack(codes, bits)


def test_errors_name_what_was_expected() -> None:
    packed = layout.pack(codes_of(4, 6, 10), 4)
    with pytest.raises(ValueError, match=r"bits to be one of \(1, 2, 4, 8\), got 3"):
        layout.row_bytes(8, 3)
    with pytest.raises(ValueError, match="expected int8 codes"):
        layout.pack(torch.zeros(4), 4)
    with pytest.raises(ValueError, match=r"uint8 \[..., 6\] for 11 codes"):
        layout.unpack(packed, 4, 11)
    with pytest.raises(ValueError, match=r"expected a packed weight uint8 \[6, 3\]"):
        layout.unpack_weight(packed, 2, (6, 10))
    with pytest.raises(ValueError, match="4-D OIHW or 2-D"):
        layout.pack_weight(torch.zeros(3, dtype=torch.int8), 2)
    with pytest.raises(ValueError, match="4-D OIHW or 2-D"):
        layout.check_packed(packed, 4, (6, 2, 5))


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, triton_kernels as t; assert t.__tq__ is True; assert 'torch' not in sys.modules; t.layout.BITS"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_says_what_each_of_its_modules_is() -> None:
    modules = {module.name for module in pkgutil.iter_modules(triton_kernels.__path__)}
    assert {"layout", "spec", "native", "quant_conv2d"} <= modules <= set(dir(triton_kernels))
    assert not [name for name in modules if not re.search(rf"\b{name}\b", triton_kernels.__doc__ or "")]
    assert triton_kernels.spec.NO_OUTPUT.out_dtype == torch.float32
    with pytest.raises(AttributeError, match="has no attribute 'speck'"):
        _ = triton_kernels.speck
