"""benchmarks/inq_imagenet.py on a small image folder, as a user would run it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import tq
from tq import cli, data
from tq._torchvision import import_torchvision
from tq.checkpoint import read_info

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "inq_imagenet.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("inq_imagenet", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["inq_imagenet"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    for split, count in (("train", 3), ("val", 2)):
        for number in range(5):
            place = root / split / f"class{number}"
            place.mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(256, (45, 50, 3), dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(place / f"{i}.png")
    model = import_torchvision().models.resnet18(num_classes=5)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, root / "resnet18.pth")
    return root


def test_portion_by_portion_with_resume(
    script: ModuleType,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = script.Flags(
        data=folder, pretrained=folder / "resnet18.pth", portions=(0.5, 1.0), epochs=1, batch_size=5, image_size=32,
        workers=0, device="cpu", checkpoint=tmp_path / "c.pt", out=tmp_path / "out.safetensors",
    )  # fmt: skip
    real = script.packed
    monkeypatch.setattr(script, "packed", lambda *args: {})
    first = script.quantize(flags, script.World())
    assert set(first) == {"float_top1", "float_top5"} and first["float_top5"] == 100
    state = torch.load(flags.checkpoint, weights_only=True)
    assert state["epoch"] == 2 and state["inq"]["taken"] == 2
    # it goes on from the checkpoint: nothing left to train, only to pack
    monkeypatch.setattr(script, "packed", real)
    monkeypatch.setattr(script, "epoch", lambda *args: pytest.fail("it trained again"))
    found = script.quantize(flags, script.World())
    assert found["packed_top5"] == 100 and found["bytes"] == flags.out.stat().st_size
    with pytest.raises(ValueError, match="other settings"):
        script.quantize(dataclasses.replace(flags, bits=4), script.World())
    loaded = tq.load(flags.out)
    assert all(layer.format.pow2 for layer in loaded.modules() if hasattr(layer, "format"))
    # `tq eval` prepares the images as the file says: the very pixels that the script has measured on
    assert cli.main(["eval", str(flags.out), "--data", str(folder), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == found["packed_top1"]
    said = read_info(flags.out).data
    assert (said["size"], said["resize"]) == (32, 36)
    images = data.load("imagefolder", root=str(folder), image_size=32, resize=36).test
    measured = torch.cat([x for x, _ in script.loaders(flags, script.World())[1]])
    assert torch.equal(measured, data.normalise(images.images, said["mean"], said["std"]))


def test_bad_input(script: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--pretrained", str(folder / "resnet18.pth"), "--device", "cpu", "--workers", "0"]
    for change, hint in (
        (["--data", str(tmp_path)], "expected image folders"),
        (["--data", str(folder), "--portions", "0.5", "0.9"], "end at 1"),
        (["--data", str(folder), "--portions", "0.5,0.9"], "end at 1"),
        (["--data", str(folder)], "expected a --batch-size"),
        (["--data", str(folder), "--batch-size", "5", "--pretrained", str(tmp_path / "x.pth")], "x.pth"),
        (["--data", str(folder), "--bits", "9"], "--bits from 2 to 8"),
        (["--data", str(folder), "--checkpoint", str(tmp_path / "no" / "c.pt")], "does not exist"),
    ):
        assert script.main([*common, *change]) == 2
        error = capsys.readouterr().err
        assert hint in error and len(error.strip().splitlines()) == 1
