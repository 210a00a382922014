"""tq.plot: pictures of one run and of ten, the Pareto front, the error trend as a picture and as CSV, and bad input."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tq import history, panels, picture
from tq.cli import main
from tq.events import EventLog
from tq.panels import Curve, pareto
from tq.plot import DASHES, _curves, _labels, packed_point, plot
from tq.run_state import RunState

pytest.importorskip("matplotlib")


def make_run(
    root: Path, name: str, *, epochs: int = 3, packed: float = 0, steps_per_epoch: int = 40, loss: float = 2.0
) -> Path:
    """A run directory with a float epoch, quantized ones and, if `packed`, the size of its file."""
    path = root / name
    path.mkdir(parents=True)
    log = EventLog(path / "events.jsonl")
    log.emit("start", epochs=epochs, steps_per_epoch=steps_per_epoch)
    for epoch in range(1, epochs + 1):
        log.emit("phase", name="float" if epoch == 1 and epochs > 1 else "train")
        for step in range((epoch - 1) * 40 + 1, epoch * 40 + 1, 10):
            log.emit("step", step=step, epoch=epoch, loss=loss / step, acc=50 + epoch)
        log.emit("phase", name="eval")
        log.emit("eval", step=epoch * 40, epoch=epoch, split="test", loss=1.0 / epoch, acc=60.0 + epoch)
    if packed:
        log.emit("size", float_bytes=1e6, packed_bytes=packed)
        log.emit("end", status="ok", summary={"packed_accuracy": 70.5})
    log.close()
    return path


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_one_run(tmp_path: Path, suffix: str) -> None:
    run = make_run(tmp_path, "20261121-141530-resnet20-w1a2-3f2c", epochs=1)
    first, second = (plot([run], tmp_path / f"{i}{suffix}") for i in range(2))
    assert first.stat().st_size > 5000
    assert first.read_bytes() == second.read_bytes()
    if suffix == ".svg":
        text = first.read_text()
        # two panels: nothing was packed
        assert "resnet20-w1a2" in text
        assert "Pareto" not in text


def test_plot_ten_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, f"20261121-14153{i}-net-w{i}a2-00{i}a", packed=20_000 * 1.5**i) for i in range(10)]
    text = plot(runs, tmp_path / "all.svg").read_text()
    assert all(f"net-w{i}a2" in text for i in range(10))
    assert "Pareto" in text
    styles = {(curve.colour, curve.dash) for curve in _curves(runs, [history.read(run) for run in runs])}
    assert len(styles) == 10
    assert len(DASHES) * 7 >= 10
    assert plot(runs, tmp_path / "size.png", kind="size").stat().st_size > 5000
    assert "Pareto" not in plot(runs, tmp_path / "curves.svg", kind="curves").read_text()


def test_plot_a_run_that_diverged_and_one_without_length(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", loss=float("nan")), make_run(tmp_path, "b", steps_per_epoch=0)]
    assert ">step<" in plot(runs, tmp_path / "x.svg").read_text()


def make_trend(root: Path, name: str, steps: list[dict[str, Any]], tests: list[float]) -> Path:
    """A run of ten steps an epoch: `steps` as its step events, an evaluation of each accuracy in `tests`."""
    path = root / name
    path.mkdir(parents=True)
    manifest = {"name": "lenet-w4a4", "seed": 7, "config": {"scheme": "w4a4", "optimizer": "qsgd"}}
    (path / "run.json").write_text(json.dumps(manifest))
    log = EventLog(path / "events.jsonl")
    log.emit("start", epochs=len(tests), steps_per_epoch=10)
    log.emit("phase", name="train")
    for epoch, acc in enumerate(tests, 1):
        for step in steps:
            if (step["step"] - 1) // 10 + 1 == epoch:
                log.emit("step", epoch=epoch, **step)
        log.emit("eval", step=10 * epoch, epoch=epoch, split="test", loss=0.5, acc=acc)
    log.close()
    return path


TREND = [
    {"step": 2, "loss": 2.0, "acc": 10.0, "lr": 0.1, "p_min": 1, "p_mean": 1.5, "p_max": 2, "portion": 0.5},
    {"step": 10, "loss": 1.0, "acc": 60.0, "lr": 0.1, "p_min": 2, "p_mean": 2.5, "p_max": 4, "portion": 0.5},
    {"step": 15, "loss": 0.5, "acc": 80.0, "lr": 0.05, "p_min": 3, "p_mean": 3.25, "p_max": 4, "portion": 1},
]


def test_error_trend_as_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = tmp_path / "runs", tmp_path / "trend.csv"
    run = make_trend(runs, "20261121-141530-lenet-w4a4-3f2c", TREND, [61.25, 81.0, 79.0])
    EventLog(run / "events.jsonl").emit("eval", step=30, epoch=3, split="test", loss=0.5, acc=80.0)
    make_trend(runs, "20261121-141531-plain-3f2d", [], [50.0])
    assert main(["plot", "--errors", "--runs", str(runs), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["file"] == str(out)
    assert sorted(result["runs"]) == sorted(path.name for path in runs.iterdir())
    rows = list(csv.DictReader(out.open()))
    one = [row for row in rows if row["run"] == "20261121-141530-lenet-w4a4-3f2c"]
    assert len(rows) == len(one) + 1 == 4
    assert one[0] == {
        "run": "20261121-141530-lenet-w4a4-3f2c", "name": "lenet-w4a4", "scheme": "w4a4", "optimizer": "qsgd",
        "seed": "7", "epoch": "1", "step": "10",
        # two steps of 10 % and eight of 60 %
        "train_error": "50", "test_error": "38.75", "train_loss": "1.2", "test_loss": "0.5", "lr": "0.1",
        "p_min": "2", "p_mean": "2.5", "p_max": "4", "portion": "0.5",
    }  # fmt: skip
    assert (one[1]["train_error"], one[1]["p_mean"], one[1]["portion"]) == ("20", "3.25", "1")
    # no step was logged in the third epoch: what the second was like is not said again
    assert one[2]["test_error"] == "20"
    assert not any(one[2][key] for key in ("train_error", "train_loss", "lr", "p_min", "p_mean", "p_max", "portion"))


def test_error_trend_of_a_resumed_run(tmp_path: Path) -> None:
    run = make_trend(tmp_path, "r", TREND, [61.0])
    log = EventLog(run / "events.jsonl")
    for step, acc in ((12, 70.0), (14, 10.0)):
        log.emit("step", step=step, epoch=2, acc=acc, loss=1.0)
    log.emit("start", resumed_from=12, epochs=3, steps_per_epoch=10)
    log.emit("step", step=20, epoch=2, acc=75.0, loss=1.0)
    log.emit("eval", step=20, epoch=2, split="test", acc=81.0)
    assert [e.train_acc for e in history.read(run).evals] == [50.0, (2 * 70 + 8 * 75) / 10]


def test_plot_error_trend(tmp_path: Path) -> None:
    runs = [make_trend(tmp_path, "a", TREND, [61.0, 81.25, 80.0]), make_run(tmp_path, "b")]
    text = plot(runs, tmp_path / "x.svg", kind="errors").read_text()
    assert "error (%): train dim, test bright, best" in text
    assert ">a (18.75 %)<" in text
    assert ">b (37.00 %)<" in text
    assert "accuracy" not in text


def test_plot_resolution_and_portion_where_a_run_has_them(tmp_path: Path) -> None:
    runs = [make_trend(tmp_path, "quantized", TREND, [61.0, 81.0]), make_run(tmp_path, "plain")]
    whole = plot(runs, tmp_path / "all.svg").read_text()
    assert "resolution p" in whole
    assert "portion of the weights" in whole
    for kind in ("resolution", "portion"):
        text = plot(runs, tmp_path / f"{kind}.svg", kind=kind).read_text()  # type: ignore[arg-type]
        assert ">quantized<" in text
        assert ">plain<" not in text
    without = plot(runs[1:], tmp_path / "plain.svg").read_text()
    assert "resolution p" not in without
    assert "portion" not in without


@pytest.mark.parametrize(
    "draw", [panels.draw_loss, panels.draw_accuracy, panels.draw_errors, panels.draw_resolution, panels.draw_portion]
)
@pytest.mark.parametrize("epochs", [1, 40])
def test_a_single_point_is_marked(tmp_path: Path, draw: Callable[[Any, list[Curve]], None], epochs: int) -> None:
    run = make_trend(tmp_path, "one", TREND[:1], [61.0] * epochs)
    _, (axis,) = picture.new_figure(1)
    draw(axis, _curves([run], [history.read(run)]))
    points = [{(x, y) for x, y in line.get_xydata() if math.isfinite(y)} for line in axis.lines]
    marked = [found for found, line in zip(points, axis.lines, strict=True) if line.get_marker() != "None"]
    single = [found for found in points if len(found) == 1]
    assert single
    assert all(found in marked for found in single)


def test_stairs_stay_stairs_in_a_long_log() -> None:
    one = history.History()
    one.feed(
        {"t": 0.0, "k": "step", "step": i + 1, "portion": 0.5 if i < 9001 else 0.75, "p_max": i // 1000}
        for i in range(2 * history.MAX_POINTS + 1000)
    )
    points = one.snapshot().points
    assert len(points) < history.MAX_POINTS
    assert {p.portion for p in points} == {0.5, 0.75}
    assert all(p.p_max == (p.step - 1) // 1000 for p in points)
    assert all(math.isnan(p.p_min) for p in points)


def test_plot_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs", "a")
    for argv, sentence in (
        (["--errors", "--kind", "size"], "tq: expected --errors or --kind size, got both; drop one\n"),
        (["--kind", "portion"], "tq: none of a has logged a portion of quantized weights; train with --scheme inq5"),
    ):
        assert main(["plot", *argv, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "x.png")]) == 2
        assert capsys.readouterr().err.startswith(sentence)


def test_plot_of_bad_input(tmp_path: Path) -> None:
    done = make_run(tmp_path, "done")
    fresh = make_run(tmp_path, "fresh", epochs=0)
    out = tmp_path / "x.png"
    for runs, target, options, message in (
        ([fresh], out, {}, "none of fresh has logged a step yet"),
        ([fresh], out, {"kind": "errors"}, "none of fresh has an evaluation yet"),
        ([fresh], tmp_path / "x.csv", {}, "none of fresh has an evaluation yet"),
        ([done], out, {"kind": "resolution"}, "none of done has logged a resolution; train with --optimizer qsgd"),
        ([done], out, {"kind": "portion"}, "none of done has logged a portion"),
        ([done], out, {"kind": "size"}, "none of done has written a packed file"),
        ([done], out, {"kind": "pie"}, "unknown kind of plot 'pie'"),
        ([done], tmp_path / "x.bmp", {}, "must end in .png, .svg, .pdf, or in .csv"),
        ([done], tmp_path / "no" / "x.png", {}, "cannot write"),
        ([], out, {}, "no run to plot"),
    ):
        with pytest.raises(ValueError, match=message):
            plot(runs, target, **options)  # type: ignore[arg-type]
    assert not out.exists()
    assert not (tmp_path / "x.csv").exists()


def test_packed_point_and_pareto() -> None:
    assert packed_point(RunState(packed_bytes=10, last_acc=70.0)) == (10, 70.0)
    assert packed_point(RunState(packed_bytes=10, last_acc=70.0, summary={"packed_accuracy": 71.0})) == (10, 71.0)
    assert packed_point(RunState(packed_bytes=10)) is None
    assert packed_point(RunState(last_acc=70.0)) is None
    assert pareto([(3, 80), (1, 60), (2, 50), (2, 70), (4, 80)]) == [(1, 60), (2, 70), (3, 80)]


def test_labels_stay_apart() -> None:
    ids = ["20261121-141530-cnn-w1a2-3f2c", "20261121-141531-cnn-w1a2-3f2d", "20261121-141532-cnn-w4a8-3f2e", "mine"]
    assert _labels(ids) == [ids[0], ids[1], "cnn-w4a8", "mine"]


def test_import_loads_neither_matplotlib_nor_torch() -> None:
    code = "import sys, tq.plot, tq.progress; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
