"""Pictures on disk become square uint8 tensors: a folder of classes as two splits, or one file by itself.

`scan` finds the files of ROOT/train/<class>/* and ROOT/test (or val) and checks that both have the same classes;
`Pictures.decode` reads them on all cores into memory; `fit` says beforehand whether there is room. `read_image` gives
one picture just as `decode` would give it, so a prediction sees what training saw. A picture is resized (bilinear,
antialiased) until its shorter side has `resize` pixels, by default as many as are kept, and cropped at its centre. A
bad folder or file is a ValueError of one sentence.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# How much larger than its crop a picture may be resized; networks in use have 8/7.
MOST_RESIZED = 8
# Files that a thread decodes in a row.
CHUNK = 64


@dataclass(frozen=True)
class Pictures:
    """Image files of one split, not decoded yet."""

    paths: tuple[str, ...]
    mode: str
    """Pillow's: L or RGB"""
    size: int
    resize: int | None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return (1 if self.mode == "L" else 3), self.size, self.size

    def decode(self, chosen: Sequence[int] | None = None) -> Tensor:
        """uint8 [N,C,H,W] of all, or of those with the chosen indices. Raises ValueError."""
        files = self.paths if chosen is None else [self.paths[i] for i in chosen]
        images = np.empty((len(files), *self.shape), dtype=np.uint8)
        with _progress(len(files)) as progress:
            task = progress.add_task(
                f"decoding {len(files):,} images ({images.nbytes / 2**20:,.0f} MiB)", total=len(files)
            )

            def work(begin: int) -> None:
                chunk = files[begin : begin + CHUNK]
                for i, path in enumerate(chunk, begin):
                    images[i] = _decode(path, self.mode, self.size, self.resize)
                progress.advance(task, len(chunk))

            _in_parallel(work, range(0, len(files), CHUNK))
        return torch.from_numpy(images)


def fit(count: int, shape: Sequence[int]) -> None:
    """Raises ValueError: memory does not suffice for so many images [C,H,W], uint8."""
    check_memory(count * math.prod(shape), f"{count:,} images of {shape[1]}x{shape[2]}")


Labelled = tuple[Pictures, Tensor]
"""and their classes int64 [N]"""


def check_resize(size: Any, resize: Any) -> None:
    """Raises ValueError: `resize` is not None and cannot be the shorter side before a centre crop to `size`."""
    whole = type(size) is int and type(resize) is int
    if resize is not None and not (whole and 1 <= size <= resize <= MOST_RESIZED * size):
        raise ValueError(
            "expected resize, the shorter side before the centre crop, to be a whole number from the image size to "
            f"{MOST_RESIZED} times it, got {resize!r} for the size {size!r}"
        )


def check_memory(need_bytes: int, what: str) -> None:
    """Raises ValueError: that much memory is not free for `what`."""
    free = _available_bytes()
    if free is not None and need_bytes > 0.9 * free:
        raise ValueError(
            f"{what} need {need_bytes / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free; make them smaller or fewer"
        )


def scan(root: Path, image_size: int | None, resize: int | None = None) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """ROOT/train/<class>/* and ROOT/test or ROOT/val: the two splits and the names of the classes.

    Images have one channel if a sample is all gray, else three (RGB). image_size None takes the shorter side of the
    first. Raises ValueError with one sentence when a folder or a file's header is missing or damaged.
    """
    test_dir = next((root / name for name in ("test", "val") if (root / name).is_dir()), root / "test")
    for folder in (root / "train", test_dir):
        if not folder.is_dir():
            raise ValueError(
                f"imagefolder {root} must hold train/<class>/* and test/<class>/* (or val), but {folder} does not exist"
            )
    train, test = _scan(root / "train"), _scan(test_dir)
    if odd := sorted(train.keys() ^ test.keys()):
        there, absent = ("train", test_dir.name) if odd[0] in train else (test_dir.name, "train")
        raise ValueError(
            f"{root}/{there} has a class folder {odd[0]!r} that {root}/{absent} lacks; both need the same classes"
        )
    paths = [path for files in train.values() for path in files]
    sample = [_probe(path) for path in paths[:: -(-len(paths) // 64)]]
    mode = "L" if all(gray for gray, _ in sample) else "RGB"
    size = image_size or sample[0][1]
    first, second = (_labelled(folder, mode, size, resize) for folder in (train, test))
    return first, second, tuple(train)


def _labelled(folder: dict[str, list[str]], mode: str, size: int, resize: int | None) -> Labelled:
    paths = tuple(path for files in folder.values() for path in files)
    labels = torch.tensor([label for label, files in enumerate(folder.values()) for _ in files])
    return Pictures(paths, mode, size, resize), labels


def read_image(path: str | Path, *, channels: int, size: int | None, resize: int | None = None) -> Tensor:
    """One image file as uint8 [C,size,size]: shorter side resized, centre cropped; size None keeps the shorter side.

    channels is 1 (gray) or 3 (RGB), resize is `size` by default. Raises ValueError naming a file that is missing or
    cannot be decoded.
    """
    if channels not in (1, 3):
        raise ValueError(f"images are read with 1 or 3 channels, got {channels}")
    check_resize(size, resize)
    return torch.from_numpy(_decode(path, "L" if channels == 1 else "RGB", size, resize))


def _decode(path: str | Path, mode: str, size: int | None, resize: int | None) -> np.ndarray:
    """uint8 [C,size,size]"""
    # Pillow's decoders raise many types for damaged files; all mean the same to the user.
    try:
        with Image.open(path) as image:
            return _square(image, mode, size, resize)
    except FileNotFoundError:
        raise ValueError(f"image {path} does not exist") from None
    except Exception as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise ValueError(f"image {path} cannot be read: {reason}") from error


def _square(image: Image.Image, mode: str, size: int | None, resize: int | None) -> np.ndarray:
    size = size or min(image.size)
    resize = resize or size
    shrink = resize / min(image.size)
    # A JPEG decodes directly at 1/2, 1/4 or 1/8, never below what is asked for: several times faster. Its true extent
    # is then a fraction of a pixel less than its size.
    wanted = (math.ceil(image.width * shrink), math.ceil(image.height * shrink))
    drafted = image.draft(None, wanted) if shrink < 1 else None
    width, height = drafted[1][2:] if drafted else image.size
    before = image.size
    ImageOps.exif_transpose(image, in_place=True)
    if image.size != before:
        width, height = height, width
    picture: Image.Image = image
    if picture.mode.startswith("I"):
        # 16 bits a pixel, which convert() alone would clip at 255.
        picture = picture.convert("I").point(lambda v: v * (1 / 256))
    if picture.mode != mode:
        picture = picture.convert(mode)
    # Only what the crop will keep is resized; the filter sees the pixels around the box. The margins are not rounded to
    # whole pixels, as a crop after the resizing would have to: that shifts the picture by half a pixel at most.
    side = min(width, height) * (size / resize)
    left, top = (width - side) / 2, (height - side) / 2
    if side != size:
        picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    elif picture.size != (size, size):
        picture = picture.crop((int(left), int(top), int(left) + size, int(top) + size))
    return np.array(picture, dtype=np.uint8).reshape(size, size, -1).transpose(2, 0, 1).copy()


def _scan(folder: Path) -> dict[str, list[str]]:
    """Class name -> its image files, both sorted; other files are passed over, sub-folders are searched."""
    found: dict[str, list[str]] = {}
    for name in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")):
        walk = os.walk(folder / name, followlinks=True)
        files = sorted(
            os.path.join(at, f) for at, _, names in walk for f in names if f.lower().endswith(IMAGE_SUFFIXES)
        )
        if not files:
            raise ValueError(f"class folder {folder / name} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        found[name] = files
    if not found:
        raise ValueError(f"{folder} holds no class folders; expected {folder}/<class>/*.jpg or another image format")
    return found


def _probe(path: str) -> tuple[bool, int]:
    """(gray, shorter side) from the header alone."""
    try:
        with Image.open(path) as image:
            return image.mode in ("1", "L", "LA") or image.mode.startswith("I"), min(image.size)
    except Exception as error:
        raise ValueError(f"image {path} cannot be read: {error}") from error


def _in_parallel(work: Callable[[int], None], items: Iterable[int]) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        jobs = [pool.submit(work, item) for item in items]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            # One bad file, or Ctrl-C, must not wait for the rest of a long decode.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _progress(count: int) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=count < 5000 or not console.is_terminal)


def _available_bytes() -> int | None:
    """Memory that may still be used, by the machine's and the container's (cgroup v2) account; None when unknown."""
    limits = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        limits.append(1024 * int(text.split("MemAvailable:")[1].split()[0]))
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return min(limits, default=None)
