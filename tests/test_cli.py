"""The `tq` command: every subcommand on real input, its JSON, and one sentence for bad input."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tq import imagefolder
from tq.attach import attach
from tq.checkpoint import read_info, save
from tq.cli import main
from tq.file_info import Info
from tq.models import build
from tq.ptq.calibrate import calibrate

QUIET = ["--show", "nothing"]
DIGITS = ["--dataset", "digits", "--model", "cnn", "--image-size", "16", "--no-compile", *QUIET]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a float run and a w1a2 run that started from it."""
    path = tmp_path_factory.mktemp("work")
    runs = str(path / "runs")
    assert (
        main(
            [
                "train",
                *DIGITS,
                "--scheme",
                "float",
                "--epochs",
                "4",
                "--runs",
                runs,
                "--out",
                str(path / "float.safetensors"),
            ]
        )
        == 0
    )
    init = ["--init", str(path / "float.safetensors")]
    assert (
        main(["train", *DIGITS, *init, "--epochs", "3", "--runs", runs, "--out", str(path / "w1a2.safetensors")]) == 0
    )
    return path


def json_of(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 0
    result = json.loads(capsys.readouterr().out)
    assert isinstance(result, dict)
    return result


def sentence_of(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tq: ")
    assert len(captured.err.splitlines()) == 1, captured.err
    return captured.err


def test_eval_of_a_file_and_of_a_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_file = json_of(capsys, "eval", root / "w1a2.safetensors", "--json")
    of_run = json_of(capsys, "eval", "last", "--runs", root / "runs", "--json", "--impl", "reference")
    assert of_file["accuracy"] == of_run["accuracy"] == 100 * of_file["correct"] / of_file["total"]
    assert of_file["accuracy"] > 60
    assert of_file["bytes"] == (root / "w1a2.safetensors").stat().st_size


def test_predict_names_the_classes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (20, 30), 200).save(root / "x.png")
    result = json_of(capsys, "predict", root / "w1a2.safetensors", root / "x.png", "--json")
    top = result["predictions"][0]["top"]
    assert len(top) == 5
    assert sum(t["probability"] for t in top) <= 1.0001
    assert main(["predict", str(root / "w1a2.safetensors"), str(root / "x.png")]) == 0
    assert top[0]["class"] in capsys.readouterr().out


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A file whose images are resized to 20 pixels before the crop to 16, beside a folder of them."""
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (30, 24), 100).save(tmp_path / place / "x.png")
    args = {"num_classes": 2, "in_channels": 1, "image_size": 16}
    images = {"name": "imagefolder", "size": 16, "resize": 20, "channels": 1, "mean": [0.5], "std": [0.5]}
    info = Info({"name": "cnn", "args": args}, images, ("a", "b"))
    save(build("cnn", **args), tmp_path / "float.safetensors", info)
    model = attach(build("cnn", **args), "w8a8", first_last="8")
    calibrate(model, [torch.randn(4, 1, 16, 16)])
    save(model.eval(), tmp_path / "packed.safetensors", info)
    return tmp_path


@pytest.mark.parametrize(
    "argv",
    [
        ("eval", "packed.safetensors", "--data", "."),
        ("predict", "packed.safetensors", "test/a/x.png"),
        ("verify", "packed.safetensors", "--data", "."),
        ("bench", "packed.safetensors", "--data", "."),
        ("export", "packed.safetensors", "--data", ".", "--pt2", "m.pt2"),
        ("quantize", "float.safetensors", "--data", "."),
    ],
    ids=lambda argv: argv[0],
)
def test_images_are_prepared_as_the_file_says(
    argv: tuple[str, ...], pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(image: Image.Image, mode: str, size: int | None, resize: int | None) -> None:
        raise RuntimeError(f"asked for {mode}, {size} of {resize}")

    monkeypatch.chdir(pictures)
    monkeypatch.setattr(imagefolder, "_square", told)
    assert "x.png cannot be read: asked for L, 16 of 20" in sentence_of(capsys, *argv)


def test_what_is_made_of_a_file_says_how_its_images_are_prepared(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    argv = ("quantize", "float.safetensors", "--data", ".", "--scheme", "w8a8", "--batch-size", 2, "--calib", 2)
    for more, expected in (((), 20), (("--image-size", 16), None)):
        json_of(capsys, *argv, *more, "--out", "q.safetensors", "--json")
        assert read_info("q.safetensors").data.get("resize") == expected
    json_of(capsys, "export", "packed.safetensors", "--hub", "hub", "--json")
    assert json.loads(Path("hub/config.json").read_text())["preprocess"]["resize"] == 20
    assert "1 x 16 x 16, the centre after the shorter side is resized to 20" in Path("hub/README.md").read_text()


def test_an_onnx_file_says_how_its_images_are_prepared(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx, out = pytest.importorskip("onnx"), pictures / "m.onnx"
    json_of(capsys, "export", pictures / "packed.safetensors", "--onnx", out, "--images", 0, "--json")
    assert {p.key: p.value for p in onnx.load(str(out)).metadata_props}["resize"] == "20"


@pytest.mark.parametrize("command", ["eval", "predict", "inspect", "verify", "bench", "export", "quantize"])
def test_a_file_that_lies_about_its_images_is_one_sentence(
    command: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pictures / "lies.safetensors"
    info = read_info(pictures / "float.safetensors")
    save(build("cnn", **info.model["args"]), path, replace(info, data=info.data | {"resize": 10**9}))
    more = {"predict": [pictures / "test/a/x.png"], "export": ["--hub", pictures / "hub"]}.get(command, [])
    assert "to 8 times it, got 1000000000 for the size 16; the file is damaged" in sentence_of(
        capsys, command, path, *more
    )
    assert not (pictures / "hub").exists()


def test_inspect_accounts_for_every_byte(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json_of(capsys, "inspect", root / "w1a2.safetensors", "--json", "--out", root / "account.json")
    size = (root / "w1a2.safetensors").stat().st_size
    assert result["bytes"] == result["predicted_bytes"] == size
    assert result["header_bytes"] + sum(row["bytes"] for row in result["rows"]) == size
    assert json.loads((root / "account.json").read_text())["bytes"] == size


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w1a16"])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_quantize_proves_its_file(root: Path, capsys: pytest.CaptureFixture[str], scheme: str, method: str) -> None:
    out = root / f"{scheme}.safetensors"
    ranges = ("--weight-range", method, "--act-range", method)
    result = json_of(
        capsys,
        "quantize",
        root / "float.safetensors",
        "--scheme",
        scheme,
        "--calib",
        64,
        *ranges,
        "--out",
        out,
        "--json",
    )
    assert result["largest_logit_difference"] == 0
    assert result["bytes"] == out.stat().st_size < result["float_bytes"]
    if scheme == "w8a8":
        assert abs(result["accuracy"] - result["float_accuracy"]) < 3
        assert result["not_quantized"] == []


def test_runs_list_show_compare_and_plot(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = json_of(capsys, "runs", "--runs", root / "runs", "--json")["runs"]
    assert [r["state"] for r in listed] == ["done", "done"]
    assert listed[0]["bytes"] == (root / "w1a2.safetensors").stat().st_size
    names = [r["run"] for r in listed]
    compared = json_of(capsys, "runs", "compare", *names, "--runs", root / "runs", "--json")["runs"]
    assert {r["config"]["scheme"] for r in compared} == {"float", "w1a2"}
    for suffix in ("png", "svg"):
        assert main(["plot", *names, "--runs", str(root / "runs"), "--out", str(root / f"p.{suffix}")]) == 0
        assert (root / f"p.{suffix}").stat().st_size > 5000
    assert main(["runs", "show", "last", "--runs", str(root / "runs")]) == 0
    assert "w1a2" in capsys.readouterr().out


def test_a_config_file_with_comments_and_a_flag_beside_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"_comment": "small", "model": "cnn", "image_size": 16, "compile": False, "scheme": "w2a2", "epochs": 5}
    (root / "run.json").write_text(json.dumps(settings))
    argv = (
        "train",
        "--config",
        root / "run.json",
        "--epochs",
        1,
        "--show",
        "nothing",
        "--runs",
        root / "other",
        "--json",
    )
    result = json_of(capsys, *argv)
    assert result["scheme"] == "w2a2"
    manifest = json.loads((Path(result["run"]) / "run.json").read_text())
    assert manifest["config"]["epochs"] == 1


BAD = [
    (("train", "--scheme", "w3a2"), "weight bits must be one of"),
    (("train", "--scheme", "w1b2"), "did you mean 'w1a2'"),
    (("train", "--model", "resnet21"), "did you mean 'resnet"),
    (("train", "--batch-size", "0"), "batch_size must be at least 1"),
    (("train", "--batch-size", "5000", *DIGITS), "fewer than one batch"),
    (("train", "--optimizer", "hysteresis-sgd", "--scheme", "w4a4"), "trains 1-bit weights"),
    (("train", "--override", "conv9=w2a2", *DIGITS), "matches no layer"),
    (("train", "--dataset", "mnist", *QUIET), "--data DIR"),
    (("train", "--dataset", "cifar10", "--data", "/nonexistent", *QUIET), "--download"),
    (("train", "--dataset", "imagefolder", "--data", "/nonexistent", *QUIET), "/nonexistent"),
    (("train", "--init", "/nonexistent.pt", *DIGITS), "/nonexistent.pt"),
    (("train", "--model", "no.such:thing", *QUIET), "no.such"),
    (("train", "--config", "/nonexistent.json"), "does not exist"),
    (("train", "--resume", "last", "--epochs", "3"), "drop --epochs"),
    (("eval", "missing.safetensors"), "does not exist"),
    (("eval", "nothing-like-it"), "no run"),
    (("export", "missing.safetensors", "--pt2", "m.pt2"), "does not exist"),
    (("verify", "missing.safetensors"), "does not exist"),
    (("runs", "show"), "needs a run"),
    (("quantize", "missing.pt"), "missing.pt"),
]


@pytest.mark.parametrize(("argv", "part"), BAD, ids=[" ".join(argv[:3]) for argv, _ in BAD])
def test_bad_input_is_one_sentence(
    argv: tuple[str, ...],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in sentence_of(capsys, *argv)


def test_a_foreign_float_file_needs_its_architecture(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.zeros(1)}, root / "foreign.pt")
    assert "--model" in sentence_of(capsys, "quantize", root / "foreign.pt")
    argv = ("quantize", root / "foreign.pt", "--model", "cnn", "--dataset", "digits", "--image-size", 16)
    assert "foreign.pt" in sentence_of(capsys, *argv)


def test_nan_weights_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tq.weights import weights_from

    state = weights_from(root / "float.safetensors")
    state["linear.weight"] = state["linear.weight"] * float("nan")
    torch.save(state, root / "nan.pt")
    argv = ("quantize", root / "nan.pt", "--model", "cnn", "--dataset", "digits", "--image-size", 16)
    assert "linear.weight" in sentence_of(capsys, *argv)


def test_an_output_that_cannot_be_written_loses_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("train", *DIGITS, "--epochs", 1, "--runs", tmp_path / "runs", "--out")
    assert "a directory that exists" in sentence_of(capsys, *argv, tmp_path / "no" / "such.safetensors")
    assert "a directory that exists" in sentence_of(capsys, *argv, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    replace = os.replace
    out = tmp_path / "out.safetensors"
    monkeypatch.setattr(os, "replace", lambda a, b: full() if Path(b) == out else replace(a, b))
    assert "the network is safe in" in sentence_of(capsys, *argv, out)
    assert next((tmp_path / "runs").glob("*/model.safetensors")).stat().st_size > 0
    assert not list(tmp_path.glob("*.tmp"))


def test_a_done_run_and_the_float_file_are_not_overwritten(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is done" in sentence_of(capsys, "train", "--resume", "last", "--runs", root / "runs", *QUIET)
    float_file = root / "float.safetensors"
    assert "float file itself" in sentence_of(capsys, "quantize", float_file, "--out", float_file)


def test_the_dashboard_needs_a_terminal(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--once" in sentence_of(capsys, "tui", "--runs", root / "runs")
    assert "needs a terminal" in sentence_of(capsys, "train", *DIGITS[:-2], "--show", "dashboard")
    assert json_of(capsys, "tui", "--once", "--json", "--runs", root / "runs")["runs"]


def test_a_disk_that_fills_up_during_training_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom tq.cli import main\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\nsys.exit(main(sys.argv[1:]))"
    )
    argv = ["train", *DIGITS, "--epochs", "2", "--runs", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "checkpoint.pt: File too large; the last checkpoint is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*/*.tmp"))


def test_help_is_quick_and_loads_neither_torch_nor_textual() -> None:
    code = (
        "import sys\nfrom tq.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'textual', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stderr.strip() == "[]"
    assert "quantize" in done.stdout
    # 0.3 s on a quiet machine; the bound leaves room for a loaded one
    assert time.monotonic() - started < 10
