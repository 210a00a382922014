"""Binary products by population count: bit for bit the reference, at odd sizes and with rubbish in the filling bits."""

import pytest
import torch
from torch import Tensor

from triton_kernels import layout, reference
from triton_kernels.binary_matmul import _COLUMNS, _STEP, BinaryForm, binary_matmul, candidates, cases, prepare
from triton_kernels.spec import Input, Output
from triton_kernels.tuning import Config

VECTOR, TILE = Config((("BN", 16), ("BW", 4)), 1), Config((("BM", 8), ("BN", 16)), 1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def weights(n: int, k: int) -> Tensor:
    return layout.pack(torch.where(torch.rand(n, k) < 0.5, -1, 1).to(torch.int8), 1).to(DEVICE)


def rows(m: int, k: int, bits: int) -> Tensor:
    """Packed rows whose filling bits are set at random, as a kernel must not mind."""
    return torch.randint(0, 256, (m, layout.row_bytes(k, bits)), dtype=torch.uint8, device=DEVICE)


def check(x: Tensor, packed: Tensor, n: int, k: int, given: Input, out: Output, config: Config | None) -> None:
    scale, bias = torch.rand(n, device=DEVICE) * 0.05, torch.randn(n, device=DEVICE)
    got = binary_matmul(x, prepare(packed, (n, k), given.bits), scale, bias, given, out, config=config)
    want = reference.quant_matmul(x, packed, 1, (n, k), scale, bias, given=given, out=out)
    assert got.dtype == want.dtype and torch.equal(got, want)


@pytest.mark.parametrize("config", [VECTOR, TILE], ids=["vector", "tile"])
@pytest.mark.parametrize("given", [Input(bits=1, binary=True), Input(bits=1, zero_point=1), Input(bits=2),
                                   Input(bits=2, zero_point=2), Input(bits=2, binary=True)], ids=str)  # fmt: skip
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 21, 63), (9, 17, 128), (2, 5, 1000), (2, 0, 8), (2, 3, 0)])
def test_equals_reference(config: Config, given: Input, m: int, n: int, k: int) -> None:
    torch.manual_seed(m * n + k)
    check(rows(m, k, given.bits), weights(n, k), n, k, given, Output(), config)


@pytest.mark.parametrize("config", [VECTOR, TILE], ids=["vector", "tile"])
def test_outputs(config: Config) -> None:
    torch.manual_seed(1)
    m, n, k = 5, 19, 70
    x, packed, given = rows(m, k, 2), weights(n, k), Input(bits=2, zero_point=1)
    residual = torch.randint(0, 256, (n, m), dtype=torch.uint8, device=DEVICE).t()
    half = torch.tensor(0.5, device=DEVICE)
    for out in (
        Output(dtype=torch.float16, relu=True),
        Output(
            residual=residual, residual_scale=half, residual_zero_point=128, inv_scale=half * 30, qmax=15, relu=True
        ),
        Output(residual=residual.float(), inv_scale=half, zero_point=-3, qmin=-128, qmax=127, dtype=torch.int8),
        Output(binary=True, zero_point=1),
    ):
        check(x, packed, n, k, given, out, config)


def test_default_configurations_and_leading_dimensions() -> None:
    torch.manual_seed(2)
    n, k, given = 40, 96, Input(bits=1, binary=True)
    packed, scale = weights(n, k), torch.ones(n, device=DEVICE)
    form = prepare(packed, (n, k), 1)
    for shape in ((), (0,), (2, 3), (2, 5)):
        x = rows(torch.Size(shape).numel(), k, 1).view(*shape, k // 8)
        got = binary_matmul(x, form, scale, None, given)
        assert torch.equal(got, reference.quant_matmul(x, packed, 1, (n, k), scale, given=given))
    assert all({"BN", "BW"} == set(c.constants) for c in candidates(1, 12))


def test_unaligned_and_strided_rows() -> None:
    n, k = 7, 64
    packed, wide = weights(n, k), rows(4, 160, 1)
    for x in (wide[:, 3:11], wide.flatten()[5:21].view(2, 8), wide[::2, :8]):
        check(x, packed, n, k, Input(bits=1, binary=True), Output(), VECTOR)


def test_filling_bits_of_weights_are_ignored() -> None:
    packed = weights(3, 13)
    dirty = packed.clone()
    dirty[:, -1] |= 0xE0
    a, b = prepare(packed, (3, 13), 2), prepare(dirty, (3, 13), 2)
    assert torch.equal(a.words, b.words) and torch.equal(a.wsum, b.wsum) and a.words.shape == (_STEP, _COLUMNS)


def test_refuses() -> None:
    form: BinaryForm = prepare(weights(3, 13), (3, 13), 2)
    with pytest.raises(ValueError, match="1 or 2 bits"):
        prepare(weights(3, 13), (3, 13), 4)
    with pytest.raises(ValueError, match="expected a packed weight"):
        prepare(weights(3, 13), (3, 23), 1)
    with pytest.raises(ValueError, match="packed 2-bit rows"):
        binary_matmul(rows(2, 13, 1), form, torch.ones(3), None, Input(bits=1, binary=True))
    with pytest.raises(ValueError, match="one scale for each"):
        binary_matmul(rows(2, 13, 2), form, torch.ones(3, 2), None, Input(bits=2))


def test_cases_are_planned_on_meta() -> None:
    assert all(len(case.launches) == 1 for case in cases())
