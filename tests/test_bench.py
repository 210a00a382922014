"""tq.bench: what is checked before a speed is printed, what the rows say, and the errors."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tq import bench as bench_module
from tq import checkpoint, data, peers
from tq.attach import attach, to_channels_last
from tq.bench import bench, table
from tq.config import BenchConfig
from tq.dequantize import dequantized
from tq.file_info import Info
from tq.layers import channels_last
from tq.models import build
from tq.ptq.calibrate import calibrate

ARGS = {"num_classes": 10, "in_channels": 1, "image_size": 12}


def quiet(text: str) -> None:
    """Notify nobody."""


@pytest.fixture
def packed_file(tmp_path: Path) -> Callable[..., Path]:
    """packed_file(scheme, **options of attach): a calibrated, untrained cnn for 12-pixel digits."""

    def make(scheme: str, *, name: str = "digits", **options: str) -> Path:
        digits = data.load("digits", root=None, image_size=12)
        torch.manual_seed(0)
        model = to_channels_last(build("cnn", **ARGS))
        torch.save(model.state_dict(), tmp_path / "float.pt")
        attach(model, scheme, **options)
        images = data.normalise(digits.train.images[:64], digits.mean, digits.std)
        calibrate(model, [channels_last(images)], batch_statistics=True)
        described = {"name": name, "size": 12, "channels": 1, "mean": list(digits.mean), "std": list(digits.std)}
        info = Info({"name": "cnn", "args": ARGS}, described, digits.classes)
        checkpoint.save(model, tmp_path / "m.safetensors", info)
        return tmp_path / "m.safetensors"

    return make


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile fails as it does without a C++ compiler."""

    def compile_nothing(*args: object, **kwargs: object) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in config.cpp.cxx: (None, 'g++')")

        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)


def test_bench_checks_and_times_all_contenders(packed_file: Callable[..., Path]) -> None:
    path = packed_file("w4a4", first_last="8")
    torch._dynamo.reset()
    result = bench(path, BenchConfig(batch=(64,), seconds=0.1, device="cpu"), notify=quiet)
    rows = {row["contender"]: row for row in result["rows"]}
    assert list(rows) == [
        "float (dequantized) eager",
        "float (dequantized) compiled",
        "packed eager",
        "packed compiled",
        "packed fused",
    ]
    assert rows["packed eager"]["checked"] == "equals reference bit for bit"
    assert rows["packed compiled"]["checked"] == rows["packed fused"]["checked"] == "equals eager bit for bit"
    assert rows["packed fused"]["how"]
    assert rows["float (dequantized) compiled"]["speedup"] == 1.0
    for row in rows.values():
        assert row["error"] == ""
        assert row["calls"] >= bench_module.MIN_CALLS
        assert row["images_per_s"] == pytest.approx(64e3 / row["latency_ms"])
        assert row["p90_ms"] >= row["latency_ms"]
        assert (row["accuracy"] is None) == row["contender"].startswith("float")
    assert rows["packed eager"]["accuracy"] == rows["packed compiled"]["accuracy"]
    assert result["bytes"] == path.stat().st_size < result["float_bytes"]
    assert result["accuracy_images"] == 359
    json.dumps(result, allow_nan=False)
    console = Console(width=200, file=io.StringIO())
    console.print(table(result))
    assert isinstance(console.file, io.StringIO)
    assert "packed compiled" in console.file.getvalue()
    assert "bit for bit" in console.file.getvalue()


def test_bench_without_a_compiler(packed_file: Callable[..., Path], no_compiler: None) -> None:
    config = BenchConfig(batch=(1, 400), seconds=0.01, device="cpu")
    result = bench(packed_file("w1a2"), config, notify=quiet)
    assert [row["batch"] for row in result["rows"]] == [1] * 6 + [400] * 6
    for row in result["rows"]:
        if row["contender"].endswith("compiled"):
            assert "no working C++ compiler" in row["error"]
            assert row["images_per_s"] is None
        else:
            assert not row["error"]
            assert row["images_per_s"] > 0
            assert row["speedup"] is None
    Console(quiet=True).print(table(result))


def test_bench_gives_no_speed_to_a_wrong_contender(
    packed_file: Callable[..., Path], no_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = checkpoint.load

    def load(path: Path, *, impl: str = "auto", device: str = "cpu") -> nn.Module:
        model = original(path, impl=impl, device=device)
        if impl == "reference":
            model.linear.bias.data[0] += 1.0
        return model

    monkeypatch.setattr(checkpoint, "load", load)
    rows = bench(packed_file("w8a8"), BenchConfig(batch=(2,), seconds=0.01, device="cpu"), notify=quiet)["rows"]
    wrong = next(row for row in rows if row["contender"] == "packed eager")
    assert wrong["error"].startswith("wrong: differs from reference by at most")
    assert (wrong["images_per_s"], wrong["accuracy"], wrong["calls"]) == (None, None, 0)


def test_bench_with_the_float_file(packed_file: Callable[..., Path], no_compiler: None, tmp_path: Path) -> None:
    path = packed_file("w8a8")
    config = BenchConfig(batch=(359,), seconds=0.01, float_file=str(tmp_path / "float.pt"), device="cpu")
    row = bench(path, config, notify=quiet)["rows"][0]
    assert row["contender"] == "float eager"
    assert 0 <= row["accuracy"] <= 100


@pytest.mark.parametrize("first_last", ["16", "same"])
def test_dequantized_computes_what_weight_only_layers_do(packed_file: Callable[..., Path], first_last: str) -> None:
    path = packed_file("w4a16", first_last=first_last)
    x = channels_last(torch.randn(5, 1, 12, 12, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        expected = checkpoint.load(path)(x)
        found = to_channels_last(dequantized(path, checkpoint.read_info(path))).eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("", None, "does not name its data set; pass --dataset NAME"),
        ("cifar10", None, "real images, but data set cifar10 needs its directory: pass --data DIR"),
        ("digits", "cifar10", "pass --data DIR"),
    ],
)
def test_bench_says_which_images_it_lacks(
    packed_file: Callable[..., Path], name: str, dataset: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bench(packed_file("w8a8", name=name), BenchConfig(dataset=dataset, device="cpu"), notify=quiet)


def test_compare_tells_wrong_from_rounded() -> None:
    expected = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    compare = bench_module._compare
    assert compare(expected + 1e-6, expected, "eager", "equal")[1].startswith("wrong")
    assert compare(expected + 1e-6, expected, "eager", "close")[1] == ""
    one = expected.clone()
    one[3] += 0.5
    assert compare(one, expected, "eager", "close") == (
        "differs from eager by at most 0.5 (1 of 100 images beyond 0.001)",
        "",
    )
    tipped = expected + 0.04 * expected.abs().max() * torch.eye(100, 10)
    assert "images get another class" in "".join(compare(tipped, expected, "eager", "near"))
    assert compare(expected + 0.01, expected, "eager", "near")[1] == ""
    assert compare(expected.roll(1, 1), expected, "eager", "near")[1].startswith("wrong")
    one[:5] = torch.nan
    assert "5 of 100 images" in compare(one, expected, "eager", "close")[1]


def test_bench_with_other_engines(packed_file: Callable[..., Path], no_compiler: None) -> None:
    pytest.importorskip("openvino")
    config = BenchConfig(batch=(16,), seconds=0.01, device="cpu", peers=("openvino",))
    rows = {row["contender"]: row for row in bench(packed_file("w8a8"), config, notify=quiet)["rows"]}
    assert rows["openvino int8"]["checked"].startswith("same class as float (dequantized) eager on")
    assert rows["openvino int8"]["images_per_s"] > 0


def test_a_missing_engine_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"openvino is not installed; .* 'tq\[onnx\]'"):
        peers.needed("openvino")
    with pytest.raises(ValueError, match="peer"):
        BenchConfig(peers=("tensorrt",))
