"""The layout of power-of-two weights: test vectors, every width at odd sizes, and the errors."""

import pytest
import torch

from triton_kernels import codebook, layout

VECTORS = [
    (2, [0, 1, -1, 1], "74"),
    (3, [0, 1, -1, 2, -2], "48 65"),
    (4, [1, -8, 0], "c1 00"),
    (5, [1, -128, 0, 16], "01 83 02"),
    (6, [-1, 32768, 0], "21 04 00"),
    (7, [-1, 2147483648, 0], "41 10 00"),
    (8, [-1, 9223372036854775808], "81 40"),
]


def values_of(bits: int, *shape: int) -> torch.Tensor:
    """Random values of the codebook, with every one of them where the shape has room."""
    table = codebook.values_of(bits)
    table = table[~table.isnan()]
    assert len(table) == 2 ** (bits - 1) + 1
    return table[
        torch.randperm(max(len(table), torch.Size(shape).numel()))[: torch.Size(shape).numel()] % len(table)
    ].view(shape)


@pytest.mark.parametrize(("bits", "values", "packed"), VECTORS)
def test_pack_vectors(bits: int, values: list[int], packed: str) -> None:
    row = torch.tensor([[float(v) for v in values]])
    got = codebook.pack_weight(row, bits)
    assert bytes(got[0].tolist()).hex(" ") == packed
    assert f"{' '.join(map(str, values))} " in codebook.__doc__ and f" {packed}\n" in codebook.__doc__
    assert torch.equal(codebook.unpack_weight(got, bits, row.shape), row)


@pytest.mark.parametrize("bits", codebook.BITS)
@pytest.mark.parametrize("shape", [(7, 5), (3, 1), (15, 3, 3, 5), (9, 1, 3, 3), (5, 131, 1, 1), (2, 0)])
def test_pack_weight_round_trip(bits: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(bits)
    values = values_of(bits, *shape)
    for weight in (values, values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values):
        packed = codebook.pack_weight(weight, bits)
        k = torch.Size(shape[1:]).numel()
        assert packed.dtype == torch.uint8 and packed.shape == (shape[0], codebook.row_bytes(k, bits))
        assert torch.equal(codebook.unpack_weight(packed, bits, shape), values)


@pytest.mark.parametrize("bits", codebook.BITS)
def test_pack_places_every_element_at_its_bit(bits: int) -> None:
    torch.manual_seed(bits)
    values = values_of(bits, 1, 13)
    number = int.from_bytes(bytes(codebook.pack_weight(values, bits)[0].tolist()), "little")
    stored = [number >> (i * bits) & ((1 << bits) - 1) for i in range(13)]
    want = [0 if v == 0 else int(abs(v)).bit_length() + (v < 0) * 2 ** (bits - 1) for v in values[0].tolist()]
    assert stored == want
    assert number >> (13 * bits) == 0, "the filling bits are zero"


def test_rows_are_those_of_the_integer_layout() -> None:
    codes = torch.randint(-1, 2, (3, 5, 3, 2), dtype=torch.int8)
    twice = layout.pack_weight(codes, 4), codebook.pack_weight(codes.float(), 4)
    fields = [torch.stack([rows & 15, rows >> 4], -1).flatten(1) for rows in twice]
    assert torch.equal(torch.tensor([9, 0, 1], dtype=torch.uint8)[(fields[0] - 7).long()], fields[1])


@pytest.mark.parametrize("bits", codebook.BITS)
def test_pack_refuses_other_values(bits: int) -> None:
    for value in (3.0, 0.5, -(2.0**2 ** (bits - 2)), torch.nan, torch.inf):
        with pytest.raises(ValueError, match=rf"expected weights of 0 and \+-2\^i .* at {bits} bits"):
            codebook.pack_weight(torch.tensor([[1.0, value]]), bits)


@pytest.mark.parametrize("bits", codebook.BITS)
def test_unpack_refuses_codes_that_mean_nothing(bits: int) -> None:
    table, refused = codebook.values_of(bits), 0
    for stored in table.isnan().nonzero().flatten().tolist():
        row = torch.tensor([list((stored << bits).to_bytes(2, "little"))], dtype=torch.uint8)
        with pytest.raises(ValueError, match=rf"got {stored}, which means nothing"):
            codebook.unpack_weight(row[:, : codebook.row_bytes(2, bits)], bits, (1, 2))
        refused += 1
    assert refused == 2**bits - 2 ** (bits - 1) - 1


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"bits of powers of two to be one of .*, got 1"):
        codebook.row_bytes(3, 1)
    with pytest.raises(ValueError, match=r"expected packed powers of two uint8 \[2, 4\] for shape \[2, 6\] at 5 bits"):
        codebook.unpack_weight(torch.zeros(2, 3, dtype=torch.uint8), 5, (2, 6))
    with pytest.raises(ValueError, match="4-D OIHW or 2-D"):
        codebook.pack_weight(torch.zeros(3), 5)
