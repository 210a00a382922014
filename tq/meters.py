"""What a training loop reports about itself, without making the device wait."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

REPORT_EVERY_S = 0.2


class StepMeter:
    """Averages loss and accuracy between reports, at most five a second.

    On CUDA the sums are copied to the host asynchronously and reported one interval later, so a report never
    synchronises; on the CPU they are read at once.
    """

    loss: Tensor | float
    correct: Tensor | float
    steps: int
    images: int
    since: float

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.pending: tuple[Tensor, torch.cuda.Event, float] | None = None
        self._reset()

    def add(
        self,
        loss: Tensor,
        correct: Tensor,
        images: int,
        flip_rate: Callable[[], Tensor | None],
        resolution: Callable[[], Tensor | None],
    ) -> dict[str, float] | None:
        """Count one step (0-dim tensors). Returns the fields of a `step` event when one is due, else None.

        The two functions are asked only then; `resolution` gives [3], the smallest, mean and largest p.
        """
        self.loss, self.correct = self.loss + loss, self.correct + correct
        self.steps += 1
        self.images += images
        elapsed = time.monotonic() - self.since
        if elapsed < REPORT_EVERY_S:
            return None
        values = {"loss": self.loss / self.steps, "acc": self.correct * (100.0 / self.images)}
        if (flips := flip_rate()) is not None:
            values["flip_rate"] = flips / self.steps
        if (p := resolution()) is not None:
            values |= dict(zip(("p_min", "p_mean", "p_max"), p.unbind(), strict=True))
        names, packed = tuple(values), torch.stack(list(values.values()))
        images_per_s = self.images / elapsed
        self._reset()
        if not self.cuda:
            return _fields(names, packed, images_per_s)
        earlier = self.pending
        event = torch.cuda.Event()
        host = packed.to("cpu", non_blocking=True)
        event.record()
        self.pending = (host, event, images_per_s)
        if earlier is None or not earlier[1].query():
            return None
        # the names are those of every report of this run
        return _fields(names, earlier[0], earlier[2])

    def _reset(self) -> None:
        self.loss = self.correct = 0.0
        self.steps = self.images = 0
        self.since = time.monotonic()


def _fields(names: tuple[str, ...], values: Tensor, images_per_s: float) -> dict[str, float]:
    return {**dict(zip(names, values.tolist(), strict=True)), "img_s": images_per_s}


def system_load(device: torch.device) -> dict[str, float]:
    """CPU in percent of one core, resident memory in bytes, and the device's memory in bytes."""
    process = psutil.Process()
    load = {"cpu": psutil.cpu_percent(), "rss": float(process.memory_info().rss)}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        load |= {"gpu_mem": float(total - free), "torch_mem": float(torch.cuda.memory_allocated(device))}
    return load


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's and how many threads of it are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return f"{next(names, platform.machine())}, {threads} thread{'s' if threads > 1 else ''}"
