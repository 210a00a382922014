"""tq.plot: pictures of one run and of ten, the Pareto front, and the errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tq.events import EventLog
from tq.history import RunState
from tq.plot import DASHES, _curves, _labels, packed_point, pareto, plot

pytest.importorskip("matplotlib")


def make_run(
    root: Path, name: str, *, epochs: int = 3, packed: float = 0, steps_per_epoch: int = 40, loss: float = 2.0
) -> Path:
    """A run directory with a float epoch, quantized ones and, if `packed`, the size of its file."""
    path = root / name
    path.mkdir()
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
    styles = {(curve.colour, curve.dash) for curve in _curves(runs)}
    assert len(styles) == 10
    assert len(DASHES) * 7 >= 10
    assert plot(runs, tmp_path / "size.png", kind="size").stat().st_size > 5000
    assert "Pareto" not in plot(runs, tmp_path / "curves.svg", kind="curves").read_text()


def test_plot_a_run_that_diverged_and_one_without_length(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", loss=float("nan")), make_run(tmp_path, "b", steps_per_epoch=0)]
    assert ">step<" in plot(runs, tmp_path / "x.svg").read_text()


def test_plot_errors(tmp_path: Path) -> None:
    done = make_run(tmp_path, "done")
    fresh = make_run(tmp_path, "fresh", epochs=0)
    out = tmp_path / "x.png"
    for runs, target, options, message in (
        ([fresh], out, {}, "fresh has no evaluation yet"),
        ([done], out, {"kind": "size"}, "none of done has written a packed file"),
        ([done], out, {"kind": "pie"}, "unknown kind of plot 'pie'"),
        ([done], tmp_path / "x.bmp", {}, "must end in .png, .svg"),
        ([done], tmp_path / "no" / "x.png", {}, "cannot write"),
        ([], out, {}, "no run to plot"),
    ):
        with pytest.raises(ValueError, match=message):
            plot(runs, target, **options)  # type: ignore[arg-type]
    assert not out.exists()


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
