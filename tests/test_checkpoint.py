"""tq.checkpoint: the file tq/1 is small, says what it holds, repeats byte for byte, and is refused when damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tq import checkpoint, models
from tq.attach import attach
from tq.checkpoint import inspect, load, predict_bytes, read_info, save
from tq.conversion import convert
from tq.file_info import Info
from tq.ptq.calibrate import calibrate

Make = Callable[..., nn.Module]
GOLDEN = Path(__file__).parent / "golden"
LENET = {"name": "lenet", "args": {"num_classes": 7, "in_channels": 1, "image_size": 13}}
INFO = Info(model=LENET, data={"name": "digits", "mean": [0.5]}, classes=("a", "b"), metrics={"accuracy": 50.0})

pytestmark = pytest.mark.filterwarnings("ignore:torch.fx cannot read")


@pytest.fixture
def file(quantized: Make, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save(quantized("lenet", "w1a2"), path, INFO)
    return path


def split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(blob[:8], "little")
    return json.loads(blob[8:end]), blob[end:]


def join(header: dict[str, Any], body: bytes) -> bytes:
    """A file with this header and the checksum that belongs to it."""

    def build(digest: str) -> bytes:
        header["__metadata__"]["sha256"] = digest
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + body

    return build(hashlib.sha256(build("0" * 64)).hexdigest())


def refused(path: Path, *, by: Callable[..., Any] = load, **options: Any) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(ValueError) as error:
        by(path, **options)
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text) < 600
    return text


@pytest.mark.parametrize("first_last", ["16", "8", "same"])
@pytest.mark.parametrize("scheme", ["w1a2", "w2a2", "w4a8", "w2a16", "w16a4", "float"])
@pytest.mark.parametrize("name", ["lenet", "odd", "branch"])
def test_save_predicts_its_size(quantized: Make, tmp_path: Path, name: str, scheme: str, first_last: str) -> None:
    model, path = quantized(name, scheme, first_last=first_last), tmp_path / "m"
    predicted = predict_bytes(model, INFO)
    assert save(model, path, INFO) == path.stat().st_size == predicted
    account = inspect(path)
    assert account.file_bytes == account.predicted_bytes == predicted
    assert account.header_bytes + sum(row.size_bytes for row in account.rows) == predicted


@pytest.mark.parametrize("name", ["resnet20", "resnet20-a"])
def test_predict_bytes_of_real_networks(name: str, tmp_path: Path) -> None:
    model = attach(models.build(name, num_classes=10), "w1a2", first_last="8")
    assert predict_bytes(model) == predict_bytes(convert(model)) == save(model, tmp_path / "m")


def test_inspect_resnet20_is_within_a_tenth_of_its_bits(tmp_path: Path) -> None:
    info = Info(
        model={"name": "resnet20", "args": {"num_classes": 10, "in_channels": 3, "image_size": 32}},
        classes=tuple("0123456789"),
    )
    save(attach(models.build("resnet20", num_classes=10), "w1a2"), tmp_path / "m", info)
    account = inspect(tmp_path / "m")
    assert account.file_bytes <= 1.10 * account.theoretical_bytes
    assert account.float_bytes > 20 * account.file_bytes


def test_inspect(file: Path) -> None:
    account = inspect(file)
    rows = {row.name: row for row in account.rows}
    assert rows["fc2.weight_packed"].bits == "w1a2" and rows["fc2.weight_packed"].shape == (84, 120)
    assert rows["fc2.weight_packed"].size_bytes == 84 * 15 and rows["conv1.weight"].bits == "f32"
    assert account.info == read_info(file) == INFO


@pytest.mark.parametrize("scheme", ["w1a2", "w4a8", "w16a4", "float"])
@pytest.mark.parametrize("name", ["lenet", "odd", "branch"])
def test_save_load_save_is_byte_identical(
    quantized: Make, network: Make, tmp_path: Path, name: str, scheme: str
) -> None:
    model, paths = quantized(name, scheme), [tmp_path / n for n in "abcd"]
    save(model, paths[0], INFO)
    save(model, paths[1], INFO)
    save(load(paths[0], model=network(name, seed=5)), paths[2], INFO)
    save(load(paths[2], model=network(name, seed=6), impl="reference"), paths[3], INFO)
    assert len({path.read_bytes() for path in paths}) == 1


def test_load_builds_the_network_that_the_file_names(
    file: Path, quantized: Make, images: Callable[..., Tensor]
) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = load(file)
    assert torch.equal(state, torch.get_rng_state()) and not model.training
    assert torch.equal(model(images("lenet")), quantized("lenet", "w1a2")(images("lenet")))


def test_file_is_plain_safetensors(file: Path) -> None:
    tensors = safetensors.torch.load_file(file)
    assert tensors["fc1.weight_packed"].dtype == torch.uint8 and tensors["tq.layers"].shape == (3, 8)
    assert not any("num_batches_tracked" in name for name in tensors)
    header, _ = split(file.read_bytes())
    config = json.loads(header["__metadata__"]["quantization_config"])
    assert config["config_groups"]["group_0"]["weights"]["num_bits"] == 1
    assert header["__metadata__"]["format"] == "tq/1"


def test_save_of_tied_weights(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))
        model[1].weight = model[0].weight
        return model

    model, x = make(), torch.randn(2, 5)
    save(model, tmp_path / "m")
    assert torch.equal(load(tmp_path / "m", model=make())(x), model(x))


def test_golden_file() -> None:
    """A file of the first release still loads, byte for byte the same account and bit for bit the same predictions."""
    path = GOLDEN / "lenet-w1a2.safetensors"
    stored = safetensors.torch.load_file(GOLDEN / "lenet-w1a2-logits.safetensors")
    assert path.stat().st_size < 20_000 and stored["logits"].std() > 0
    for impl in ("auto", "reference"):
        assert torch.equal(load(path, impl=impl)(stored["images"]), stored["logits"])
    assert inspect(path).predicted_bytes == path.stat().st_size


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100, 1500, -4000, -100, -1])
def test_load_truncated(file: Path, cut: int) -> None:
    blob = file.read_bytes()
    file.write_bytes(blob[:cut])
    refused(file)
    refused(file, by=inspect)
    refused(file, by=read_info)


@pytest.mark.parametrize("place", range(-15_000, 0, 1009))
def test_load_flipped_byte_in_the_tensors(file: Path, place: int) -> None:
    _header, body = split(blob := file.read_bytes())
    place = len(blob) - 1 - (-place % len(body))
    file.write_bytes(blob[:place] + bytes([blob[place] ^ 0x10]) + blob[place + 1 :])
    assert "checksum" in refused(file)


@pytest.mark.parametrize("bit", [0x01, 0x04, 0x20])
def test_load_flipped_byte_in_the_header(file: Path, bit: int) -> None:
    blob = file.read_bytes()
    end = len(blob) - len(split(blob)[1])
    for place in [*range(9), *range(9, end, 29)]:
        file.write_bytes(blob[:place] + bytes([blob[place] ^ bit]) + blob[place + 1 :])
        refused(file)


def changed_metadata(file: Path, **changes: str | None) -> None:
    header, body = split(file.read_bytes())
    metadata = {**header["__metadata__"], **changes}
    header["__metadata__"] = {key: value for key, value in metadata.items() if value is not None}
    file.write_bytes(join(header, body))


def test_join_makes_good_files(file: Path) -> None:
    blob = file.read_bytes()
    changed_metadata(file)
    assert file.read_bytes() == blob


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("format", "tq/2", "has format 'tq/2', expected 'tq/1'"),
        ("format", None, "has format 'none'"),
        ("model", "{not json", "not JSON"),
        ("model", "[" * 100_000, "not JSON"),
        ("model", '["lenet"]', "must be a JSON dict"),
        ("model", '{"name":["lenet"],"args":{}}', "does not name a model of tq"),
        ("model", '{"name":"lenet"}', "cannot be built"),
        ("model", '{"name":"lenet","args":{"num_clases":7}}', "cannot be built"),
        ("model", '{"name":"lenet","args":{"num_classes":"7"}}', "cannot be built"),
        ("model", '{"name":"lenet","args":{"num_classes":0}}', "cannot be built"),
        (
            "model",
            '{"name":"lenet","args":{"num_classes":8,"in_channels":1,"image_size":13}}',
            "tensor linear.bias has shape [7]",
        ),
        ("model", '{"name":"cnn","args":{"num_classes":7}}', "another model's file"),
        ("model", None, "does not name a model of tq"),
        ("data", '{"size":13,"resize":"15"}', "the image size to 8 times it, got '15' for the size 13"),
        ("data", '{"size":13,"resize":15.0}', "got 15.0"),
        ("data", '{"size":13,"resize":true}', "got True"),
        ("data", '{"size":13,"resize":12}', "got 12"),
        ("data", '{"size":13,"resize":1000000000}', "got 1000000000"),
        ("data", '{"size":[13],"resize":15}', "must be at least 1, got [13]"),
        ("data", '{"resize":15}', "for the size None"),
        ("data", '{"name":3}', "name of the data set in the header must be a text, got 3"),
        ("data", '{"size":"13"}', "size of the images in the header must be at least 1, got '13'"),
        ("data", '{"channels":0}', "channels of the images in the header must be at least 1, got 0"),
        ("data", '{"mean":"0.5","std":[1]}', "mean in the header must be a list of numbers, got '0.5'"),
        ("data", '{"mean":[0.5],"std":["1"]}', "std in the header must be a list of numbers, got ['1']"),
        ("data", '{"mean":[0.5],"std":[NaN]}', "std in the header must be a list of numbers, got [nan]"),
        ("data", f'{{"mean":[1{"0" * 400}],"std":[1]}}', "mean in the header must be a list of numbers"),
        ("data", '{"mean":[0.5],"std":[0]}', "std in the header must be above 0, got [0]"),
        ("data", '{"mean":[0.5],"std":[1,1]}', "must have a value for each channel"),
        ("data", '{"channels":3,"mean":[0.5],"std":[1]}', "must have a value for each channel"),
        ("classes", "3", "must be a JSON list"),
        ("classes", '["cat", 3]', "classes in the header must be names, got ['cat', 3]"),
        ("metrics", "[]", "must be a JSON dict"),
    ],
)
def test_load_bad_metadata(file: Path, key: str, value: str | None, hint: str) -> None:
    changed_metadata(file, **{key: value})
    with pytest.raises(ValueError) as error:
        load(file)
    text = str(error.value)
    assert hint in text and str(file) in text and "\n" not in text


def test_load_never_imports_what_a_file_names(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_factory.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    changed_metadata(file, model='{"name":"evil_factory:make","args":{}}')
    assert "build it yourself" in refused(file)
    assert "evil_factory" not in sys.modules and read_info(file).model["name"] == "evil_factory:make"


def changed_tensors(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = safetensors.torch.load_file(file)
    metadata = split(file.read_bytes())[0]["__metadata__"]
    change(tensors)
    file.write_bytes(join(*split(safetensors.torch.save(tensors, metadata))))


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda t: t.pop("fc1.weight_packed"), "3 packed layers are described, but 2"),
        (lambda t: t.pop("tq.bias"), "tq.bias must be float32"),
        (lambda t: t.update({"tq.bias": t["tq.bias"][1:].clone()}), "tq.bias must be float32"),
        (lambda t: t.update({"tq.layers": t["tq.layers"].float()}), "tq.layers must be int32"),
        (lambda t: t["tq.layers"][0].fill_(3), "does not fit its tensor"),
        (lambda t: t["tq.layers"][:, 4].add_(1), "does not fit its tensor"),
        (lambda t: t["tq.layers"][:, 3].add_(99), "zero point 99"),
        (lambda t: t.pop("conv1.weight"), "lacks tensor conv1.weight"),
        (lambda t: t.update({"conv9.weight": torch.ones(3)}), "has an unknown tensor conv9.weight"),
        (lambda t: t.update({"linear.bias": torch.ones(8)}), "tensor linear.bias has shape [8]"),
        (lambda t: t.update({"linear.bias": torch.ones(7, dtype=torch.int32)}), "tensor linear.bias is torch.int32"),
    ],
)
def test_load_bad_tensors(file: Path, change: Callable[[dict[str, Tensor]], None], hint: str) -> None:
    changed_tensors(file, change)
    assert hint in refused(file)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda t: t["tq.layers"][0, 9].fill_(2), "layer conv2 has the codebook 2"),
        (lambda t: t["tq.layers"][1, 8].fill_(7), "is described as inq3a8"),
        (lambda t: t["tq.layers"][:, 9].fill_(0), "is described as w3a8"),
        (lambda t: t["tq.layers"][0, 0].fill_(9), "is described as inq9a8"),
        (lambda t: t["tq.layers"][0, 0].fill_(5), "is described as inq5a8"),
        (lambda t: t["tq.layers"][0, 0].fill_(1), "is described as inq1a8"),
        (lambda t: t.update({"tq.layers": t["tq.layers"][:, :8].clone()}), "is described as w3a8"),
        (lambda t: t.update({"tq.layers": t["tq.layers"][:, :9].clone()}), "must be int32 [L, 8] or [L, 10]"),
        (lambda t: t["fc2.weight_packed"][0].fill_(0xFF), "layer fc2 cannot be used: expected codes of 0 and +-2^i"),
    ],
)
def test_load_bad_tables_of_powers_of_two(
    quantized: Make, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], hint: str
) -> None:
    file = tmp_path / "model.safetensors"
    save(quantized("lenet", "inq3a8"), file, INFO)
    changed_tensors(file, change)
    assert hint in refused(file)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda t: t["tq.layers"][2, 8].fill_(16), "tq.weight_scale must be float32"),
        (lambda t: t["tq.layers"][:, 8].fill_(0), "tq.weight_scale must be float32"),
        (lambda t: t["tq.layers"][2, 8].fill_(-32), "is described as w4a16g-32"),
        (lambda t: t["tq.layers"][2, 8].fill_(10**6), "is described as w4a16g1000000"),
        (lambda t: t["tq.layers"][2, 9].fill_(1), "is described as inq4"),
        (lambda t: t["tq.layers"][2, 9].fill_(-1), "has the codebook -1"),
        (lambda t: t.update({"tq.layers": t["tq.layers"][:, :8].clone()}), "tq.weight_scale must be float32"),
        (lambda t: t.update({"tq.weight_scale": t["tq.weight_scale"][1:].clone()}), "tq.weight_scale must be float32"),
    ],
)
def test_load_bad_tables_of_groups(
    quantized: Make, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], hint: str
) -> None:
    file = tmp_path / "model.safetensors"
    save(quantized("lenet", "w4a16", granularity="group"), file, INFO)
    changed_tensors(file, change)
    assert hint in refused(file)


@pytest.mark.parametrize("name", ["cnn", "odd", "branch"])
def test_load_into_another_model(file: Path, network: Make, name: str) -> None:
    assert "another model's file" in refused(file, model=network(name))


def test_load_what_is_no_file_of_tq(tmp_path: Path, network: Make) -> None:
    assert "does not exist" in refused(tmp_path / "none")
    assert "cannot be read" in refused(tmp_path)
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"")
    assert "truncated" in refused(path)
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}" * 99)
    assert "truncated" in refused(path)
    path.write_bytes(b"PK\x03\x04" + bytes(999))
    assert "of another kind" in refused(path)
    safetensors.torch.save_file({"conv1.weight": torch.ones(3)}, path)
    assert "has format 'none', expected 'tq/1'" in refused(path)
    safetensors.torch.save_file({"conv1.weight": torch.ones(3)}, path, {"format": "pt"})
    assert "has format 'pt', expected 'tq/1'" in refused(path, model=network("cnn"))


@pytest.mark.parametrize("layer", ["conv1.weight", "fc1.weight", "fc1.bn.running_var", "linear.bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_save_refuses_nan(quantized: Make, tmp_path: Path, layer: str, value: float) -> None:
    model = quantized("lenet", "w2a2")
    model.state_dict()[layer].view(-1)[0] = value
    with pytest.raises(ValueError, match=r"NaN or infinity") as error:
        save(model, tmp_path / "m")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_save_refuses_other_dtypes(network: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torch.float16, but the format holds"):
        save(network("cnn").half(), tmp_path / "m")


@pytest.mark.parametrize(("call", "code"), [("fsync", errno.ENOSPC), ("replace", errno.EROFS), ("fsync", errno.EIO)])
def test_save_that_fails_keeps_the_old_file(
    file: Path, quantized: Make, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    before = file.read_bytes()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=rf"{os.strerror(code)}; the network is not saved"):
        save(quantized("lenet", "w4a8"), file)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_save_past_a_limit_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from tq import checkpoint, models\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try: checkpoint.save(models.build('cnn', num_classes=3), sys.argv[1])\n"
        "except OSError as error: assert 'the network is not saved' in str(error); print('refused')"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True)
    assert run.stdout == "refused\n", run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["missing/m", "plain/m", "folder"])
def test_save_to_a_bad_place(network: Make, tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("x")
    with pytest.raises(OSError, match=r"cannot write .*; the network is not saved"):
        save(network("lenet"), tmp_path / place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "plain"] and not list(
        (tmp_path / "folder").iterdir()
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only directory")
def test_save_to_a_read_only_directory(file: Path, quantized: Make) -> None:
    before = file.read_bytes()
    file.parent.chmod(0o500)
    try:
        with pytest.raises(OSError, match=r"Permission denied; the network is not saved"):
            save(quantized("lenet", "w4a8"), file)
    finally:
        file.parent.chmod(0o700)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_interrupted_save_leaves_no_partial_file(file: Path, quantized: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(quantized("lenet", "w4a8"), file)
    assert list(file.parent.iterdir()) == [file]


def write_golden() -> None:
    """Make the golden pair anew: only when the format's version changes."""
    torch.manual_seed(2)
    args = {"num_classes": 10, "in_channels": 1, "image_size": 12}
    model = models.build("lenet", **args)
    images = torch.randn(5, 1, 12, 12)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.3, 2)
    # every layer quantized: integers, and float operations that each round on their own, are the same on every machine
    attach(model, "w1a2", first_last="same").eval()
    calibrate(model, [images])
    GOLDEN.mkdir(exist_ok=True)
    info = Info(model={"name": "lenet", "args": args}, data={"name": "digits"}, classes=tuple("0123456789"))
    save(model, GOLDEN / "lenet-w1a2.safetensors", info)
    with torch.inference_mode():
        logits = model(images)
    safetensors.torch.save_file({"images": images, "logits": logits.clone()}, GOLDEN / "lenet-w1a2-logits.safetensors")


if __name__ == "__main__":
    write_golden()
