"""Data sets held in memory as uint8, and deterministic batches of them.

`load` gives a DataSet of two Splits; `Batches` shuffles, augments and normalises whole batches at once. The order is
a function of (seed, epoch) and the augmentation one of (seed, epoch, batch), drawn on the CPU without the global
generator, so a run that resumes in the middle of an epoch, or on another device, sees the same pixels bit for bit.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tq import imagefolder
from tq._torchvision import import_torchvision
from tq.dataset import DataSet as DataSet
from tq.dataset import Normal as Normal
from tq.dataset import Split as Split

# (mean, std) of the training pixels in 0..1, the constants in common use.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load(
    name: str,
    *,
    root: str | None,
    download: bool = False,
    image_size: int | None = None,
    resize: int | None = None,
    whole: bool = True,
) -> DataSet:
    """The data set `name` (digits, mnist, cifar10, cifar100, imagefolder) with square images of `image_size` pixels.

    With `resize` they are the centres of images whose shorter side has that many pixels. With `whole` all pictures of
    a folder are decoded at once, for training; else each when it is needed. Raises ValueError with one sentence when
    the files are missing, damaged or do not fit into memory.
    """
    # from callers whose value nothing has checked
    if image_size is not None and (type(image_size) is not int or image_size < 1):
        raise ValueError(f"image_size must be at least 1, got {image_size!r}")
    imagefolder.check_resize(image_size, resize)
    if name == "digits":
        return _digits(image_size or 32, resize)
    if name not in ("imagefolder", *STATISTICS):
        raise ValueError(f"unknown data set {name!r}: expected digits, mnist, cifar10, cifar100 or imagefolder")
    if root is None:
        hint = ", and --download to fetch it" if name in STATISTICS else ""
        raise ValueError(f"data set {name} needs its directory: pass --data DIR{hint}")
    folder = Path(root).expanduser()
    if name == "imagefolder":
        return _imagefolder(folder, image_size, resize, whole=whole)
    return _torchvision(name, folder, download, image_size, resize)


class Batches:
    """Shuffled training batches of one split; the last partial batch is dropped.

    Of every global batch of `batch_size` images, rank r of `world_size` gets images r, r + world_size, ...
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str,
        mean: Normal,
        std: Normal,
        seed: int,
        augment: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(split) < batch_size:
            raise ValueError(
                f"the training split has {len(split)} images, fewer than one batch of {batch_size}; lower --batch-size"
            )
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} must be a multiple of the {world_size} processes")
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.mean, self.std = mean, std
        home = self.device if _fits(split.images, self.device) else torch.device("cpu")
        self.images, self.labels = split.images.to(home), split.labels.to(home)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches start, start + 1, ... of an epoch: float32 [B,C,H,W] normalised, int64 [B], on the device."""
        order = torch.randperm(len(self.labels), generator=_generator(self.seed, epoch)).to(self.images.device)
        for i in range(start, len(self)):
            index = order[i * self.batch_size : (i + 1) * self.batch_size][self.rank :: self.world_size]
            x = self.images.index_select(0, index).to(self.device, non_blocking=True)
            y = self.labels.index_select(0, index).to(self.device, non_blocking=True)
            if self.augment:
                x = self._augmented(x, _generator(self.seed, epoch, i))
            yield normalise(x, self.mean, self.std), y

    def _augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Crop at random from the batch padded by 4 pixels of 32; mirror half of the colour images. uint8 [B,C,H,W]"""
        channels, height, width = x.shape[1:]
        pad = max(1, min(height, width) // 8)
        # Drawn for the whole global batch, so that what an image gets does not depend on the number of processes.
        offset = torch.randint(2 * pad + 1, (2, self.batch_size), generator=generator)
        mirror = torch.randint(2, (self.batch_size,), generator=generator) == 1
        offset, mirror = (
            t[..., self.rank :: self.world_size].to(x.device, non_blocking=True) for t in (offset, mirror)
        )
        rows = torch.arange(height, device=x.device) + offset[0][:, None]  # [B,H]
        columns = torch.arange(width, device=x.device)
        if channels > 1:
            columns = torch.where(mirror[:, None], columns.flip(0), columns)
        columns = columns + offset[1][:, None]  # [B,W]
        index = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)  # [B,H*W]
        padded = F.pad(x, (pad, pad, pad, pad)).flatten(2)
        return padded.gather(2, index[:, None, :].expand(-1, channels, -1)).view_as(x)


def eval_batches(
    split: Split, *, batch_size: int, device: torch.device | str, mean: Normal, std: Normal
) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole split in order, the last partial batch included: float32 [B,C,H,W] normalised, int64 [B]."""
    for i in range(0, len(split), batch_size):
        x, y = split.images[i : i + batch_size].to(device), split.labels[i : i + batch_size].to(device)
        yield normalise(x, mean, std), y


def normalise(images: Tensor, mean: Normal, std: Normal) -> Tensor:
    """(x / 255 - mean) / std of uint8 [N,C,H,W] or [C,H,W] as one multiplication and one addition, in float32."""
    if len(mean) != images.shape[-3] or len(std) != len(mean):
        raise ValueError(
            f"images have {images.shape[-3]} channels, but mean and std have {len(mean)} and {len(std)} values"
        )
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    # Two roundings, not addcmul's one: that is contracted on some devices only, and all must see the same values.
    return (images * scale).add_(shift)


@lru_cache(maxsize=32)
def _affine(mean: Normal, std: Normal, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, because making them on a GPU waits for it at every step; and made so that training may use them even when
    # an evaluation under inference_mode came first.
    with torch.inference_mode(False):
        scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=device)
    return scale[:, None, None], shift[:, None, None]


def _digits(image_size: int, resize: int | None) -> DataSet:
    """scikit-learn's 1,797 8x8 digits (Alpaydin and Kaynak, UCI 1998), enlarged; a fifth of every class is for test."""
    try:
        bunch = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError:
        raise ValueError("data set digits comes with scikit-learn: pip install scikit-learn") from None
    small = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    images = _resized(small, image_size, resize)
    labels = torch.from_numpy(bunch.target).long()
    # Fixed for good and not by the run's seed: accuracies of different runs must be on the same images. RandomState
    # is NumPy's frozen generator, whose stream never changes.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    of_class = [order[labels[order] == c] for c in range(10)]
    picked = torch.cat([members[: round(len(members) / 5)] for members in of_class])
    is_test = torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, picked, True)
    train, test = (Split(images[part], labels[part]) for part in (~is_test, is_test))
    return DataSet("digits", train, test, tuple("0123456789"), resize=resize)


def _torchvision(name: str, root: Path, download: bool, image_size: int | None, resize: int | None) -> DataSet:
    kind = getattr(import_torchvision().datasets, name.upper())
    where = root / kind.base_folder if name != "mnist" else root / "MNIST" / "raw"
    try:
        parts = [kind(root=str(root), train=train, download=download) for train in (True, False)]
    except Exception as error:
        if download:
            raise ValueError(f"{name} could not be downloaded into {root} ({error})") from error
        state = "is missing or damaged" if where.is_dir() else "does not exist"
        raise ValueError(
            f"{name} was looked for in {where}, which {state}; pass the right --data DIR, or --download to fetch it"
        ) from error
    splits = []
    for part in parts:
        images = torch.as_tensor(part.data)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        images = _resized(images, image_size, resize) if image_size else images
        splits.append(Split(images.contiguous(), torch.as_tensor(part.targets, dtype=torch.int64)))
    classes = tuple("0123456789") if name == "mnist" else tuple(parts[0].classes)
    return DataSet(name, splits[0], splits[1], classes, STATISTICS[name], resize)


def _imagefolder(root: Path, image_size: int | None, resize: int | None, *, whole: bool) -> DataSet:
    (train, train_labels), (test, test_labels), classes = imagefolder.scan(root, image_size, resize)
    if not whole:
        return DataSet("imagefolder", Split(train, train_labels), Split(test, test_labels), classes, resize=resize)
    # Once for both: what the system keeps of the files that it has read may count as taken.
    imagefolder.fit(len(train) + len(test), train.shape)
    decoded = Split(train.decode(), train_labels), Split(test.decode(), test_labels)
    return DataSet("imagefolder", *decoded, classes, resize=resize)


def _resized(images: Tensor, size: int, resize: int | None) -> Tensor:
    """uint8 or float [N,C,H,W] -> uint8 [N,C,size,size], bilinear, a thousand at a time; of `resize` the centre."""
    side = resize or size
    if images.shape[-2:] == (size, size) == (side, side) and images.dtype == torch.uint8:
        return images
    (count, channels), chunk = images.shape[:2], 1024
    need = channels * (count * size**2 + 4 * min(count, chunk) * side**2)
    imagefolder.check_memory(need, f"{count:,} images of {side}x{side}")
    scale = partial(F.interpolate, size=(side, side), mode="bilinear", antialias=True)
    edge = (side - size) // 2
    parts = (scale(part.float())[..., edge : edge + size, edge : edge + size] for part in images.split(chunk))
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])


def _generator(*key: int) -> torch.Generator:
    """A CPU generator seeded by a hash, so that neighbouring seeds, epochs and batches are unrelated."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    # The other half is for the network, its gradients and its activations.
    return images.numel() < free / 2
