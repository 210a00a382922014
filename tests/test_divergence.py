"""Two networks layer by layer (tq.divergence), every implementation beside the reference, and `tq verify`."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tq
from tq import cross_check, models
from tq.attach import attach
from tq.checkpoint import save
from tq.cli import main
from tq.cross_check import contenders
from tq.divergence import OUTPUT, compare, first_divergence, twins
from tq.export import to_onnx
from tq.file_info import Info
from tq.packed import packed_layers
from tq.ptq.calibrate import calibrate

Make = Callable[..., nn.Module]
Images = Callable[..., Tensor]


def broken(model: nn.Module, layer: str) -> nn.Module:
    """A copy whose layer is off by one bias of one channel."""
    other = copy.deepcopy(model)
    packed_layers(other)[layer].bias[1] += 0.25
    for one in packed_layers(other).values():
        one.prepare()
    return other


@pytest.mark.parametrize("name", ["cnn", "lenet", "resnet20", "odd"])
def test_equal_networks_have_no_divergence(quantized: Make, images: Images, name: str) -> None:
    model = quantized(name, "w4a4", first_last="8")
    packed = tq.convert(model)
    # the training form in evaluation mode is what the file was measured by
    for other in (copy.deepcopy(packed), model):
        rows = compare(packed, other, [images(name, 3), images(name, 2, seed=2)])
        assert first_divergence(rows) is None
        assert rows[-1].name == OUTPUT
        assert {r.name for r in rows[:-1]} == set(packed_layers(packed))
        assert all(r.snr_db == math.inf and r.largest == 0 for r in rows)


def test_the_first_wrong_layer_is_found(quantized: Make, images: Images) -> None:
    packed = tq.convert(quantized("resnet20", "w2a2", first_last="8"))
    name = "layer2.1.conv1"
    rows = compare(packed, broken(packed, name), [images("resnet20", 4)])
    first = first_divergence(rows)
    assert first is not None
    assert first.name == name
    assert first.largest == pytest.approx(0.25, rel=1e-4)
    assert [r.equal for r in rows[: rows.index(first)]] == [True] * rows.index(first)


def test_snr_is_the_ratio_of_powers(images: Images) -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.conv, self.factor = nn.Conv2d(3, 3, 1, bias=False), factor
            nn.init.constant_(self.conv.weight, factor)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y

    row = compare(Scaled(1), Scaled(1.01), [images("cnn", 2), images("cnn", 3)])[0]
    assert row.snr_db == pytest.approx(40, abs=1e-3)
    assert not row.equal
    nan = compare(Scaled(1), Scaled(math.nan), [images("cnn", 2)])[0]
    assert (nan.largest, nan.snr_db, nan.equal) == (math.inf, -math.inf, False)
    silent = compare(Scaled(0), Scaled(1), [images("cnn", 2)])[0]
    assert silent.snr_db == -math.inf


def test_an_operation_in_place_behind_a_layer_is_not_seen(images: Images) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    rows = compare(model, nn.Sequential(model[0], nn.Identity()), [images("cnn", 2)])
    assert [r.equal for r in rows] == [True, False]


@pytest.mark.parametrize("name", ["cnn", "lenet", "resnet20", "odd"])
def test_more_bits_are_nearer_to_float(network: Make, quantized: Make, images: Images, name: str) -> None:
    ratios: list[dict[str, float]] = []
    for scheme in ("w8a8", "w2a2"):
        packed, original = tq.convert(quantized(name, scheme, first_last="8")), network(name)
        names = twins(packed, original)
        assert set(names) == set(packed_layers(packed))
        assert any(a != b for a, b in names.items()), "some layer has its normalization inside"
        rows = compare(original, packed, [images(name, 8)], names=names)
        ratios.append({r.name: r.snr_db for r in rows})
    assert min(ratios[0].values()) > 15
    # the first layer has 8 bits in both
    assert all(ratios[0][layer] >= ratios[1][layer] for layer in ratios[0])
    assert ratios[0][OUTPUT] > ratios[1][OUTPUT] + 3


def test_other_models_are_one_sentence(network: Make, images: Images) -> None:
    with pytest.raises(ValueError, match="is it another model"):
        compare(network("cnn"), network("resnet20"), [images("cnn", 2)])
    a, b = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 5, 1))
    with pytest.raises(ValueError, match="at 0"):
        compare(a, b, [images("cnn", 2)])


@pytest.mark.parametrize(("name", "scheme"), [("cnn", "w8a8"), ("lenet", "w1a2"), ("odd", "w1a1"), ("odd", "w2a16")])
def test_every_implementation_is_equal(quantized: Make, images: Images, name: str, scheme: str) -> None:
    reference = tq.convert(quantized(name, scheme, first_last="8"), impl="reference")
    others, refused = contenders(reference, images(name, 2))
    assert "triton" in refused or torch.cuda.is_available()
    assert others.keys() | refused.keys() == {"cpu", "native", "triton", "fused"}
    names = {layer: layer for layer in packed_layers(reference)}
    for impl, other in others.items():
        rows = compare(reference, other, [images(name, 5, seed=3)], names={} if impl == "fused" else names)
        assert first_divergence(rows) is None, impl
        assert len(rows) == (1 if impl == "fused" else len(names) + 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float digits network and a packed one that was made of it."""
    folder = tmp_path_factory.mktemp("verify")
    torch.manual_seed(0)
    args = {"num_classes": 10, "in_channels": 1, "image_size": 16}
    model = models.build("cnn", **args).eval()
    info = Info(
        {"name": "cnn", "args": args},
        {"name": "digits", "size": 16, "channels": 1, "mean": [0.3], "std": [0.4]},
        tuple("0123456789"),
    )
    found = {name: folder / f"{name}.safetensors" for name in ("float", "packed")} | {"onnx": folder / "m.onnx"}
    save(model, found["float"], info)
    attach(model, "w8a8", first_last="8")
    calibrate(model, [torch.randn(8, 1, 16, 16)])
    save(model.eval(), found["packed"], info)
    return found


def run(capsys: pytest.CaptureFixture[str], code: int, *argv: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["verify", *map(str, argv), "--images", "30", "--json"]) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_verify_command(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, 0, files["packed"], "--float-file", files["float"])
    assert result["passed"]
    assert result["first_divergence"] is None
    assert [layer["name"] for layer in result["layers"]] == ["conv1", "conv2", "conv3", "linear", OUTPUT]
    assert all(v == 0 for layer in result["layers"] for v in layer["largest_difference"].values())
    assert all(row["snr_db"] > 15 for row in result["against_float"])
    assert main(["verify", str(files["packed"]), "--images", "5", "--float-file", str(files["float"])]) == 0
    out = capsys.readouterr().out
    assert "all implementations are equal" in out
    assert "farthest from float" in out


def test_verify_finds_a_planted_wrong_layer(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cross_check.with_impl
    monkeypatch.setattr(cross_check, "with_impl", lambda *args: broken(real(*args), "conv3"))
    result = run(capsys, 1, files["packed"])
    assert result["first_divergence"] == {"implementation": "cpu", "layer": "conv3"}
    assert not result["passed"]
    assert main(["verify", str(files["packed"]), "--images", "5"]) == 1
    assert "DIVERGES first at conv3 in cpu" in capsys.readouterr().out


def test_verify_of_an_onnx_file(files: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    to_onnx(
        tq.load(files["packed"]), files["onnx"], source=files["packed"], info=tq.checkpoint.read_info(files["packed"])
    )
    result = run(capsys, 0, files["packed"], "--onnx", files["onnx"])
    assert [c["passed"] for c in result["onnx"]["checks"]] == [True, True]
    other = tmp_path / "other.safetensors"
    save(broken(tq.load(files["packed"]), "conv3"), other, tq.checkpoint.read_info(files["packed"]))
    assert main(["verify", str(other), "--onnx", str(files["onnx"]), "--images", "5"]) == 2
    assert "was exported from another file" in capsys.readouterr().err


def test_verify_of_float_weights_and_of_another_float_file(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["verify", str(files["float"])]) == 2
    assert "expected a packed file" in capsys.readouterr().err
    torch.save(models.build("lenet", num_classes=10, in_channels=1, image_size=16).state_dict(), tmp_path / "l.pt")
    assert main(["verify", str(files["packed"]), "--float-file", str(tmp_path / "l.pt")]) == 2
    assert "does not fit the model" in capsys.readouterr().err
