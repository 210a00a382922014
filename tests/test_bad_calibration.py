"""Bad or odd input to post-training quantization: one sentence, and the network unchanged; odd weights just work."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tq
from tq import models
from tq.attach import quant_layers
from tq.cli import main
from tq.weights import load_into, weights_from

X = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 5),
    ).eval()  # fmt: skip


class TwoInputs(nn.Module):
    """Not a network of images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x) + self.conv(y)


def broken() -> nn.Module:
    model = network()
    model[3].weight.data[2, 1] = torch.nan
    return model


def with_nan() -> Tensor:
    return torch.where(torch.arange(9) == 4, torch.nan, X)


BAD: dict[str, tuple[Callable[[], nn.Module], Iterable[Any], str]] = {
    "no batch": (network, [], "expected at least one calibration image, got none"),
    "an empty batch": (network, [X[:0]], r"at least one image in each calibration batch, got \[0, 3, 9, 9\]"),
    "another size": (network, [X[:, :, :8]], r"Sequential cannot run on \[2, 3, 8, 9\] \(mat1 and mat2 shapes"),
    "another number of channels": (network, [X[:, :1]], r"cannot run on \[2, 1, 9, 9\]"),
    "raw bytes": (network, [X.to(torch.uint8)], "expected float images for calibration, got uint8; normalise"),
    "no tensor": (network, [{"image": X}], "got a dict in batch 0; give float tensors"),
    "a second batch without a tensor": (network, [X, "labels"], "got a str in batch 1"),
    "nan in the images": (network, [with_nan()], "calibration batch 0 holds NaN or infinity"),
    "infinity in a later batch": (network, [X, X / 0], "calibration batch 1 holds NaN or infinity"),
    "nan in the weights": (broken, [X], "Sequential answers an image with NaN or infinity before it is quantized"),
    "two inputs": (TwoInputs, [X], r"TwoInputs cannot run .* missing 1 required positional argument: 'y'"),
}


@pytest.mark.parametrize("case", BAD)
def test_quantize_refuses(case: str) -> None:
    make, loader, message = BAD[case]
    model = make()
    with pytest.raises(ValueError, match=message) as error:
        tq.quantize(model, loader)
    assert "\n" not in str(error.value)
    assert "batch 1" in message or not quant_layers(model)


def test_an_override_that_matches_nothing_leaves_the_network_alone() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"override pattern 'layer9\.\*' matches no layer; layers: 0, 3, 7"):
        tq.quantize(model, [X], override=("layer9.*=w2a2",))
    assert not quant_layers(model) and not model.training


@pytest.mark.parametrize("labels", [torch.zeros(6), ["cat"] * 6, None, {"class": 3}, "cats"])
def test_labels_are_not_looked_at(labels: Any) -> None:
    plain, labelled = tq.quantize(network(), [X]), tq.quantize(network(), ([X, labels] for _ in range(1)))
    assert torch.equal(plain(X), labelled(X))


def test_pixels_that_were_never_normalised_are_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    pixels = torch.linspace(0, 255, 4 * 3 * 81).view(4, 3, 9, 9)
    with pytest.warns(UserWarning, match=r"images reach from 0 to 255; give them as the network was trained"):
        tq.quantize(network(), [pixels])
    recwarn.clear()
    tq.quantize(network(), [X])
    tq.quantize(network(), [X.abs() / 4])
    assert not recwarn.list


def zero_channel(model: Any) -> None:
    model[3].weight[1] = 0
    model[3].bias[1] = 0


def constant_channel(model: Any) -> None:
    model[0].weight[2], model[4].running_var[3] = 0.25, 0.0


def zero_layer(model: Any) -> None:
    model[3].weight.zero_()


def dead_inputs(model: Any) -> None:
    model[1].weight.zero_()
    model[1].bias.fill_(-1)  # behind the ReLU all is zero


@pytest.mark.parametrize("scheme", ["w8a8", "w1a2", "w2a1", "w1a1"])
@pytest.mark.parametrize("change", [zero_channel, constant_channel, zero_layer, dead_inputs])
@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_degenerate_weights_and_inputs(scheme: str, change: Callable[[Any], None], ranges: str, tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        change(model)
        tq.quantize(model, [X], scheme, first_last="same", weight_range=ranges, act_range=ranges)
        want, packed = model(X), tq.convert(model)
        assert all(bool(t.isfinite().all()) for t in packed.state_dict().values() if t.is_floating_point())
        assert all(float(layer.input_scale()) > 0 for layer in quant_layers(model).values())
        tq.save(model, tmp_path / "m.safetensors")
        assert want.isfinite().all() and torch.equal(packed(X), want)
        assert torch.equal(tq.load(tmp_path / "m.safetensors", model=network())(X), want)
        assert torch.equal(tq.fuse(packed, X)(X), want)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"param_groups": [{"lr": 0.1}], "state": {}}},
    "model_state_dict": lambda s: {"epoch": 1, "model_state_dict": s, "loss": 0.5},
    "model": lambda s: {"model": s, "lr_scheduler": {"last_epoch": 2}},
    "net": lambda s: {"net": s, "acc": 92.1, "epoch": 9},
    "name beside": lambda s: {"model": "resnet20", "state_dict": s},
    "nested": lambda s: {"model": {"state_dict": s, "name": "cnn"}},
    "DataParallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {"net": {f"_orig_mod.{k}": v for k, v in s.items()}},
    "both": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
@pytest.mark.parametrize("case", WRAPPED)
def test_containers(case: str, suffix: str, tmp_path: Path) -> None:
    model, fresh, path = network(), network(), tmp_path / f"weights{suffix}"
    nn.init.zeros_(fresh[0].weight)
    torch.save(WRAPPED[case](model.state_dict()), path)
    load_into(fresh, weights_from(path), where=path)
    assert fresh(X).dtype == torch.float32
    torch.testing.assert_close(fresh(X), model(X), atol=2e-3 if case == "half" else 0, rtol=0)


def test_a_prefix_on_part_of_the_names(tmp_path: Path) -> None:
    state = {(f"module.{k}" if k.startswith("0.") else k): v for k, v in network().state_dict().items()}
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(
        ValueError, match=r"2 of its 16 names have the wrapper's 'module\.', which is taken off only"
    ) as e:
        load_into(network(), weights_from(tmp_path / "part.pt"), where="part.pt")
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="is this a file of another model"):
        load_into(network(), {"other.weight": X}, where="other.pt")


def test_whole_networks_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Sequential, "__setstate__", lambda *_: pytest.fail("was unpickled"), raising=False)
    for name, content in {"whole": network(), "inside": {"model": network(), "epoch": 1}}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=r"never unpickled; save model\.state_dict\(\) to it") as error:
            weights_from(tmp_path / f"{name}.pt")
        assert "\n" not in str(error.value)
    torch.jit.script(network()).save(str(tmp_path / "scripted.pt"))
    with pytest.raises(ValueError, match=r"scripted\.pt") as error:
        weights_from(tmp_path / "scripted.pt")
    assert "\n" not in str(error.value)


def test_option_a_resnet20_from_a_foreign_container(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, file = models.build("resnet20-a", num_classes=10), tmp_path / "model.th"
    foreign = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": foreign, "best_prec1": 91.78}, file)
    load_into(model, weights_from(file), where=file)
    x = torch.randn(2, 3, 32, 32)
    packed = tq.convert(tq.quantize(model.eval(), [x]))
    with torch.no_grad():
        assert torch.equal(packed(x), model(x)) and torch.equal(tq.fuse(packed, x)(x), model(x))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the cnn for digits, which nothing but a command line describes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "cnn.pt"
    torch.save(models.build("cnn", num_classes=10, in_channels=1, image_size=16).state_dict(), path)
    return path


def _nan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "conv1.weight": state["conv1.weight"] * torch.nan}


def _part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {(f"module.{k}" if "conv1" in k else k): v for k, v in state.items()}


COMMANDS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], list[str], str]] = {
    "no images": (dict, ["--calib", "0"], "calib must be at least 1"),
    "override": (dict, ["--override", "conv9=w2a2"], "override pattern 'conv9' matches no layer"),
    "nan weights": (_nan, [], "holds NaN or infinity in conv1.weight"),
    "prefix on a part": (_part, [], "have the wrapper's 'module.'"),
    "pickled network": (lambda _: network(), [], "never unpickled; save model.state_dict()"),
    "two inputs": (dict, ["--model", "foreign_nets:two"], "forward() missing 1 required positional argument: 'y'"),
    "no logits": (dict, ["--model", "foreign_nets:maps"], "to answer with logits [N, classes], got a Tensor [2, 4, 14"),
    "another image size": (dict, ["--model", "foreign_nets:fixed"], "cannot run on [2, 1, 16, 16]"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_command_line(
    case: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, flags, message = COMMANDS[case]
    foreign: Any = types.ModuleType("foreign_nets")
    foreign.two, foreign.maps = TwoInputs, lambda: nn.Conv2d(1, 4, 3)
    foreign.fixed = lambda: nn.Sequential(nn.Flatten(), nn.Linear(99, 10))
    monkeypatch.setitem(__import__("sys").modules, "foreign_nets", foreign)
    state = torch.load(weights)
    if "--model" in flags:
        state = getattr(foreign, flags[1].split(":")[1])().state_dict()
    source, out = tmp_path / "float.pt", tmp_path / "out.safetensors"
    torch.save(change(state), source)
    model = [] if "--model" in flags else ["--model", "cnn"]
    argv = ["quantize", str(source), "--dataset", "digits", "--image-size", "16", "--out", str(out), *model, *flags]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split()) and "Traceback" not in error and not out.exists()
