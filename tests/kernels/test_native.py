"""The native plan: equal to the chain of reference operators for every instruction set of this machine."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from triton_kernels import chain, layout, native
from triton_kernels.steps import Codes, Conv, Program, Step

pytestmark = pytest.mark.skipif(bool(native.why_not()), reason=native.why_not())
CPU = torch.device("cpu")
ISAS = native.ISAS[: native.ISAS.index(native.isa()) + 1] if not native.why_not() else ()
UNSIGNED, SIGNED = Codes(9.0, 0, 0, 255), Codes(7.0, 128, 0, 255)
NIBBLE, BINARY = Codes(3.0, 5, 0, 15), Codes(1.0, 1, 0, 0, True)


def conv(
    out: int, inside: int, kernel: tuple[int, int] = (3, 3), *, bits: int = 8, groups: int = 1, reads: Codes
) -> Conv:
    low, high = layout.code_range(bits)
    codes = torch.randint(low, high + 1, (out, inside // groups, *kernel), dtype=torch.int8)
    codes = torch.where(codes >= 0, 1, -1).to(torch.int8) if bits == 1 else codes
    shape = (out, inside // groups, *kernel)
    scale = (torch.rand(out) + 0.1) * 0.3 / 2 ** (bits - 1) / (inside * kernel[0] * kernel[1]) ** 0.5
    return Conv(
        packed=layout.pack_weight(codes, bits), bits=bits, shape=shape, scale=scale, bias=torch.randn(out) * 0.1,
        reads=reads, groups=groups,
    )  # fmt: skip


def check(program: Program, inputs: list[Tensor]) -> None:
    want = chain.Chain(program, CPU, "reference")(inputs)
    for isa in ISAS:
        for got, value in zip(native.Plan(program, use=isa)(inputs), want, strict=True):
            assert torch.equal(got, value), isa
            assert got.is_contiguous(memory_format=torch.channels_last)


def conv_step(source: int, of: Conv, **more: object) -> Step:
    return replace(Step(kind="conv", source=source, conv=of, kernel=of.shape[2:]), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("reads", [UNSIGNED, SIGNED, NIBBLE, BINARY])
@pytest.mark.parametrize(
    ("channels", "out", "groups", "size"),
    [
        (3, 16, 1, (9, 37)),
        (16, 16, 1, (8, 8)),
        (33, 7, 1, (5, 6)),
        (70, 48, 1, (7, 7)),
        (12, 8, 4, (9, 7)),
        (21, 21, 21, (6, 9)),
    ],
)
def test_convolutions(bits: int, reads: Codes, channels: int, out: int, groups: int, size: tuple[int, int]) -> None:
    torch.manual_seed(bits)
    for kernel, stride, pad, dilation in (
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((1, 1), (2, 1), (0, 0), (1, 1)),
        ((5, 3), (1, 2), (2, 0), (1, 1)),
        ((1, 3), (1, 1), (0, 2), (1, 2)),
    ):
        layer = conv(out, channels, kernel, bits=bits, groups=groups, reads=reads)
        step = conv_step(-1, layer, stride=stride, padding=pad, dilation=dilation, relu=bits == 4)
        check(Program((step,), ((channels, *size),), (0,)), [torch.randn(3, channels, *size)])


def block(source: int, reads: Codes, channels: int = 16) -> list[Step]:
    """Two convolutions with the source as residual; makes values source + 1 and source + 2."""
    first = conv_step(source, conv(channels, channels, reads=reads), padding=(1, 1), relu=True)
    second = conv_step(source + 1, conv(channels, channels, bits=2, reads=reads), padding=(1, 1))
    return [first, replace(second, residual=source, relu=True)]


def network() -> Program:
    """A residual network with everything in it, and three outputs."""
    stem = conv_step(-1, conv(16, 3, reads=SIGNED), padding=(1, 1), relu=True)
    steps = [stem, *block(0, UNSIGNED), *block(2, NIBBLE)]  # values 0..4
    down = conv_step(4, conv(32, 16, bits=1, reads=UNSIGNED), padding=(1, 1), stride=(2, 2), relu=True)
    side = conv_step(4, conv(32, 16, (1, 1), reads=NIBBLE), stride=(2, 2))  # the same value in other codes
    steps += [down, side, conv_step(5, conv(32, 32, bits=4, reads=BINARY), padding=(1, 1), residual=6)]  # 5, 6, 7
    steps += [
        Step(kind="pad_shortcut", source=4, stride=(2, 2), front=7, channels=32),  # 8
        Step(kind="add", source=7, residual=8, relu=True),  # 9
        Step(kind="max_pool", source=9, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),  # 10
        Step(kind="mean", source=10),  # 11
        conv_step(11, conv(10, 32, (1, 1), reads=UNSIGNED)),  # 12
        conv_step(10, conv(5, 32, (5, 7), reads=UNSIGNED)),  # 13: a linear layer on a flattened image
    ]
    return Program(tuple(steps), ((3, 17, 26),), (12, 9, 13))


def test_a_network_with_everything() -> None:
    torch.manual_seed(0)
    program = network()
    assert program.shape(13) == (5, 1, 1) and program.shape(9) == (32, 9, 13)
    check(program, [torch.randn(3, 3, 17, 26)])
    check(program, [torch.randn(5, 3, 17, 26).contiguous(memory_format=torch.channels_last)])
    check(program, [torch.randn(2, 3, 26, 17).transpose(2, 3)])


def test_batches_threads_and_repeated_calls() -> None:
    torch.manual_seed(0)
    plan, x = native.Plan(network()), torch.randn(7, 3, 17, 26)
    whole = plan([x])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for got, want in zip(plan([x]), whole, strict=True):
                assert torch.equal(got, want)
            for got, want in zip(plan([x[2:3]]), whole, strict=True):
                assert torch.equal(got, want[2:3])
    finally:
        torch.set_num_threads(before)
    assert [y.shape[0] for y in plan([x[:0]])] == [0, 0, 0]


def test_extreme_values_saturate_and_nan_is_the_zero_point() -> None:
    layer = conv(8, 3, (1, 1), reads=SIGNED)
    layer = replace(layer, scale=torch.full((8,), 1e30), bias=torch.zeros(8))
    second = conv(4, 8, (1, 1), reads=NIBBLE)
    program = Program((conv_step(-1, layer), conv_step(0, second)), ((3, 2, 2),), (1,))
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 3e38]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    check(program, [x.contiguous()])
    with_residual = Program((conv_step(-1, layer, residual=-2), conv_step(0, conv(4, 8, (1, 1), reads=UNSIGNED))),
                            ((3, 2, 2), (8, 2, 2)), (1,))  # fmt: skip
    check(with_residual, [x.contiguous(), torch.full((1, 8, 2, 2), float("nan"))])


def test_wide_layers_read_nothing_outside_of_the_arena() -> None:
    # as the last value in the arena, with tiles that reach far past its last pixel
    for channels, size in ((4096, (1, 1)), (2048, (1, 3)), (512, (3, 3))):
        layer = conv(33, channels, (1, 1), reads=UNSIGNED)
        program = Program((conv_step(-1, layer, stride=(1, 2)),), ((channels, *size),), (0,))
        check(program, [torch.randn(2, channels, *size)])
        assert native._slack(program) >= 15 * 2 * channels + 64


def test_sums_beyond_float32() -> None:
    layer = conv(4, 1024, reads=UNSIGNED)
    layer = replace(layer, packed=layout.pack_weight(torch.full((4, 1024, 3, 3), 127, dtype=torch.int8), 8))
    layer = replace(layer, scale=torch.full((4,), 1e-7))
    check(Program((conv_step(-1, layer),), ((1024, 4, 4),), (0,)), [torch.full((1, 1024, 4, 4), 100.0)])


@pytest.mark.parametrize("channels", [32, 64, 96, 512])
def test_mean_is_torchs_own(channels: int) -> None:
    for size in ((1, 1), (3, 5), (4, 4), (7, 7), (8, 8), (13, 17), (32, 33), (64, 70)):
        program = Program((Step(kind="mean", source=-1),), ((channels, *size),), (0,))
        check(program, [torch.randn(2, channels, *size).contiguous(memory_format=torch.channels_last)])
        assert native.mean_is_exact(channels, *size)


def test_mean_in_another_order_is_found_out() -> None:
    program = Program((Step(kind="mean", source=-1),), ((10, 7, 7),), (0,))
    x = torch.randn(2, 10, 7, 7).contiguous(memory_format=torch.channels_last)
    (got,) = native.Plan(program)([x])
    torch.testing.assert_close(got, x.mean((2, 3), keepdim=True))
    assert native.mean_is_exact(10, 7, 7) == torch.equal(got, x.mean((2, 3), keepdim=True))


def test_errors_name_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    program = network()
    plan = native.Plan(program)
    with pytest.raises(ValueError, match=r"expected a float32 batch \[N, 3, 17, 26\], got float32 \[2, 3, 17, 25\]"):
        plan([torch.randn(2, 3, 17, 25)])
    with pytest.raises(ValueError, match="got float64"):
        plan([torch.randn(2, 3, 17, 26).double()])
    with pytest.raises(ValueError, match=r"expected one of .* on this machine, got 'neon'"):
        native.Plan(program, use="neon")
    with pytest.raises(ValueError, match="only equal shapes can be added"):
        Program((Step(kind="add", source=-1, residual=-2),), ((3, 4, 4), (3, 4, 5)), (0,))
    with pytest.raises(ValueError, match="the layers do not fit"):
        Program((conv_step(-1, conv(4, 5, reads=UNSIGNED)),), ((3, 8, 8),), (0,))
    many = tuple(conv_step(-1, conv(4, 3, reads=replace(UNSIGNED, inverse=float(i + 1)))) for i in range(9))
    crowded = Program(many, ((3, 8, 8),), tuple(range(9)))
    assert "9 different codes" in native.why_not_program(crowded)
    assert chain.choices(crowded, CPU) == ["auto"] and chain.choices(program, CPU) == ["native", "auto"]
    with pytest.raises(ValueError, match='impl "native" needs, but a value is read in 9'):
        chain.executor(crowded, CPU, "native")
    monkeypatch.setattr(native, "_library", lambda: "no C++ compiler was found; install g++ or set CXX")
    assert chain.choices(program, CPU) == ["auto"]
    with pytest.raises(ValueError, match='impl "native" needs, but no C'):
        chain.executor(program, CPU, "native")


def test_a_missing_or_broken_compiler_is_one_sentence(tmp_path: Path) -> None:
    script = "from triton_kernels import native; print(native.why_not())"
    for compiler, message in (("/nonexistent/g++", "cannot be run"), ("/bin/false", "refused the source")):
        environment = {**os.environ, "CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert message in done.stdout and done.stdout.count("\n") == 1


def test_a_shortcut_that_only_a_convolution_reads() -> None:
    steps = (
        Step(kind="pad_shortcut", source=-1, stride=(2, 2), front=30, channels=64),
        conv_step(0, conv(8, 64, reads=UNSIGNED), padding=(1, 1)),
    )
    check(Program(steps, ((4, 16, 16),), (1,)), [torch.randn(2, 4, 16, 16)])
    with pytest.raises(ValueError, match="a shortcut that adds channels"):
        Program((Step(kind="pad_shortcut", source=-1, stride=(2, 2), front=-2, channels=4),), ((8, 4, 4),), (0,))


def test_nan_goes_on_and_a_value_may_be_output_twice() -> None:
    x = torch.randn(2, 8, 6, 6)
    x[0, 1, 2, 3] = x[1, 7, 0, 0] = float("nan")
    steps = (Step(kind="add", source=-1, relu=True), Step(kind="max_pool", source=0, kernel=(2, 2), stride=(2, 2)))
    plan = native.Plan(Program(steps, ((8, 6, 6),), (1, 0, 1)))
    got = plan([x])
    chained = chain.Chain(plan.program, CPU, "reference")([x])
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(got, chained, strict=True))
    assert got[0].data_ptr() != got[2].data_ptr() and bool(got[0].isnan().any())


def test_tensors_of_another_device_are_refused() -> None:
    plan = native.Plan(network())
    with pytest.raises(ValueError, match="expected CPU tensors"):
        plan([torch.empty(2, 3, 17, 26, device="meta")])
    x = torch.ones(2, 3, 17, 26)
    want = native.Plan(plan.program)([x])
    with torch.device("meta"):  # what torch makes without being told where
        assert torch.equal(plan([x])[0], want[0])
