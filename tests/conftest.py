"""Factories that the tests share: small networks of odd sizes with random statistics, calibrated and quantized."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# before the first import of triton: without a GPU its interpreter runs the kernels
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# a shell that starts the tests in the background has Ctrl-C ignored, and what they start would inherit that
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
# of the processes that tests start, each beside another test
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch.nn.functional as F
from torch import Tensor, nn

from tq import models, queue, runs
from tq.attach import attach
from tq.ptq.calibrate import calibrate

# small networks are slower on several threads, and far slower when these compete with another process
torch.set_num_threads(1)

CLASSES = 7
SHAPES = {"cnn": (3, 13, 13), "lenet": (1, 13, 13), "resnet20": (3, 9, 9), "odd": (5, 11, 9), "branch": (3, 9, 7)}


class OddConvs(nn.Module):
    """Grouped, depthwise, dilated, strided and 1 x N convolutions with odd channels; one norm that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(5, 9, 3, padding=1), nn.BatchNorm2d(9)
        self.grouped, self.bn2 = nn.Conv2d(9, 15, 3, stride=2, padding=1, groups=3, bias=False), nn.BatchNorm2d(15)
        self.depthwise, self.bn3 = (
            nn.Conv2d(15, 15, 3, padding=2, dilation=2, groups=15, bias=False),
            nn.BatchNorm2d(15),
        )
        self.flat, self.plain = nn.Conv2d(15, 11, (1, 3), padding=(0, 1)), nn.Conv2d(11, 11, 1)
        self.twice = nn.BatchNorm2d(11)
        self.head = nn.Linear(11, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)))
        x = self.bn3(self.depthwise(F.relu(self.bn2(self.grouped(x)))))
        x = self.twice(self.flat(x))
        x = F.relu(self.twice(self.plain(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Branching(nn.Module):
    """A network that torch.fx cannot read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7)
        self.conv2, self.bn2 = nn.Conv2d(7, 9, 3, padding=1), nn.BatchNorm2d(9)
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if x.sum() > -1:
            x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@torch.no_grad()
def randomize_norms(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters as after training, gammas of both signs among them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            module.weight.normal_(0.8, 0.5)
            module.bias.normal_(0.1, 0.4)
    return model


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    """network(name, seed=0): a float network of SHAPES in evaluation mode."""

    def make(name: str, *, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        channels, size, _ = SHAPES[name]
        own = {"odd": OddConvs, "branch": Branching}
        args = {"num_classes": CLASSES, "in_channels": channels, "image_size": size}
        return randomize_norms(own[name]() if name in own else models.build(name, **args)).eval()

    return make


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """images(name, batch): normal float32 images for a network of SHAPES."""

    def make(name: str, batch: int = 3, *, seed: int = 1) -> Tensor:
        return torch.randn(batch, *SHAPES[name], generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def quantized(network: Callable[..., nn.Module], images: Callable[..., Tensor]) -> Callable[..., nn.Module]:
    """quantized(name, scheme, **options of attach): a calibrated network in training form, in evaluation mode."""

    def make(name: str, scheme: str, *, seed: int = 0, **options: Any) -> nn.Module:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.fx cannot read")
            model = attach(network(name, seed=seed), scheme, **options)
        calibrate(model, [images(name, 5)])
        return model.eval()

    return make


@pytest.fixture
def fake_tq(tmp_path: Path) -> Iterator[Callable[[str], list[str]]]:
    """fake_tq(script): the command of a script in the place of `tq`. What it has started is killed with the test."""

    def write(script: str) -> list[str]:
        (tmp_path / "fake.py").write_text(script)
        return [sys.executable, str(tmp_path / "fake.py")]

    yield write
    root = tmp_path / "runs"
    end([queue.runner_status(root, device) for device in queue.devices(root)])
    # after the runners, which would start the next one
    end([runs.status(path) for path in runs.list_runs(root)])


def end(holders: list[runs.Status]) -> None:
    """Kill the processes that hold something."""
    for status in holders:
        if status.pid:
            os.kill(status.pid, signal.SIGKILL)
