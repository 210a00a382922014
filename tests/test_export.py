"""Exported files: ONNX in both engines, torch.export bit for bit, the hub's folder, and `tq export` itself."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tq
from tq import hub, models
from tq.attach import attach
from tq.cli import main
from tq.commands import checking
from tq.export import load_pt2, to_onnx, to_pt2
from tq.file_info import Info
from tq.onnx.build import build
from tq.onnx.engines import ENGINES, agreement, open_engine
from tq.onnx.graph import positive_scales
from tq.packed import PackedLayer, packed_layers
from tq.ptq.calibrate import calibrate
from triton_kernels.layout import pack_weight, unpack_weight

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

Make = Callable[..., nn.Module]
Images = Callable[..., Tensor]
CASES = [
    ("cnn", "w8a8", "8"),
    ("cnn", "w1a2", "16"),
    ("lenet", "w1a2", "8"),
    ("lenet", "w4a8", "16"),
    ("resnet20", "w8a8", "8"),
    ("resnet20", "w2a2", "16"),
    ("odd", "w4a4", "same"),
    ("odd", "w1a1", "same"),
    ("odd", "w2a16", "8"),
    ("odd", "w16a4", "8"),
    ("cnn", "w16a8", "16"),
    ("odd", "inq2", "same"),
    ("odd", "inq4a8", "same"),
    ("cnn", "inq5a8", "8"),
    ("lenet", "inq8", "8"),
]


def check_engines(packed: nn.Module, exported: onnx.ModelProto, x: Tensor) -> None:
    with torch.no_grad():
        expected = packed(x)
    for name in ENGINES:
        engine = open_engine(name, exported.SerializeToString())
        found = agreement(name, expected, torch.cat([engine(x[:1]), engine(x[1:])]), expected.argmax(1))
        assert found.passed, found


@pytest.mark.parametrize(("name", "scheme", "first_last"), CASES)
def test_onnx_gives_the_packed_logits(quantized: Make, images: Images, name: str, scheme: str, first_last: str) -> None:
    packed = tq.convert(quantized(name, scheme, first_last=first_last))
    exported = build(packed, images(name, 2), "int8")
    assert exported.opset_import[0].version == 13
    check_engines(packed, exported, images(name, 40))


@pytest.mark.parametrize("scheme", ["w4a4", "w2a2", "w1a2"])
def test_int4_holds_weights_of_few_bits(quantized: Make, images: Images, scheme: str) -> None:
    packed = tq.convert(quantized("cnn", scheme, first_last="8"))
    exported, wide = (build(packed, images("cnn", 2), held) for held in ("int4", "int8"))
    assert exported.opset_import[0].version == 21
    assert exported.ByteSize() < 0.6 * wide.ByteSize()
    check_engines(packed, exported, images("cnn", 40))


def test_weights_are_the_integers_of_the_file(quantized: Make, images: Images) -> None:
    packed = tq.convert(quantized("cnn", "w4a8", first_last="8"))
    for held in ("int8", "int4"):
        exported = build(packed, images("cnn", 2), held)
        constants = {c.name: onnx.numpy_helper.to_array(c) for c in exported.graph.initializer}
        for name, layer in packed_layers(packed).items():
            codes = unpack_weight(layer.weight_packed, layer.format.weight_bits, layer.format.shape).numpy()
            stored, scale = constants[f"{name}.weight"].astype(np.int8), constants[f"{name}.weight_scale"]
            assert (scale > 0).all()
            sign = constants.get(f"{name}.sign", np.ones(1, np.float32)).reshape(-1)
            ours = codes * layer.weight_scale.numpy().reshape(-1, *[1] * (codes.ndim - 1))
            assert (np.abs(stored) == np.abs(codes)).all()
            assert (stored * (scale * sign).reshape(-1, *[1] * (codes.ndim - 1)) == ours).all()


@pytest.mark.parametrize("scheme", ["inq2", "inq3a8", "inq4", "inq5a8", "inq8"])
def test_powers_of_two_are_those_of_the_file(quantized: Make, images: Images, scheme: str) -> None:
    packed = tq.convert(quantized("cnn", scheme, first_last="same"))
    for held in ("int8", "int4"):
        constants = {
            c.name: onnx.numpy_helper.to_array(c) for c in build(packed, images("cnn", 2), held).graph.initializer
        }
        for name, layer in packed_layers(packed).items():
            weight = constants[f"{name}.weight"]
            assert (weight.dtype == np.int8) == (scheme[:4] in ("inq2", "inq3", "inq4"))
            columns = (-1, *[1] * (weight.ndim - 1))
            if weight.dtype == np.int8:
                weight = weight * constants[f"{name}.weight_scale"].reshape(columns)
            assert (weight == layer.codes().numpy() * layer.weight_scale.numpy().reshape(columns)).all()


@pytest.mark.parametrize(("name", "scheme"), [("odd", "w4a16"), ("cnn", "w4a8"), ("lenet", "w1a2")])
def test_weights_of_groups_are_those_of_the_file(quantized: Make, images: Images, name: str, scheme: str) -> None:
    packed = tq.convert(quantized(name, scheme, first_last="8", granularity="group", group_size=16))
    exported = build(packed, images(name, 2), "auto")
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in exported.graph.initializer}
    grouped = {n: layer for n, layer in packed_layers(packed).items() if layer.format.group}
    assert grouped
    for n, layer in grouped.items():
        assert (constants[f"{n}.weight"] == layer.values().numpy()).all()
    check_engines(packed, exported, images(name, 40))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_positive_scales_is_exact(bits: int) -> None:
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    codes = np.random.default_rng(0).choice([low, high], (5, 7)).astype(np.int8)
    scale = np.array([0.5, -0.25, 0, -3, 1], np.float32)
    for chosen in (codes, np.where(codes == low, np.int8(high), codes)):
        ours, positive, sign = positive_scales(chosen, scale, bits)
        assert (positive > 0).all()
        assert (sign is None) == (bits == 1 or low not in chosen)
        total = positive if sign is None else positive * sign
        assert (ours * total[:, None] == chosen * scale[:, None]).all()


def test_a_negative_scale_with_the_lowest_code(quantized: Make, images: Images) -> None:
    packed = tq.convert(quantized("cnn", "w8a8", first_last="8"))
    for layer in packed_layers(packed).values():
        codes = unpack_weight(layer.weight_packed, 8, layer.format.shape)
        codes.view(codes.shape[0], -1)[:, 0] = -128
        layer.weight_packed.copy_(pack_weight(codes, 8))
        layer.weight_scale[0] = -layer.weight_scale[0].abs()
        layer.weight_scale[1] = 0
        layer.prepare()
    exported = build(packed, images("cnn", 2), "int8")
    assert [n.op_type for n in exported.graph.node].count("Mul") == len(packed_layers(packed))
    check_engines(packed, exported, images("cnn", 40))


def test_option_a_shortcuts(images: Images) -> None:
    torch.manual_seed(0)
    model = attach(models.build("resnet20-a", num_classes=7, in_channels=3, image_size=9).eval(), "w4a8")
    calibrate(model, [images("resnet20", 5)])
    packed = tq.convert(model.eval())
    exported = build(packed, images("resnet20", 2), "int8")
    assert {"Slice", "Pad"} <= {n.op_type for n in exported.graph.node}
    check_engines(packed, exported, images("resnet20", 40))


class Mixed(nn.Module):
    """Nodes that tq's own networks do not have; modules named like the ONNX file's own input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.norm, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Hardswish()
        self.side, self.pool, self.drop = nn.Conv2d(6, 4, 1), nn.AvgPool2d(3, 2, 1), nn.Dropout(0.5)
        self.gate, self.logits = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(10, 10, 1)), nn.Linear(90, 7)
        self.mix = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.x(x)))
        x = torch.cat([x, F.relu6(self.side(x))], dim=1)
        x = x * F.hardsigmoid(self.gate(x)) + 1
        x = F.adaptive_avg_pool2d(x, (3, 3)) + F.max_pool2d(self.pool(x), 2, padding=1)
        x = self.mix(x.flatten(2))
        logits: Tensor = self.logits(self.drop(x.reshape(x.size(0), -1)))
        return logits


def test_other_nodes(images: Images) -> None:
    torch.manual_seed(0)
    model = attach(Mixed().eval(), "w8a8", first_last="8")
    calibrate(model, [images("resnet20", 5)])
    packed = tq.convert(model.eval())
    check_engines(packed, build(packed, images("resnet20", 2), "int8"), images("resnet20", 40))


class Odd(nn.Module):
    """One convolution and one step that is given."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.second, self.step = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 7, 1), step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.second(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize(
    ("step", "part"),
    [
        (nn.GELU(), "node step (GELU) has no ONNX translation"),
        (torch.erf, "node erf (erf) has no ONNX translation"),
        (lambda x: x.mean(1, keepdim=True), "mean over 1"),
        (lambda x: F.relu(x, inplace=True) + x, "in place"),
        (lambda x: F.adaptive_avg_pool2d(x, 4), "no common kernel"),
    ],
)
def test_a_node_without_translation_is_named(images: Images, step: Callable[[Tensor], Tensor], part: str) -> None:
    model = attach(Odd(step).eval(), "w8a8", first_last="8")
    calibrate(model, [images("resnet20", 2)])
    with pytest.raises(ValueError) as error:
        build(tq.convert(model.eval()), images("resnet20", 2), "int8")
    assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:torch.fx cannot read")
def test_a_network_that_fx_cannot_read(quantized: Make, images: Images) -> None:
    with pytest.raises(ValueError, match=r"torch.fx can read, got Branching"):
        build(tq.convert(quantized("branch", "w8a8")), images("branch", 2), "int8")


def save(quantized: Make, path: Path, scheme: str = "w2a2") -> Info:
    data = {"name": "digits", "size": 13, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    info = Info(
        model={"name": "cnn", "args": {"num_classes": 7, "in_channels": 3, "image_size": 13}},
        data=data,
        classes=tuple("abcdefg"),
        metrics={"accuracy": 71.25, "correct": 57, "total": 80},
    )
    tq.save(quantized("cnn", scheme, first_last="8"), path, info)
    return info


def test_metadata_names_the_source_and_its_images(quantized: Make, tmp_path: Path) -> None:
    source, out = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    info = save(quantized, source)
    written = to_onnx(tq.load(source), out, source=source, info=info)
    props = {p.key: p.value for p in onnx.load(str(out)).metadata_props}
    assert props["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert json.loads(props["mean"]) == [0.5] * 3
    assert json.loads(props["classes"]) == list("abcdefg")
    assert props["size"] == "13"
    assert props["tq_version"] == tq.__version__
    assert written.bytes == out.stat().st_size > source.stat().st_size
    assert any("2 bits: held as int8, 4 times their packed size" in note for note in written.weights)


@pytest.mark.parametrize("scheme", ["w8a8", "w1a2"])
def test_pt2_predicts_bit_for_bit(quantized: Make, images: Images, tmp_path: Path, scheme: str) -> None:
    source, out = tmp_path / "model.safetensors", tmp_path / "model.pt2"
    info = save(quantized, source, scheme)
    packed = tq.load(source)
    assert to_pt2(packed, out, source=source, info=info) == out.stat().st_size
    again = load_pt2(out)
    for batch in (1, 4, 9):
        x = images("cnn", batch)
        with torch.no_grad():
            assert again(x).equal(packed(x))
    assert str(Path(tq.__file__).parent).encode() not in out.read_bytes()
    out.write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot be read"):
        load_pt2(out)


def test_hub_folder(quantized: Make, images: Images, tmp_path: Path) -> None:
    source, folder = tmp_path / "packed.safetensors", tmp_path / "hub"
    save(quantized, source)
    for _ in range(2):
        sizes = hub.write(source, folder)
    assert sorted(sizes) == sorted(p.name for p in folder.iterdir()) == sorted(hub.FILES)
    assert (folder / "model.safetensors").read_bytes() == source.read_bytes()
    x = images("cnn", 3)
    with torch.no_grad():
        assert tq.load(folder / "model.safetensors")(x).equal(tq.load(source)(x))
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] in (2, 8)
    assert config["id2label"]["6"] == "g"
    card = (folder / "README.md").read_text()
    assert "71.25 % (57 of 80 test images of digits)" in card
    assert f"{source.stat().st_size:,} bytes" in card


def test_hub_refuses_a_folder_of_something_else(quantized: Make, tmp_path: Path) -> None:
    source, folder = tmp_path / "packed.safetensors", tmp_path / "hub"
    save(quantized, source)
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"with thesis\.tex"):
        hub.write(source, folder)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed digits network, as good as calibration alone makes it."""
    path = tmp_path_factory.mktemp("export") / "digits.safetensors"
    torch.manual_seed(0)
    model = attach(models.build("cnn", num_classes=10, in_channels=1, image_size=16).eval(), "w4a8", first_last="8")
    calibrate(model, [torch.randn(8, 1, 16, 16)])
    args = {"num_classes": 10, "in_channels": 1, "image_size": 16}
    data = {"name": "digits", "size": 16, "channels": 1, "mean": [0.3], "std": [0.4]}
    tq.save(model.eval(), path, Info({"name": "cnn", "args": args}, data, tuple("0123456789")))
    return path


def test_export_command(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["export", str(digits), "--onnx", str(tmp_path / "m.onnx"), "--pt2", str(tmp_path / "m.pt2")]
    argv += ["--hub", str(tmp_path / "hub"), "--images", "60"]
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"]
    assert [c["engine"] for c in result["onnx"]["checks"]] == list(ENGINES)
    assert result["onnx"]["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert result["pt2"]["largest_logit_difference"] == 0
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "held as int4, their packed size" in " ".join(captured.err.split())
    assert "OpenVINO" in captured.out


def test_export_fails_when_an_engine_disagrees(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checking.open_engine
    monkeypatch.setattr(checking, "open_engine", lambda name, file: lambda x: real(name, file)(x).flip(1))
    assert main(["export", str(digits), "--onnx", str(tmp_path / "m.onnx"), "--images", "20", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["passed"]


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ((), "give --onnx"),
        (("--onnx", "no/such/m.onnx"), "a directory that exists"),
        (("--onnx", "m.onnx", "--images", "-1"), "--images"),
        (("--hub", "m.txt"), "to name a folder"),
    ],
)
def test_bad_flags_are_one_sentence(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: tuple[str, ...],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.txt").touch()
    assert main(["export", str(digits), *argv]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "openvino"])
def test_a_missing_package_is_named_before_anything_is_written(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", str(digits), "--onnx", str(tmp_path / "m.onnx")]) == 2
    assert f"{package} is not installed" in (error := capsys.readouterr().err)
    assert "pip install 'tq[onnx]'" in error
    assert not (tmp_path / "m.onnx").exists()


def test_float_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "float.safetensors"
    args = {"num_classes": 10, "in_channels": 1, "image_size": 16}
    tq.save(models.build("cnn", **args), path, Info({"name": "cnn", "args": args}, {"size": 16, "channels": 1}))
    assert main(["export", str(path), "--onnx", str(tmp_path / "m.onnx")]) == 2
    assert "pack them first: tq quantize" in capsys.readouterr().err


def test_layers_share_one_quantization_of_their_input(quantized: Make, images: Images) -> None:
    packed = tq.convert(quantized("resnet20", "w8a8", first_last="8"))
    count = sum(isinstance(m, PackedLayer) for m in packed.modules())
    exported = build(packed, images("resnet20", 2), "int8")
    assert [n.op_type for n in exported.graph.node].count("QuantizeLinear") <= count
