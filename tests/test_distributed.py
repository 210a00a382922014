"""`torchrun -m tq train` and `tq.distributed.World`: two processes with gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from tq import events, runs
from tq.config import TrainConfig
from tq.distributed import World
from tq.step import TrainStep, make_optimizer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tq", "train"]
SMALL = ["--dataset", "digits", "--model", "cnn", "--image-size", "16", "--no-compile", "--show", "progress", "--json"]


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 6, 6, generator=generator), torch.randint(4, (8,), generator=generator)


def steps(world: World, *, compile: bool, optimizer: str = "sgd") -> list[torch.Tensor]:
    """Three steps of a network without batch normalization, whose statistics are those of a process's own images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    config = TrainConfig(scheme="float", optimizer=optimizer, qp=6 if optimizer == "qsgd" else 0)  # type: ignore[arg-type]
    step = TrainStep(model, make_optimizer(model, config), compile=compile, amp=False, world=world)
    for seed in range(3):
        x, y = batch(seed)
        step(x[world.rank :: world.size], y[world.rank :: world.size], 0.1)
    return [p.detach() for p in model.parameters()]


def one_of_two(rank: int, out: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = World.join("cpu")
    assert world.main == (rank == 0) and world.size == 2
    assert world.tell({"from": rank}) == {"from": 0}
    assert (world.worst(rank), world.worst(0)) == (1, 0)
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, float(rank))
    world.same(layer)
    assert not layer.weight.any()
    ways = [steps(world, compile=False), steps(world, compile=True), steps(world, compile=False, optimizer="qsgd")]
    torch.save(ways, f"{out}{rank}")
    world.leave()


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    port, out = 29500 + os.getpid() % 2000, str(tmp_path / "weights")
    # this file as a program: a spawned process could not import it as a module wherever the tests are started from
    both = [subprocess.Popen([sys.executable, __file__, str(rank), out, str(port)]) for rank in range(2)]
    assert [process.wait(240) for process in both] == [0, 0]
    first, second = (torch.load(tmp_path / f"weights{rank}") for rank in range(2))
    for way, optimizer, off in ((0, "sgd", 1e-6), (1, "sgd", 1e-6), (2, "qsgd", 2.1 * 2.0**-6)):
        alone = steps(World(), compile=False, optimizer=optimizer)
        for a, b, c in zip(first[way], second[way], alone, strict=True):
            assert torch.equal(a, b), "the processes have drifted apart"
            # sums in another order may round an update to the next multiple of 2^-6
            torch.testing.assert_close(a, c, rtol=1e-4, atol=off)


def test_torchrun_stops_resumes_and_packs(tmp_path: Path) -> None:
    command = [*TORCHRUN, *SMALL, "--runs", str(tmp_path), "--scheme", "w1a2", "--float-epochs", "1", "--epochs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (found := runs.list_runs(tmp_path)) or not _steps(found[0]):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    assert runs.status(found[0]).state == "stopped"
    resume = [*TORCHRUN, "--runs", str(tmp_path), "--json", "--show", "nothing", "--resume", "last"]
    done = subprocess.run(resume, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["status"] == "ok" and summary["packed_accuracy"] == summary["trained_accuracy"]
    assert runs.list_runs(tmp_path) == found
    log = events.tail(found[0] / "events.jsonl")[0]
    assert [e["k"] for e in log].count("start") == 2 and log[-1]["status"] == "ok"


def _steps(path: Path) -> int:
    log = path / "events.jsonl"
    return sum(e["k"] == "step" for e in events.tail(log)[0]) if log.exists() else 0


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
