"""The Triton matmul against the reference: every width and kind of activation, odd sizes, groups, extremes, tails."""

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from triton_kernels import layout, quant_matmul, reference, weight_only
from triton_kernels.planar import Planar, prepare_matmul, to_planar
from triton_kernels.quant_matmul import quant_matmul as run
from triton_kernels.spec import NO_OUTPUT, Input, Output
from triton_kernels.tuning import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INV = torch.tensor(20.3, device=DEVICE)
KINDS = {
    "static": Input(inv_scale=INV, zero_point=30),
    "signed": Input(inv_scale=INV, zero_point=-3, qmin=-128, qmax=127),
    "binary": Input(binary=True),
    "dynamic": Input(dynamic=True),
    "uint8": Input(zero_point=77),
    "int8": Input(zero_point=-7),
    "packed1": Input(bits=1, binary=True),
    "packed2": Input(bits=2, zero_point=1),
    "packed4": Input(bits=4, zero_point=8),
}


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated without a value holds one that no test expects."""
    torch.manual_seed(0)
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> Tensor:
        made = empty(*args, **options)
        return made if made.is_meta else made.fill_(float("nan") if made.is_floating_point() else 99)

    monkeypatch.setattr(torch, "empty", poisoned)


def random_codes(bits: int, *shape: int) -> Tensor:
    low, high = layout.code_range(bits)
    codes = torch.randint(low, high + 1, shape, dtype=torch.int8, device=DEVICE)
    return torch.where(codes >= 0, 1, -1).to(torch.int8) if bits == 1 else codes


def activations(kind: str, m: int, k: int) -> Tensor:
    if kind.startswith("packed"):
        return layout.pack(random_codes(KINDS[kind].bits, m, k), KINDS[kind].bits)
    if kind in ("uint8", "int8"):
        dtype = getattr(torch, kind)
        info = torch.iinfo(dtype)
        return torch.randint(info.min, info.max + 1, (m, k), dtype=dtype, device=DEVICE)
    return torch.randn(m, k, device=DEVICE) * 3


def config(m: int, n: int, k: int, split: int) -> Config:
    return Config((("BM", m), ("BN", n), ("BK", k), ("SPLIT", split)), num_warps=4, num_stages=3)


def both(
    x: Tensor,
    codes: Tensor,
    bits: int,
    given: Input,
    out: Output = NO_OUTPUT,
    *,
    group: int | None = None,
    bias: bool = True,
    tiles: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """(the kernel's result, the reference's) with random scales and bias."""
    n, k = codes.shape
    packed = layout.pack(codes, bits)
    scale = torch.randn(n, k // group, device=DEVICE) * 0.01 if group else torch.randn(n, device=DEVICE) * 0.01
    offset = torch.randn(n, device=DEVICE) if bias else None
    got = run(x, prepare_matmul(packed, bits, (n, k), group), scale, offset, given, out, config=tiles)
    want = reference.quant_matmul(x, packed, bits, (n, k), scale, offset, given=given, out=out)
    assert got.dtype == want.dtype
    return got, want


def close(got: Tensor, want: Tensor, limit: float = 1e-3) -> bool:
    return bool((got.float() - want.float()).abs().mean() <= limit * want.float().abs().mean())


def unplanar(planar: Planar, group: int, k: int) -> Tensor:
    """The codes of a planar layout, by its definition."""
    word, bits = planar.words.element_size() * 8, planar.bits
    words = planar.words.to(torch.int64).reshape(len(planar.words), planar.blocks, planar.block)
    shifts = [word - (j + 1) * bits if word == 8 else j * bits for j in range(planar.fields)]
    fields = torch.stack([(words >> shift) & ((1 << bits) - 1) for shift in shifts], 2)
    codes = 1 - 2 * fields if bits == 1 else fields - ((fields >> (bits - 1)) << bits)
    groups = codes.flatten(1)[:, : k // group * planar.padded].reshape(len(codes), -1, planar.padded)
    return groups[..., :group].reshape(len(codes), k).to(torch.int8)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize(("k", "group"), [(1, None), (63, None), (520, None), (63, 7), (256, 64), (1536, 512)])
def test_planar(bits: int, k: int, group: int | None) -> None:
    codes = random_codes(bits, 3, k)
    form = prepare_matmul(layout.pack(codes, bits), bits, (3, k), group)
    for planar in (form.planar, form.halves):
        assert torch.equal(unplanar(planar, group or k, k), codes)
        assert planar.padded % planar.block == 0
    sums = codes.to(torch.int32).reshape(3, -1, group or k).sum(-1, dtype=torch.int32)
    assert torch.equal(form.wsum, sums)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_integer(bits: int, kind: str) -> None:
    for m, n, k, tiles in (
        (3, 5, 1, None),
        (1, 17, 129, config(16, 32, 32, 2)),
        (17, 63, 520, config(8, 32, 16, 1)),
        (2, 5, 63, None),
    ):
        got, want = both(activations(kind, m, k), random_codes(bits, n, k), bits, KINDS[kind], tiles=tiles)
        assert torch.equal(got, want), (m, n, k)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize(("k", "group"), [(256, 64), (63, 7), (1024, 512), (384, 128)])
def test_groups(bits: int, k: int, group: int) -> None:
    """Unsplit sums are taken in the reference's order and equal it."""
    tiles = config(16, 32, to_planar(random_codes(bits, 1, k), bits, group, word=8).block, 1)
    for kind in ("static", "dynamic", "int8"):
        x, codes = activations(kind, 3, k), random_codes(bits, 7, k)
        got, want = both(x, codes, bits, KINDS[kind], group=group, tiles=tiles)
        assert torch.equal(got, want), kind
    assert close(*both(x, codes, bits, KINDS["int8"], group=group), limit=1e-6)
    assert close(*both(torch.randn(3, k, device=DEVICE), codes, bits, Input(), group=group))


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weight_only(bits: int, dtype: torch.dtype) -> None:
    for m, n, k, tiles in (
        (3, 5, 1, None),
        (1, 17, 129, config(16, 32, 16, 2)),
        (17, 63, 520, config(8, 32, 16, 1)),
        (2, 5, 2048, None),
    ):
        x = torch.randn(m, k, device=DEVICE).to(dtype)
        got, want = both(x, random_codes(bits, n, k), bits, Input(), Output(dtype=dtype), tiles=tiles)
        assert close(got, want, 1e-4 if dtype == torch.float32 else 1e-3), (m, n, k)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("code", [-128, 127])
def test_extremes(bits: int, code: int) -> None:
    """The largest sums, of both signs."""
    low, high = layout.code_range(bits)
    x = torch.full((2, 520), code, dtype=torch.int8, device=DEVICE)
    for weight in (low, high):
        codes = torch.full((3, 520), weight, dtype=torch.int8, device=DEVICE)
        assert torch.equal(*both(x, codes, bits, Input(zero_point=-code - 1)))
        assert torch.equal(*both(x.view(torch.uint8) | 0x80, codes, bits, Input(zero_point=255)))


def test_non_finite_activations() -> None:
    """NaN counts as the real zero, infinities saturate; without quantization both spread as in the reference."""
    x = torch.randn(4, 70, device=DEVICE)
    x[0, 3], x[1, 4], x[2, 5] = float("nan"), float("inf"), float("-inf")
    codes = random_codes(4, 9, 70) | 1
    for kind in ("static", "signed", "binary"):
        assert torch.equal(*both(x, codes, 4, KINDS[kind]))
    got, want = both(x, codes, 4, Input())
    for row in range(3):
        assert torch.equal(got[row].nan_to_num(7), want[row].nan_to_num(7))
    assert close(got[3], want[3])


def test_tails() -> None:
    """Every combination of residual, ReLU and output, from one and from several parts of K."""
    m, n, k = 3, 19, 70
    x, codes = activations("static", m, k), random_codes(4, n, k)
    units = torch.randint(0, 256, (m, n), dtype=torch.uint8, device=DEVICE)
    residuals: list[dict[str, Any]] = [
        {},
        {"residual": torch.randn(m, n, device=DEVICE)},
        {"residual": torch.randn(n, m, device=DEVICE).half().t()},
        {"residual": units, "residual_scale": INV * 0.01, "residual_zero_point": 100},
        {"residual": units.view(torch.int8), "residual_scale": INV * 0.01},
    ]
    outputs: list[dict[str, Any]] = [
        {},
        {"dtype": torch.float16},
        {"inv_scale": INV, "zero_point": 7},
        {"inv_scale": INV * 1e30, "zero_point": -1, "qmin": -128, "qmax": 127, "dtype": torch.int8},
        {"inv_scale": INV, "zero_point": 2, "qmax": 15},
        {"binary": True, "zero_point": 1},
        {"binary": True, "dtype": torch.int8},
    ]
    for i, (residual, output, relu) in enumerate(itertools.product(residuals, outputs, (False, True))):
        out = Output(relu=relu, **residual, **output)
        tiles = config(16, 32, 16, 1 + i % 2)
        got, want = both(x, codes, 4, KINDS["static"], out, bias=i % 3 > 0, tiles=tiles)
        assert torch.equal(got, want), out


def test_requantized_non_finite() -> None:
    """Codes of results that are NaN (the zero point) or infinite (a limit)."""
    x = torch.full((3, 5), 1.0, dtype=torch.float16, device=DEVICE)
    x[:, 0] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    codes = torch.ones(6, 5, dtype=torch.int8, device=DEVICE)
    out = Output(inv_scale=INV, zero_point=9)
    assert torch.equal(*both(x, codes, 2, Input(), out))


def test_shapes_and_strides() -> None:
    """Leading dimensions, an input without rows, a transposed input, rows at a distance, a single scale column."""
    codes = random_codes(2, 6, 40)
    packed = layout.pack(codes, 2)
    form, scale = prepare_matmul(packed, 2, (6, 40)), torch.rand(6, 1, device=DEVICE)
    wide = activations("int8", 12, 80)
    for x in (wide[:, :40].reshape(2, 3, 2, 40), wide[:, 10:50], wide.t()[:40].t(), wide[:0, :40], wide[0, :40]):
        want = reference.quant_matmul(x, packed, 2, (6, 40), scale)
        assert torch.equal(run(x, form, scale), want)
        for given in (Input(), KINDS["dynamic"]):
            assert run(x.to(torch.float32), form, scale, None, given).shape == want.shape


def test_dynamic_rows() -> None:
    """Rows longer than a block of the quantization kernel, and rows of zeros."""
    x = torch.randn(2, 17000, device=DEVICE)
    x[1] = 0
    got, want = both(x, random_codes(8, 3, 17000), 8, KINDS["dynamic"])
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("group", "scale", "given", "message"),
    [
        (7, [4], Input(), "expected a group size that divides 40, got 7"),
        (None, [5], Input(), r"expected a scale \[4, 1\]"),
        (10, [4], Input(), r"expected a scale \[4, 4\]"),
        (None, [4], Input(inv_scale=INV, qmax=300), "expected at most 256 activation codes"),
    ],
)
def test_refusals(group: int | None, scale: list[int], given: Input, message: str) -> None:
    packed = layout.pack(random_codes(4, 4, 40), 4)
    with pytest.raises(ValueError, match=message):
        run(torch.ones(2, 40, device=DEVICE), prepare_matmul(packed, 4, (4, 40), group), torch.ones(scale), None, given)


def test_candidates() -> None:
    """Every shape has a default, and all candidates of a shape compute the same."""
    x, codes = activations("int8", 9, 1100), random_codes(1, 70, 1100)
    form = prepare_matmul(layout.pack(codes, 1), 1, (70, 1100))
    found = quant_matmul.configs(form.planar, 9, 1, ("cuda", 80), groups=1)
    assert len(found) > 3
    scale = torch.rand(70, device=DEVICE)
    first, *others = (run(x, form, scale, config=found[i]) for i in (0, -1))
    assert all(torch.equal(first, other) for other in others)


def ptx(code: str, word: int, half: torch.dtype) -> Tensor:
    """What the inline assembly makes of one register, as two halves (or, for int8, four bytes)."""
    registers = {"$1": word}

    def value(text: str) -> int:
        return registers[text] if text in registers else int(text, 0)

    def halves(bits: int) -> Tensor:
        return torch.tensor([bits & 0xFFFF, bits >> 16], dtype=torch.int32).to(torch.int16).view(half).double()

    for line in re.findall(r"(?:shl|shr|and|lop3|mov|fma)\.[^;]*", code):
        name, *arguments = re.split(r",?\s+", line.strip())
        to, a, *rest = arguments
        if name == "shl.b32":
            registers[to] = value(a) << value(rest[0]) & 0xFFFFFFFF
        elif name == "shr.b32":
            registers[to] = value(a) >> value(rest[0])
        elif name == "and.b32":
            registers[to] = value(a) & value(rest[0])
        elif name == "lop3.b32":
            joined = value(a) & value(rest[0])
            registers[to] = {"0xEA": joined | value(rest[1]), "0x6A": joined ^ value(rest[1])}[rest[2]]
        elif name == "mov.b32":
            registers[to] = value(a)
        else:
            result = (halves(value(a)) * halves(value(rest[0])) + halves(value(rest[1]))).to(half)
            low, high = result.view(torch.int16).tolist()
            registers[to] = (high & 0xFFFF) << 16 | low & 0xFFFF
    found = registers["$0"]
    if half == torch.int8:
        return torch.tensor([found >> 8 * i & 0xFF for i in range(4)], dtype=torch.uint8).view(torch.int8)
    return halves(found)


@pytest.mark.parametrize("bits", layout.BITS)
def test_assembly(bits: int) -> None:
    """The PTX that the interpreter cannot run, executed here: every code in every field."""
    low, high = layout.code_range(bits)
    every = torch.tensor([-1, 1] if bits == 1 else range(low, high + 1), dtype=torch.int8)
    for word in (8, 16):
        codes = every[torch.randint(0, len(every), (1, 2048))]
        codes[0, : len(every)] = every
        planar = to_planar(codes, bits, None, word=word)
        raw = planar.words.view(torch.int32).reshape(planar.blocks, -1)[:, :64].tolist()
        k_at = torch.arange(2048).reshape(planar.blocks, planar.fields, planar.block)
        lanes = 32 // word
        for (b, row), field in itertools.product(enumerate(raw), range(planar.fields)):
            for s, register in enumerate(row[:: 1 if bits == 8 else 5]):
                s *= 1 if bits == 8 else 5
                want = codes[0, k_at[b, field, lanes * s : lanes * (s + 1)]].double()
                register &= 0xFFFFFFFF
                if word == 16:
                    for half, brain in ((torch.bfloat16, True), (torch.float16, False)):
                        assert torch.equal(ptx(weight_only._assembly(bits, field, brain), register, half), want)
                elif bits < 8:
                    got = ptx(quant_matmul._assembly(bits, field), register, torch.int8).double()
                    assert torch.equal(got, want * (64 if bits == 1 else 1 << (8 - bits)))
