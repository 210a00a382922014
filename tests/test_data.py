"""tq.data: every data set from files made here in the real formats, and batches against loops written out."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tq import data, imagefolder
from tq._torchvision import import_torchvision
from tq.data import Batches, Split

RANDOM = np.random.default_rng(0)
# With these, normalise gives back the bytes as floats.
MEAN, STD = (0.0,) * 3, (1 / 255,) * 3


def _bytes(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def _split(count: int = 100, channels: int = 3, size: int = 32) -> Split:
    """Channel 0 holds the row, 1 the column and 2 the index of the image; the label is the index."""
    ramp = torch.arange(1, size + 1, dtype=torch.uint8)
    index = torch.arange(count, dtype=torch.uint8)
    planes = [ramp[:, None].expand(size, size), ramp.expand(size, size)]
    images = torch.stack(
        [*(p.expand(count, size, size) for p in planes), index[:, None, None].expand(count, size, size)], 1
    )
    return Split(images[:, :channels].contiguous(), torch.arange(count))


def _batches(split: Split, *, batch_size: int = 10, seed: int = 0, augment: bool = True, **ranks: int) -> Batches:
    c = split.images.shape[1]
    return Batches(
        split, batch_size=batch_size, device="cpu", mean=MEAN[:c], std=STD[:c], seed=seed, augment=augment, **ranks
    )


def _same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(p[0], q[0]) and torch.equal(p[1], q[1]) for p, q in zip(a, b, strict=True)
    )


def test_load_digits() -> None:
    d = data.load("digits", root=None)
    assert (
        d.train.images.shape[1:] == (1, 32, 32)
        and len(d.train) + len(d.test) == 1797
        and len(d.test) in range(355, 365)
    )
    assert (
        d.train.images.dtype == torch.uint8 and d.train.labels.dtype == torch.int64 and d.classes == tuple("0123456789")
    )
    share = d.test.labels.bincount() / (d.test.labels.bincount() + d.train.labels.bincount())
    assert (share - 0.2).abs().max() < 0.004
    x = data.normalise(d.train.images, d.mean, d.std)
    assert abs(x.mean().item()) < 1e-4 and abs(x.std().item() - 1) < 1e-4
    # The split is part of what an accuracy means, so it must never change: checked by value.
    assert d.test.labels[:12].tolist() == [4, 5, 6, 9, 4, 7, 8, 9, 9, 6, 9, 9]
    torch.manual_seed(5)
    again = data.load("digits", root=None)
    assert torch.equal(again.test.images, d.test.images)


def test_load_digits_at_their_own_size() -> None:
    original = importlib.import_module("sklearn.datasets").load_digits().images
    d = data.load("digits", root=None, image_size=8)
    both = torch.cat([d.train.images, d.test.images]).double().sum() * 16 / 255
    assert both.item() == pytest.approx(original.sum(), rel=1e-3)


def test_load_digits_with_resize() -> None:
    large, d = data.load("digits", root=None, image_size=20), data.load("digits", root=None, image_size=16, resize=20)
    assert d.resize == 20 and large.resize is None
    assert torch.equal(d.test.images, large.test.images[..., 2:18, 2:18])
    small = data.load("digits", root=None, image_size=8, resize=8).test.images
    assert torch.equal(small, data.load("digits", root=None, image_size=8).test.images)


@pytest.mark.parametrize(
    ("image_size", "resize", "message"),
    [
        (0, None, "image_size must be at least 1, got 0"),
        ("16", None, "image_size must be at least 1, got '16'"),
        (10**7, None, "1,797 images of 10000000x10000000 need .* GiB"),
        (16, 15, "to 8 times it, got 15 for the size 16"),
        (None, 36, "got 36 for the size None"),
    ],
)
def test_load_refuses_sizes(image_size: Any, resize: int | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefolder, "_available_bytes", lambda: 2**40)
    with pytest.raises(ValueError, match=message):
        data.load("digits", root=None, image_size=image_size, resize=resize)


def _idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> dict[str, np.ndarray]:
    files = {"train-images": _bytes(20, 28, 28), "train-labels": _bytes(20) % 10}
    files |= {"t10k-images": _bytes(7, 28, 28), "t10k-labels": _bytes(7) % 10}
    for name, array in files.items():
        _idx(tmp_path / "MNIST" / "raw" / f"{name}-idx{array.ndim}-ubyte", array)
    return files


def test_load_mnist(tmp_path: Path, mnist: dict[str, np.ndarray]) -> None:
    d = data.load("mnist", root=str(tmp_path))
    assert np.array_equal(d.train.images[:, 0], mnist["train-images"]) and d.train.images.shape == (20, 1, 28, 28)
    assert np.array_equal(d.test.labels, mnist["t10k-labels"]) and d.test.labels.dtype == torch.int64
    assert (d.mean, d.std) == ((0.1307,), (0.3081,))
    large = data.load("mnist", root=str(tmp_path), image_size=32).test.images
    assert large.shape == (7, 1, 32, 32) and large.dtype == torch.uint8
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"short")
    with pytest.raises(ValueError, match="MNIST/raw, which is missing or damaged"):
        data.load("mnist", root=str(tmp_path))


def test_load_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = import_torchvision().datasets
    for name, folder, label in (
        ("CIFAR10", "cifar-10-batches-py", "labels"),
        ("CIFAR100", "cifar-100-python", "fine_labels"),
    ):
        kind = getattr(datasets, name)
        (tmp_path / folder).mkdir()
        sums = {}
        entries: dict[str, dict[str, Any]] = {
            file: {"data": _bytes(5, 3072), label: [4, 3, 2, 1, 0]} for file, _ in kind.train_list + kind.test_list
        }
        for file, entry in (entries | {kind.meta["filename"]: {kind.meta["key"]: list("abcde")}}).items():
            blob = pickle.dumps(entry)
            (tmp_path / folder / file).write_bytes(blob)
            sums[file] = hashlib.md5(blob).hexdigest()
        # torchvision checks the published sums before it unpickles; these files have their own.
        monkeypatch.setattr(kind, "train_list", [[file, sums[file]] for file, _ in kind.train_list])
        monkeypatch.setattr(kind, "test_list", [[file, sums[file]] for file, _ in kind.test_list])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums[kind.meta["filename"]]})
        d = data.load(name.lower(), root=str(tmp_path))
        first, last = kind.train_list[0][0], kind.test_list[0][0]
        assert np.array_equal(d.train.images[:5].flatten(1), entries[first]["data"]) and d.train.images.is_contiguous()
        assert np.array_equal(d.test.images.flatten(1), entries[last]["data"]) and d.test.labels.tolist() == [
            4,
            3,
            2,
            1,
            0,
        ]
        assert d.classes == tuple("abcde") and len(d.mean) == len(d.std) == 3
        (tmp_path / folder / first).write_bytes(b"other")
        with pytest.raises(
            ValueError, match=f"{folder}, which is missing or damaged; pass the right --data DIR, or --download"
        ):
            data.load(name.lower(), root=str(tmp_path))


def test_load_download_failure_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(import_torchvision().datasets.CIFAR10, "download", unreachable)
    with pytest.raises(ValueError, match=r"cifar10 could not be downloaded into .* \(no route\)"):
        data.load("cifar10", root=str(tmp_path), download=True)


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("svhn", "x", "unknown data set 'svhn': expected digits"),
        ("mnist", None, "mnist needs its directory: pass --data DIR, and --download"),
        ("imagefolder", None, "imagefolder needs its directory: pass --data DIR$"),
        ("cifar10", "/nowhere", "/nowhere/cifar-10-batches-py, which does not exist"),
        ("imagefolder", "/nowhere", "/nowhere/train does not exist"),
    ],
)
def test_load_refuses(name: str, root: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(name, root=root)


def test_batches_visit_every_image_once_in_a_new_order() -> None:
    batches = _batches(_split(103), augment=False)
    assert len(batches) == 10
    orders = [torch.cat([y for _, y in batches.epoch(e)]) for e in (0, 1)]
    assert all(len(order.unique()) == 100 for order in orders) and not torch.equal(*orders)
    assert not torch.equal(orders[0], torch.cat([y for _, y in _batches(_split(103), seed=1).epoch(0)]))
    for x, y in batches.epoch(0):
        assert x.dtype == torch.float32 and x.shape == (10, 3, 32, 32) and torch.equal(x[:, 2, 5, 5].round().long(), y)


@pytest.mark.parametrize("start", [0, 1, 7, 10])
def test_batches_resume_inside_an_epoch(start: int) -> None:
    whole = list(_batches(_split()).epoch(3))
    assert _same(list(_batches(_split()).epoch(3, start)), whole[start:])


def test_batches_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    list(_batches(_split()).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_of_ranks_make_up_the_global_batch() -> None:
    whole = list(_batches(_split(), batch_size=12).epoch(2))
    for step, parts in enumerate(
        zip(*(_batches(_split(), batch_size=12, rank=r, world_size=3).epoch(2) for r in range(3)), strict=True)
    ):
        for rank, (x, y) in enumerate(parts):
            assert torch.equal(x, whole[step][0][rank::3]) and torch.equal(y, whole[step][1][rank::3])


def test_batches_refuse() -> None:
    with pytest.raises(ValueError, match="has 100 images, fewer than one batch of 128; lower --batch-size"):
        _batches(_split(), batch_size=128)
    with pytest.raises(ValueError, match="batch_size 10 must be a multiple of the 3 processes"):
        _batches(_split(), world_size=3)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 32), (3, 28), (1, 9)])
def test_augmentation_against_a_loop(channels: int, size: int) -> None:
    # Noise, in which every crop differs from every other and from its mirror image.
    split = Split(torch.from_numpy(_bytes(200, channels, size, size)), torch.arange(200))
    pad, seen, mirrored = size // 8, set(), 0
    for epoch in range(3):
        for x, y in _batches(split, batch_size=50).epoch(epoch):
            for image, source in zip(x.round().to(torch.uint8), split.images[y], strict=True):
                found = _find(image, source, pad)
                assert len(found) == 1
                seen.add(found[0][:2])
                mirrored += found[0][2]
    assert len(seen) == (2 * pad + 1) ** 2
    # 600 fair coins; five standard deviations are 61.
    assert mirrored == 0 if channels == 1 else abs(mirrored - 300) < 61


def _find(image: Tensor, source: Tensor, pad: int) -> list[tuple[int, int, int]]:
    """All (row, column, mirrored) at which `image` is a crop of the padded `source`."""
    padded = np.pad(source.numpy(), ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape)[0]  # [2p+1,2p+1,C,H,W]
    hits = []
    for mirror, picture in enumerate((image, image.flip(2))):
        # The first row decides nearly always, and costs a 32nd.
        for row, column in np.argwhere((windows[..., 0, :] == picture[:, 0].numpy()).all((2, 3))):
            if np.array_equal(windows[row, column], picture):
                hits.append((int(row), int(column), mirror))
    return hits


def test_augmentation_differs_between_batches_and_epochs() -> None:
    split = Split(_split(1).images.expand(40, 3, 32, 32).contiguous(), torch.zeros(40, dtype=torch.int64))
    shown = [x for epoch in range(3) for x, _ in _batches(split).epoch(epoch)]
    assert all(not torch.equal(a, b) for i, a in enumerate(shown) for b in shown[:i])


def test_normalise_is_exact_and_the_same_in_every_batch() -> None:
    images = torch.from_numpy(_bytes(5, 3, 7, 7))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    x = data.normalise(images, mean, std)
    m, s = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), (images.double() / 255 - m) / s, rtol=0, atol=1e-6)
    assert all(torch.equal(data.normalise(image, mean, std), row) for image, row in zip(images, x, strict=True))
    with pytest.raises(ValueError, match="images have 3 channels, but mean and std have 1 and 1 values"):
        data.normalise(images, (0.5,), (0.5,))


def test_normalise_in_training_after_inference_mode() -> None:
    images, mean = torch.from_numpy(_bytes(2, 1, 4, 4)), (0.123,)
    with torch.inference_mode():
        data.normalise(images, mean, (0.5,))
    weight = torch.ones(1, requires_grad=True)
    (data.normalise(images, mean, (0.5,)) * weight).sum().backward()
    assert weight.grad is not None


def test_eval_batches_keep_order_and_the_last_partial_batch() -> None:
    split = _split(25)
    shown = list(data.eval_batches(split, batch_size=10, device="cpu", mean=MEAN, std=STD))
    assert [len(y) for _, y in shown] == [10, 10, 5]
    assert torch.equal(torch.cat([y for _, y in shown]), split.labels)
    assert torch.equal(torch.cat([x for x, _ in shown]).round().to(torch.uint8), split.images)
