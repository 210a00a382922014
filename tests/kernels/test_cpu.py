"""The oneDNN int8 path: exact against integer arithmetic, over the shapes and values that could break it."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triton_kernels import cpu

needs_conv = pytest.mark.skipif(bool(cpu.probe("int_conv2d")), reason=cpu.probe("int_conv2d"))
needs_matmul = pytest.mark.skipif(bool(cpu.probe("int_matmul")), reason=cpu.probe("int_matmul"))


def random_x(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def random_w(*shape: int, low: int = -128, high: int = 127) -> Tensor:
    return torch.randint(low, high + 1, shape, dtype=torch.int8)


def check_conv(x: Tensor, w: Tensor, stride: int, pad: int, dilation: int, groups: int, zero_point: int) -> Tensor:
    form = cpu.prepare_conv2d(w, [stride] * 2, [pad] * 2, [dilation] * 2, groups, zero_point)
    got = cpu.int_conv2d(x, form)
    want = F.conv2d(x.double() - zero_point, w.double(), None, stride, pad, dilation, groups)
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, want.float())
    return want


# in, out, groups: the stem, odd counts, wide, one channel, groups, depthwise, depthwise with a multiplier
CHANNELS = [(3, 16, 1), (5, 7, 1), (64, 32, 1), (1, 1, 1), (16, 24, 4), (32, 32, 32), (6, 12, 6)]


@needs_conv
@pytest.mark.parametrize(("channels", "out", "groups"), CHANNELS)
@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
def test_int_conv2d_is_exact(channels: int, out: int, groups: int, zero_point: int) -> None:
    torch.manual_seed(channels * 1000 + zero_point)
    for kernel, stride, dilation in itertools.product((1, 3, 5, 7), (1, 2), (1, 2)):
        x = random_x(2, channels, 17, 13)
        w = random_w(out, channels // groups, kernel, kernel)
        check_conv(x, w, stride, kernel // 2 * dilation, dilation, groups, zero_point)
        if kernel <= 3:
            check_conv(x, w, stride, 0, dilation, groups, zero_point)


@needs_conv
@pytest.mark.parametrize("channels", [1, 3, 64, 512, 1024])
@pytest.mark.parametrize("zero_point", [0, 128])
def test_int_conv2d_does_not_saturate(channels: int, zero_point: int) -> None:
    """u8 255 times s8 -128 and 127, up to K = 9216: sums of pairs leave 16 bits, totals leave float32's 24 bits."""
    for byte, code in itertools.product((0, 255), (-128, 127)):
        x = torch.full((1, channels, 6, 5), byte, dtype=torch.uint8)
        w = torch.full((4, channels, 3, 3), code, dtype=torch.int8)
        want = check_conv(x, w, 1, 1, 1, 1, zero_point)
        if channels == 1024 and byte == 255:
            assert want.abs().max() > 2**24


@needs_conv
def test_int_conv2d_rounds_large_sums_to_nearest_even() -> None:
    torch.manual_seed(0)
    x, w = random_x(1, 1024, 7, 7), random_w(8, 1024, 3, 3, low=100)
    want = check_conv(x, w, 1, 1, 1, 1, 0)
    assert (want != want.float().double()).any(), "some sums are not float32 numbers"


@needs_conv
@pytest.mark.parametrize("padding", [(0, 2), (3, 1)])
def test_int_conv2d_takes_two_different_numbers(padding: tuple[int, int]) -> None:
    x, w = random_x(2, 8, 11, 16), random_w(6, 8, 3, 5)
    form = cpu.prepare_conv2d(w, (2, 1), padding, (1, 2), 1, 128)
    want = F.conv2d(x.double() - 128, w.double(), None, (2, 1), padding, (1, 2))
    assert torch.equal(cpu.int_conv2d(x, form).double(), want)


@needs_conv
def test_int_conv2d_takes_any_strides_and_batch() -> None:
    w = random_w(8, 6, 3, 3)
    whole = random_x(4, 20, 20, 6)
    for x in (
        whole.permute(0, 3, 1, 2),
        whole.permute(0, 3, 2, 1)[:, :, ::2, 3:],
        whole.permute(0, 3, 1, 2).contiguous(),
    ):
        check_conv(x, w, 1, 1, 1, 1, 7)
    form = cpu.prepare_conv2d(w, (1, 1), (1, 1), (1, 1), 1, 128)
    assert cpu.int_conv2d(random_x(0, 6, 9, 9), form).shape == (0, 8, 9, 9)
    for batch in (1, 7, 2, 33):
        x = random_x(batch, 6, 9, 9)
        assert torch.equal(cpu.int_conv2d(x, form).double(), F.conv2d(x.double() - 128, w.double(), None, 1, 1))


@needs_matmul
@pytest.mark.parametrize("k", [1, 2, 63, 64, 1000, 4608, 9001])
@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
def test_int_matmul_is_exact(k: int, zero_point: int) -> None:
    torch.manual_seed(k)
    for m, n in ((1, 10), (3, 1), (33, 17)):
        w = random_w(n, k)
        form = cpu.prepare_matmul(w, zero_point)
        for x in (random_x(m, k), random_x(k, m).t(), torch.full((m, k), 255, dtype=torch.uint8)):
            want = (x.double() - zero_point) @ w.double().t()
            assert torch.equal(cpu.int_matmul(x, form), want.float())


@needs_matmul
def test_int_matmul_shapes() -> None:
    w = random_w(5, 12)
    form = cpu.prepare_matmul(w, 128)
    for shape in ((12,), (0, 12), (2, 3, 12), (2, 0, 12)):
        x = random_x(*shape)
        got = cpu.int_matmul(x, form)
        assert got.shape == (*shape[:-1], 5)
        assert torch.equal(got.double(), (x.double() - 128) @ w.double().t())


@needs_conv
@needs_matmul
@pytest.mark.parametrize("threads", [1, 2])
def test_exact_with_threads_and_inference_mode(threads: int) -> None:
    before = torch.get_num_threads()
    w, x = random_w(32, 16, 3, 3), random_x(3, 16, 9, 9)
    form = cpu.prepare_conv2d(w, (1, 1), (1, 1), (1, 1), 1, 128)
    linear = cpu.prepare_matmul(w.flatten(1), 128)
    rows = random_x(9, 144)
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            acc, product = cpu.int_conv2d(x, form), cpu.int_matmul(rows, linear)
            check_conv(x, w, 2, 1, 1, 1, 128)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(acc.double(), F.conv2d(x.double() - 128, w.double(), None, 1, 1))
    assert torch.equal(product.double(), (rows.double() - 128) @ w.flatten(1).double().t())


def test_probe_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu.probe.cache_clear()
    try:
        monkeypatch.setitem(cpu.OPS, "int_conv2d", ("no_such_operator",))
        assert "no oneDNN int8 operators" in cpu.probe("int_conv2d")
        cpu.probe.cache_clear()
        monkeypatch.undo()
        monkeypatch.setattr(cpu, "_conv_is_exact", lambda: False)
        assert "not exact" in cpu.probe("int_conv2d")
    finally:
        cpu.probe.cache_clear()
