"""What `tq export` and `tq verify` share: a file, and test images to check it on, with progress on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor, nn

from tq import checkpoint
from tq import data as datasets
from tq.commands.evaluate import data_of, file_of, own_model
from tq.describe import normal_of
from tq.file_info import Info
from tq.flags.files import OnTestImages
from tq.layers import channels_last
from tq.onnx.engines import Agreement, agreement, open_engine
from tq.packed import packed_layers


@dataclass(frozen=True)
class Sample:
    """Test images uint8 [N, C, H, W] with classes [N], and how they are prepared."""

    dataset: str
    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    device: torch.device

    def batches(self, progress: Progress, what: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 batches with their classes; `what` is the progress bar's text."""
        bar = progress.add_task(what, total=len(self.labels))
        for pixels, labels in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            yield channels_last(datasets.normalise(pixels.to(self.device), self.mean, self.std)), labels.to(self.device)
            progress.advance(bar, len(labels))
        progress.remove_task(bar)


def packed_file(flags: OnTestImages) -> tuple[Path, Info]:
    """The file that is meant. Raises ValueError."""
    if flags.images < 0 or flags.batch_size < 1:
        raise ValueError(f"expected --images >= 0 and --batch-size >= 1, got {flags.images} and {flags.batch_size}")
    path = file_of(flags.file, flags.runs)
    return path, checkpoint.read_info(path)


def load_packed(path: Path, info: Info, flags: OnTestImages, *, impl: str, device: torch.device | str) -> nn.Module:
    """The packed network. Raises ValueError: the file holds float weights."""
    model = checkpoint.load(path, model=own_model(flags.model, info), impl=impl, device=device)
    if not packed_layers(model):
        raise ValueError(f"expected a packed file, got float weights in {path}; pack them first: tq quantize {path}")
    return model


def sample_of(info: Info, flags: OnTestImages, device: torch.device | str = "cpu") -> Sample:
    """The test images that a check runs on, evenly chosen. Raises ValueError."""
    data = data_of(info, flags.dataset, flags.data)
    count = min(flags.images, len(data.test))
    chosen = torch.linspace(0, len(data.test) - 1, count).round().long()
    images, labels = data.test.take(chosen), data.test.labels[chosen]
    return Sample(data.name, images, labels, *normal_of(info, data), flags.batch_size, torch.device(device))


def progress_on(log: Console) -> Progress:
    """A bar that goes away when done; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=log, transient=True, disable=not log.is_terminal)


def agreement_of(name: str, file: Path, expected: Tensor, sample: Sample, progress: Progress) -> Agreement:
    """An ONNX file's logits in one engine beside the packed network's `expected` [N, classes]. Raises ValueError."""
    engine = open_engine(name, file)
    got = torch.cat([engine(x) for x, _ in sample.batches(progress, f"{file.name} in {name}")])
    return agreement(name, expected, got, sample.labels)
