"""Incremental network quantization of a pretrained torchvision ResNet-18 on ImageNet, or any image folder.

    python benchmarks/inq_imagenet.py --data IMAGENET --pretrained resnet18.pth --out resnet18-inq5.safetensors
    torchrun --nproc-per-node 8 benchmarks/inq_imagenet.py --data IMAGENET --pretrained resnet18.pth

IMAGENET holds train/<class>/* and val/<class>/*. Every convolution and the classifier become powers of two, portion by
portion (arXiv 1702.03044, table 1: 5 bits, 68.98 / 89.10 % top-1 / top-5 against 68.27 / 88.69 of its float network).
Images are read by worker processes, so the set need not fit into memory. Ctrl-C loses at most one epoch: the same
command goes on from --checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from PIL import ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, DistributedSampler

import tq
from tq._torchvision import import_torchvision
from tq.cli import split_commas
from tq.data import normalise
from tq.distributed import World
from tq.file_info import Info
from tq.imagefolder import read_image
from tq.machine import pick_device
from tq.optim import INQSGD, INQScheduler, reset_lr_scheduler
from tq.resume import write_checkpoint
from tq.scheme import POW2_BITS
from tq.training_rules import check_portions, portions_of
from tq.weights import load_into, weights_from

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """INQ of ResNet-18 on an image folder."""

    data: Path
    """directory with train/<class>/* and val/<class>/*"""
    pretrained: Path
    """float weights of torchvision's resnet18: .pth, .pt or .safetensors"""
    bits: int = 5
    """bits of a weight, 2 to 8"""
    portions: tuple[float, ...] = ()
    """shares frozen one after the other, the last is 1; default: 0.5 0.75 0.875 1, more steps below 4 bits"""
    strategy: Literal["pruning", "random"] = "pruning"
    """which weights are frozen next: pruning (the largest) or random"""
    epochs: int = 4
    """epochs at each portion"""
    lr: float = 0.001
    """peak learning rate of each portion"""
    batch_size: int = 256
    """images per step, over all processes"""
    image_size: int = 224
    """height and width in pixels; images to validate are first resized to 8/7 of it"""
    workers: int = 8
    """processes that read images"""
    amp: bool = False
    """bfloat16 autocast in training"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is one"""
    checkpoint: Path = Path("inq_imagenet.pt")
    """written after each epoch; the same command goes on from it"""
    out: Path = Path("resnet18-inq.safetensors")
    """the packed network"""


def main(argv: list[str] | None = None) -> int:
    """Train, pack, measure the packed file; one sentence and 2 for bad input."""
    flags = tyro.cli(Flags, args=split_commas(sys.argv[1:] if argv is None else argv))
    world = World()
    try:
        world = World.join(flags.device)
        quantize(flags, world)
    except (ValueError, OSError) as error:
        print(f"inq_imagenet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"inq_imagenet: interrupted; the same command goes on from {flags.checkpoint}", file=sys.stderr)
        return 130
    finally:
        world.leave()
    return 0


def quantize(flags: Flags, world: World) -> dict[str, float]:
    """All portions; returns top-1 and top-5 of the float network and of the packed file, in percent."""
    console = Console(quiet=not world.main)
    portions = portions_of(flags.portions, flags.bits)
    device = _check(flags, portions)
    settings = [str(flags.pretrained.resolve()), str(flags.data.resolve()), flags.bits, list(portions)]
    settings += [flags.strategy, flags.epochs]
    train, val = loaders(flags, world)
    model = import_torchvision().models.resnet18(num_classes=len(train.dataset.classes))  # type: ignore[attr-defined]
    load_into(model, weights_from(flags.pretrained), where=str(flags.pretrained))
    model.to(device)
    found = dict(zip(("float_top1", "float_top5"), top(model, val, device), strict=True))
    console.print(f"float: top-1 {found['float_top1']:.2f} %, top-5 {found['float_top5']:.2f} %")

    tq.attach(model, f"inq{flags.bits}", first_last="same")
    optimizer = INQSGD(model.parameters(), lr=flags.lr, momentum=0.9, weight_decay=1e-4, weight_bits=flags.bits)
    inq = INQScheduler(optimizer, portions, flags.strategy)
    scheduler = CosineAnnealingLR(optimizer, flags.epochs * len(train))
    begin = _resumed(flags.checkpoint, settings, model, optimizer, inq)
    shared = world.averaging(model)
    for number in range(begin, flags.epochs * len(portions)):
        if number % flags.epochs == 0:
            inq.step()
        # the schedule is a function of the step within the portion, so that it needs no saving
        reset_lr_scheduler(scheduler)
        for _ in range(number % flags.epochs * len(train)):
            scheduler.step()
        if isinstance(train.sampler, DistributedSampler):
            train.sampler.set_epoch(number)
        loss = epoch(shared, optimizer, scheduler, track(train, console=console, transient=True), device, flags.amp)
        one, five = top(model, val, device)
        console.print(
            f"portion {inq.portion:g}, epoch {number + 1}: loss {loss:.3f}, top-1 {one:.2f}, top-5 {five:.2f}"
        )
        if world.main:
            state = {"settings": settings, "epoch": number + 1, "inq": inq.state_dict()}
            write_checkpoint(
                flags.checkpoint, {**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            )
    if world.main:
        found |= packed(flags, model, val, device, console)
    return found


def epoch(
    model: nn.Module, optimizer: INQSGD, scheduler: CosineAnnealingLR, batches: Iterable[Any], device: Any, amp: bool
) -> float:
    """One pass over the training images; the mean loss."""
    model.train()
    total, steps = torch.zeros((), device=device), 0
    for x, y in batches:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        total, steps = total + loss.detach(), steps + 1
    return float(total) / max(steps, 1)


@torch.inference_mode()
def top(model: nn.Module, batches: Iterable[Any], device: torch.device) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent."""
    model.eval()
    hits, count = torch.zeros(2, dtype=torch.int64), 0
    for x, y in batches:
        best: Tensor = model(x.to(device)).topk(5).indices.cpu() == y[:, None]
        hits += torch.stack([best[:, 0].sum(), best.any(1).sum()])
        count += len(y)
    return 100 * int(hits[0]) / count, 100 * int(hits[1]) / count


def loaders(flags: Flags, world: World) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training batches of this process and all validation batches. Raises ValueError for folders that do not fit."""
    vision = import_torchvision()
    transforms, size = vision.transforms, flags.image_size
    finish = partial(normalise, mean=MEAN, std=STD)
    crop = [ImageOps.exif_transpose, transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    random = transforms.Compose([*crop, transforms.PILToTensor(), finish])
    # as `tq eval` reads them, so that it measures the same
    middle = partial(read_image, channels=3, size=size, resize=resize_of(size))
    sets = []
    for name, given in (("train", {"transform": random}), ("val", {"loader": middle, "transform": finish})):
        try:
            sets.append(vision.datasets.ImageFolder(str(flags.data / name), **given))
        except (FileNotFoundError, OSError) as error:
            raise ValueError(f"expected image folders {flags.data}/{name}/<class>/*, got: {error}") from None
    train, val = sets
    if train.classes != val.classes or len(train.classes) < 5:
        raise ValueError(
            f"expected the same classes, at least 5, in train and val, got {len(train.classes)} and {len(val.classes)}"
        )
    if flags.batch_size % world.size or len(train) < flags.batch_size:
        raise ValueError(
            f"expected a --batch-size that {world.size} processes share and {len(train)} images fill, got "
            f"{flags.batch_size}; change it"
        )
    batch = flags.batch_size // world.size
    sampler = DistributedSampler(train, world.size, world.rank) if world.size > 1 else None
    common: dict[str, Any] = {"num_workers": flags.workers, "pin_memory": torch.cuda.is_available()}
    return (
        DataLoader(train, batch, shuffle=sampler is None, sampler=sampler, drop_last=True, **common),
        DataLoader(val, batch, **common),
    )


def resize_of(size: int) -> int:
    """The shorter side before the crop: 256 for 224, as torchvision's networks are measured."""
    return size * 8 // 7


def packed(flags: Flags, model: nn.Module, val: Any, device: torch.device, console: Console) -> dict[str, float]:
    """Save, read back, measure what was read."""
    simulated = top(model, val, device)
    classes = tuple(val.dataset.classes)
    args = {"num_classes": len(classes), "in_channels": 3, "image_size": flags.image_size}
    data = {"name": "imagefolder", "size": flags.image_size, "resize": resize_of(flags.image_size), "channels": 3}
    data |= {"mean": list(MEAN), "std": list(STD)}
    size = tq.save(model, flags.out, Info({"name": "resnet18", "args": args}, data, classes))
    one, five = top(tq.load(flags.out, device=device), val, device)
    if (one, five) != simulated:
        raise ValueError(f"the packed file gives {one:.2f} / {five:.2f} % where training measured {simulated}")
    console.print(f"{flags.out}: {size:,} bytes, top-1 {one:.2f} %, top-5 {five:.2f} %, read back")
    return {"packed_top1": one, "packed_top5": five, "bytes": size}


def _check(flags: Flags, portions: tuple[float, ...]) -> torch.device:
    """The device. Raises ValueError for what would only show after the first evaluation or epoch."""
    check_portions(portions)
    if flags.bits not in POW2_BITS:
        raise ValueError(f"expected --bits from {POW2_BITS[0]} to {POW2_BITS[-1]}, got {flags.bits}; change it")
    if flags.epochs < 1 or not flags.lr > 0:
        raise ValueError(f"expected --epochs of at least 1 and --lr above 0, got {flags.epochs} and {flags.lr}")
    for file in (flags.checkpoint, flags.out):
        if not file.resolve().parent.is_dir():
            raise ValueError(f"the directory of {file} does not exist; make it first")
    device = pick_device(flags.device)
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def _resumed(path: Path, settings: list[Any], model: nn.Module, optimizer: INQSGD, inq: INQScheduler) -> int:
    """The epoch to begin with: after the last one in the checkpoint, 0 without one."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}); delete it to start anew") from None
    if not isinstance(state, dict) or state.get("settings") != settings:
        raise ValueError(f"{path} is of other settings; give another --checkpoint, or delete it to start anew")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    inq.load_state_dict(state["inq"])
    return int(state["epoch"])


if __name__ == "__main__":
    sys.exit(main())
