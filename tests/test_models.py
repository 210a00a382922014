"""tq.models, tq.weights, tq._torchvision: shapes, counts, tracing, the reading of good and of damaged weights files."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tq import models
from tq._torchvision import import_torchvision
from tq.config import MODELS
from tq.weights import load_into, weights_from

# Weights and biases; the paper gives 0.27M for ResNet-20 and 1.7M for ResNet-110 (He et al. 2015, table 6).
PARAMETERS = {"resnet20": 272_474, "resnet20-a": 269_722, "resnet110-a": 1_727_962, "resnet18": 11_181_642}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet50"])
def test_build_gives_traceable_networks(name: str) -> None:
    model = models.build(name, num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        out = model(x)
        assert torch.equal(traced(x), out)
    assert out.shape == (2, 10) and out.isfinite().all()
    if name in PARAMETERS:
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["cnn", "lenet", "resnet20", "resnet20-a"])
def test_build_compiles_in_one_graph(name: str) -> None:
    model = models.build(name, num_classes=10)
    torch.compile(model, fullgraph=True, backend="eager")(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "size"), [("cnn", 4), ("cnn", 63), ("lenet", 12), ("lenet", 28), ("lenet", 33), ("resnet20", 28)]
)
def test_build_with_other_images(name: str, size: int) -> None:
    model = models.build(name, num_classes=7, in_channels=1, image_size=size).eval()
    assert model(torch.randn(3, 1, size, size)).shape == (3, 7)


def test_build_torchvision_with_gray_images() -> None:
    assert models.build("resnet18", num_classes=3, in_channels=1).eval()(torch.randn(1, 1, 64, 64)).shape == (1, 3)


def test_builders_are_the_configured_names() -> None:
    assert set(models.BUILDERS) == set(MODELS)


def test_lenet_sees_the_same_maps_at_28_and_32() -> None:
    for size in (28, 32):
        assert models.build("lenet", num_classes=10, image_size=size).get_parameter("fc1.weight").shape == (120, 400)


def test_option_a_pads_with_zero_channels() -> None:
    x = torch.randn(2, 16, 9, 9)
    expected = torch.zeros(2, 32, 5, 5)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(models.PadShortcut(16, 32)(x), expected)


def test_options_differ_only_in_shortcuts() -> None:
    a, b = (models.build(name, num_classes=10).state_dict() for name in ("resnet20-a", "resnet20"))
    extra = {f"layer{i}.0.shortcut.{k}" for i in (2, 3) for k in ("0.weight", "1.weight", "1.bias", "1.running_mean")}
    extra |= {f"layer{i}.0.shortcut.1.{k}" for i in (2, 3) for k in ("running_var", "num_batches_tracked")}
    assert b.keys() - a.keys() == extra and not a.keys() - b.keys()
    assert b["layer2.0.shortcut.0.weight"].shape == (32, 16, 1, 1)


def test_init_is_he_and_seeded() -> None:
    torch.manual_seed(3)
    first = models.build("resnet20", num_classes=10)
    torch.manual_seed(3)
    again = models.build("resnet20", num_classes=10)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    weight = first.get_parameter("layer3.1.conv1.weight")
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


FACTORIES = """
import torch
number = 3
def narrow(num_classes): return torch.nn.Linear(5, num_classes)
def wide(**settings): return torch.nn.Linear(settings["image_size"], settings["in_channels"])
def none(): return None
def demanding(depth): return torch.nn.Linear(depth, 1)
"""


def test_build_calls_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_factories.py").write_text(FACTORIES)
    # Restored after the test, with the working directory that build() appends.
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert models.build("own_factories:narrow", num_classes=4).out_features == 4
    assert models.build("own_factories:wide", num_classes=4, in_channels=2, image_size=6).weight.shape == (2, 6)
    for name, message in {
        "own_factories:none": "must return a torch.nn.Module, got NoneType",
        "own_factories:demanding": "calling the factory failed: .*depth",
        "own_factories:number": "'number' must be callable, got int",
        "own_factories:absent": "has no 'absent'",
        "no_such_package.models:f": "cannot import 'no_such_package.models'",
        ":f": "cannot import ''",
        "resnet21": "unknown model 'resnet21': expected one of cnn, lenet",
    }.items():
        with pytest.raises(ValueError, match=message):
            models.build(name, num_classes=4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lenet", {"image_size": 8}, "lenet needs images of at least 12 pixels, got 8"),
        ("cnn", {"image_size": 3}, "cnn needs images of at least 4 pixels, got 3"),
        ("cnn", {"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_build_refuses(name: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, num_classes=10, **settings)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return models.build("resnet20-a", num_classes=10).state_dict()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_weights_from_strips_prefixes(tmp_path: Path, state: dict[str, Tensor], suffix: str, prefix: str) -> None:
    named = {prefix + name: value for name, value in state.items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(named, path)
    else:
        torch.save({"best_prec1": 92.6, "state_dict": OrderedDict(named)}, path)
    read = weights_from(path)
    assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)


def test_weights_from_unwraps_model_and_keeps_a_real_submodule(tmp_path: Path) -> None:
    torch.save({"model": {"module.weight": torch.ones(2), "head": torch.ones(1)}, "epoch": 3}, tmp_path / "w.pt")
    assert weights_from(tmp_path / "w.pt").keys() == {"module.weight", "head"}


def test_weights_from_reads_the_format_before_zip(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"state_dict": state}, tmp_path / "w.th", _use_new_zipfile_serialization=False)
    assert weights_from(tmp_path / "w.th").keys() == state.keys()


class Payload:
    """Unpickling one of these would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[return-value]


def test_weights_from_never_runs_pickled_code(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Payload(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds Python objects \(.+\), which are never unpickled"):
        weights_from(tmp_path / "w.pt")
    torch.save(nn.Linear(1, 1), tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"holds Python objects .*Linear"):
        weights_from(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "is not a state dict of tensors \\(it holds a list\\)"),
        ({}, "is not a state dict of tensors \\(it is empty\\)"),
        ({"a": torch.ones(1), "epoch": 3}, "is not a state dict of tensors \\('epoch' is a int\\)"),
        ({"a": torch.ones(1), "b": torch.tensor([0.0, float("nan")])}, "holds NaN or infinity in b"),
        ({"a": torch.tensor([float("inf")])}, "holds NaN or infinity in a"),
        ({"conv.weight_packed": torch.ones(1)}, "is already a packed tq model"),
    ],
)
def test_weights_from_refuses(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt " + message):
        weights_from(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_weights_from_names_a_truncated_file(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"a": torch.ones(300)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(ValueError, match=f"{path} is damaged or not a weights file"):
        weights_from(path)


def test_weights_from_names_a_missing_or_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.pt does not exist"):
        weights_from(tmp_path / "absent.pt")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"w\.onnx must be \.safetensors"):
        weights_from(tmp_path / "w.onnx")


def test_load_into_copies_also_without_batch_counters(state: dict[str, Tensor]) -> None:
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    model = models.build("resnet20-a", num_classes=10)
    load_into(model, old, where="old.th")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in old.items())


def test_load_into_says_what_does_not_fit(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"f\.th does not fit the model: missing layer2\.0\.shortcut.* more; is this"):
        load_into(models.build("resnet20", num_classes=10), state, where="f.th")
    with pytest.raises(ValueError, match=r"unexpected layer1\.2\.conv1\.weight, .* pass --model"):
        narrow: Any = models.build("resnet20-a", num_classes=10)
        del narrow.layer1[2]
        load_into(narrow, state, where="f.th")
    model: Any = models.build("resnet20-a", num_classes=7)
    before = model.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"wrong shape: linear\.weight \(10, 64\) instead of \(7, 64\)"):
        load_into(model, state, where="f.th")
    assert torch.equal(model.conv1.weight, before), "a refused file must leave the model as it was"


def test_resnet20_a_is_the_published_form() -> None:
    """The forward of the widely used CIFAR ResNet-20 with option-A shortcuts, written out."""
    model: Any = models.build("resnet20-a", num_classes=10).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    out = F.relu(model.bn1(model.conv1(x)))
    for stage in (model.layer1, model.layer2, model.layer3):
        for block in stage:
            y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(out)))))
            if y.shape != out.shape:
                out = F.pad(out[:, :, ::2, ::2], (0, 0, 0, 0, y.shape[1] // 4, y.shape[1] // 4))
            out = F.relu(y + out)
    torch.testing.assert_close(model(x), model.linear(F.avg_pool2d(out, 8).flatten(1)))


def test_import_torchvision_again_after_a_plain_import() -> None:
    """Where the extension is missing, a plain import fails half-way; import_torchvision must recover from that."""
    code = (
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "from tq._torchvision import import_torchvision\n"
        "tv = import_torchvision()\nassert tv is import_torchvision()\n"
        "print(tv.datasets.CIFAR10.__name__, tv.models.resnet18.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["CIFAR10", "resnet18"], done.stderr


def test_import_torchvision_defines_schemas_only_when_missing() -> None:
    import_torchvision()
    # The package itself, torchvision's own extension or ours, must have registered both exactly once.
    assert str(torch.ops.torchvision.nms.default._schema).endswith(
        "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )
