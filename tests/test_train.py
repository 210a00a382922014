"""`tq.train.Trainer` and `tq.session.execute`: determinism, resume, stages, alerts."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tq import events, runs
from tq.config import TrainConfig, to_dict
from tq.resume import read_checkpoint, write_checkpoint
from tq.session import execute
from tq.train import Trainer

SMALL = {"model": "cnn", "dataset": "digits", "image_size": 16, "epochs": 2, "compile": False, "lr": 0.02}


def run_of(root: Path, config: TrainConfig) -> runs.Run:
    return runs.create(root, name="t", argv=[], config=to_dict(config), seed=config.seed, versions={}, device="cpu")


def weights_hash(model: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()


def trained(
    root: Path, config: TrainConfig, stop_after: int | None = None, resume: Path | None = None
) -> tuple[dict, Path]:
    """Train in this process; `stop_after` counts the steps until a stop is asked for."""
    run = runs.reopen(resume) if resume else run_of(root, config)
    with run:
        if stop_after is not None:
            seen = iter(range(stop_after))
            trainer = Trainer(config, run, resume=resume is not None, should_stop=lambda: next(seen, None) is None)
            with pytest.raises(Exception, match=r"^$"):
                trainer.run()
            return {}, run.path
        return execute(config, run, resume=resume is not None), run.path


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": "w1a2", "optimizer": "hysteresis-sgd", "act_quantizer": "clip"},
        {"scheme": "w4a4", "optimizer": "adamw"},
    ],
    ids=["hysteresis", "adamw"],
)
def test_the_seed_reproduces_the_weights(tmp_path: Path, change: dict) -> None:
    def train(seed: int) -> str:
        config = TrainConfig(**SMALL | change | {"seed": seed, "epochs": 1})
        with run_of(tmp_path, config) as run:
            return weights_hash(Trainer(config, run, resume=False, should_stop=lambda: False).run())

    first = train(0)
    assert train(0) == first
    assert train(1) != first


@pytest.mark.parametrize(
    "change",
    [
        {
            "optimizer": "hysteresis-sgd",
            "hysteresis": 0.0,
            "oscillation_freeze": 0.002,
            "weight_regularization": 1e-4,
        },
        {"act_quantizer": "pact", "amp": True},
        {"optimizer": "qsgd", "resolution": "scheduled"},
        {"optimizer": "qtadam", "resolution": "log-t", "lr": 0.003},
        {"optimizer": "qtadamw", "shared_resolution": False, "qp": 6, "lr": 0.003},
        {"scheme": "w2a2", "progressive": ("w4a16:1", "w4a4:1"), "epochs": 1, "distill": 0.5, "lr": None},
        {"scheme": "w2a4", "ema": 0.9, "oscillation_freeze": 0.015, "norm_batches": 3, "weight_quantizer": "lsq"},
        {"scheme": "w1a8", "weight_regularization": 0.001, "optimizer": "adamw", "lr": None},
        {"scheme": "inq4", "portions": (0.5, 1.0), "portion_strategy": "random"},
        {"scheme": "inq3a8", "portions": (0.6, 1.0), "optimizer": "adamw", "act_quantizer": "lsq+", "lr": 0.002},
    ],
    ids=[
        *("hysteresis", "pact-amp", "qsgd", "qtadam", "qtadamw", "progressive", "averaged", "pulled"),
        *("inq", "inq-adamw"),
    ],
)
def test_a_stop_in_the_middle_of_an_epoch_changes_nothing(tmp_path: Path, change: dict) -> None:
    config = TrainConfig(**SMALL | change | {"float_epochs": 1, "epochs": 2})
    whole, path = trained(tmp_path, config)
    # 11 steps an epoch: once inside the float stage, once inside the second
    _, broken = trained(tmp_path, config, stop_after=4)
    assert read_checkpoint(broken / "checkpoint.pt")["position"]["batch"] == 5
    _, broken = trained(tmp_path, config, stop_after=20, resume=broken)
    assert read_checkpoint(broken / "checkpoint.pt")["position"]["stage"] >= 1
    again, broken = trained(tmp_path, config, resume=broken)
    assert (path / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert again["packed_accuracy"] == whole["packed_accuracy"]
    assert again["float_accuracy"] == whole["float_accuracy"]
    assert layers(broken) == layers(path), "what is told of flips goes on too"
    if config.optimizer == "hysteresis-sgd":
        assert any(layer["frozen"] for layer in layers(path).values()), "nothing oscillates enough to be frozen"


def test_a_checkpoint_without_the_figures_of_flips_is_resumed(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL)
    whole, _ = trained(tmp_path, config)
    _, broken = trained(tmp_path, config, stop_after=4)
    state = read_checkpoint(broken / "checkpoint.pt")
    del state["oscillation"]
    write_checkpoint(broken / "checkpoint.pt", state)
    assert trained(tmp_path, config, resume=broken)[0]["packed_accuracy"] == whole["packed_accuracy"]


def layers(path: Path) -> dict[str, dict[str, float]]:
    """What the log says last of each layer."""
    told: dict[str, dict[str, float]] = [e for e in events.tail(path / "events.jsonl")[0] if e["k"] == "layers"][-1][
        "layers"
    ]
    return told


@pytest.mark.parametrize(("start", "alpha"), [("published", 3.0), ("calibrated", None)])
def test_where_pact_starts(tmp_path: Path, start: str, alpha: float | None) -> None:
    config = TrainConfig(**SMALL | {"act_quantizer": "pact", "pact_start": start, "epochs": 1, "lr": 1e-12})
    _, path = trained(tmp_path, config)
    state = read_checkpoint(path / "checkpoint.pt")["model"]
    alphas = [float(value) for name, value in state.items() if name.endswith("alpha")]
    assert alphas
    assert all((value == pytest.approx(3.0, abs=1e-6)) == (alpha is not None) for value in alphas)


def test_the_summary_and_the_log(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL | {"float_epochs": 1})
    summary, path = trained(tmp_path, config)
    assert summary["trained_accuracy"] == summary["packed_accuracy"]
    assert summary["largest_logit_difference"] == 0
    assert summary["bytes"] == (path / "model.safetensors").stat().st_size
    log = events.tail(path / "events.jsonl")[0]
    kinds = [e["k"] for e in log]
    assert {"start", "phase", "step", "eval", "size", "checkpoint", "end"} <= set(kinds)
    assert next(e["acc"] for e in log if e["k"] == "eval") == summary["float_accuracy"]
    assert any("flip_rate" in e for e in log if e["k"] == "step")
    assert not any("p_mean" in e for e in log if e["k"] == "step")
    sizes = [e["packed_bytes"] for e in log if e["k"] == "size"]
    assert sizes[-1] == summary["bytes"]
    # known before the first step, but for the metadata that only the end knows
    assert abs(sizes[-2] - sizes[-1]) < 200
    assert log[-1]["status"] == "ok"


def test_the_log_of_a_rising_resolution(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL | {"optimizer": "qsgd", "scheme": "float", "epochs": 3, "lr": 0.1})
    summary, path = trained(tmp_path, config)
    steps = [e for e in events.tail(path / "events.jsonl")[0] if e["k"] == "step"]
    assert all(0 <= e["p_min"] <= e["p_mean"] <= e["p_max"] <= 32 for e in steps)
    assert sorted(e["p_mean"] for e in steps) == [e["p_mean"] for e in steps]
    assert steps[-1]["p_mean"] > 2
    assert summary["trained_accuracy"] > 50


def test_inq_says_its_portion_and_warns_of_untrained_weights(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL | {"scheme": "inq5", "portions": (0.25, 0.5, 1.0), "epochs": 3})
    summary, path = trained(tmp_path, config)
    log = events.tail(path / "events.jsonl")[0]
    alerts = [e["text"] for e in log if e["k"] == "alert"]
    assert len(alerts) == 1 and "trained weights" in alerts[0] and "--init" in alerts[0]
    portions = [e["portion"] for e in log if e["k"] == "step"]
    assert portions == sorted(portions) and {0.25, 0.5, 1.0} == set(portions)
    assert summary["packed_accuracy"] == summary["trained_accuracy"] and summary["largest_logit_difference"] == 0


def test_the_log_of_layers(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL | {"scheme": "w2a4", "oscillation_freeze": 0.005, "epochs": 2, "lr": 0.05})
    _, path = trained(tmp_path, config)
    layers = [e["layers"] for e in events.tail(path / "events.jsonl")[0] if e["k"] == "layers"]
    assert len(layers) == 2
    for name in ("conv2", "conv3"):
        line = layers[-1][name]
        assert line["bits"] == 2 and line["act_bits"] == 4 and line["scale"] > 0 and line["sqnr_db"] > 0
        assert 0 < line["flips"] < 1 and 0 <= line["oscillating"] <= 1 and 0 <= line["frozen"] < 1
    assert any(layers[-1][name]["frozen"] for name in layers[-1])


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL | {"lr": 1e20, "scheme": "float", "epochs": 3})
    with (
        run_of(tmp_path, config) as run,
        pytest.raises(ValueError, match=r"lower --lr|the last good checkpoint is kept"),
    ):
        execute(config, run, resume=False)
    log = events.tail(run.path / "events.jsonl")[0]
    assert log[-1]["k"] == "end"
    assert log[-1]["status"] == "error"
    checkpoint = run.path / "checkpoint.pt"
    if checkpoint.exists():
        assert all(
            bool(t.isfinite().all()) for t in read_checkpoint(checkpoint)["model"].values() if t.is_floating_point()
        )


def test_init_takes_prefixed_weights_under_a_key(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL | {"scheme": "float", "epochs": 1})
    with run_of(tmp_path, config) as run:
        model = Trainer(config, run, resume=False, should_stop=lambda: False).run()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "float.pt")
    config = TrainConfig(**SMALL | {"init": str(tmp_path / "float.pt"), "epochs": 1})
    summary, _ = trained(tmp_path, config)
    assert summary["float_accuracy"] is not None


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def start(root: Path, *flags: str) -> tuple[subprocess.Popen, Path]:
    """A real `tq train` in the background, and its run directory once it has written some steps."""
    command = [
        sys.executable,
        "-m",
        "tq",
        "train",
        "--model",
        "cnn",
        "--no-compile",
        "--image-size",
        "16",
        "--runs",
        str(root),
        *flags,
    ]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    patience = threading.Event()
    for _ in range(1200):
        for log in root.glob("*/events.jsonl"):
            if sum(e["k"] == "step" for e in events.tail(log)[0]) >= 3:
                return child, log.parent
        assert child.poll() is None, child.communicate()[1]
        patience.wait(0.05)
    child.kill()
    raise AssertionError("the trainer wrote no step in a minute")


def test_sigterm_stops_cleanly_and_resume_gives_the_same_file(tmp_path: Path) -> None:
    flags = ("--epochs", "40", "--scheme", "w1a2", "--optimizer", "hysteresis-sgd", "--lr", "0.02")
    child, path = start(tmp_path / "a", *flags, "--out", str(tmp_path / "a.safetensors"))
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert "checkpoint written" in out
    assert runs.status(path).state == "stopped"
    position = read_checkpoint(path / "checkpoint.pt")["position"]
    assert 0 < position["step"] < 40 * 11
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tq", "train", "--runs", str(tmp_path / "a"), "--resume", "last", "--json"]
    resumed = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    whole = [sys.executable, "-m", "tq", "train", "--model", "cnn", "--no-compile", "--image-size", "16"]
    done = subprocess.run(
        [*whole, *flags, "--runs", str(tmp_path / "b"), "--json"], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr
    files = [Path(json.loads(text.stdout)["file"]).read_bytes() for text in (resumed, done)]
    assert files[0] == files[1]
    assert (tmp_path / "a.safetensors").read_bytes() == files[0], "the resumed run knows its --out"


def test_a_second_trainer_on_a_run_is_refused_and_two_interrupts_end_it(tmp_path: Path) -> None:
    child, path = start(tmp_path, "--epochs", "400")
    command = [sys.executable, "-m", "tq", "train", "--runs", str(tmp_path), "--resume", path.name]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert "is held by a trainer" in second.stderr
    assert "Traceback" not in second.stderr
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode in (0, 130), err
    assert runs.status(path).state == "stopped"
