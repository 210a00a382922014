"""tq.imagefolder: folders of pictures made here, whole through tq.data.load, and single files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tq import data, imagefolder
from tq._torchvision import import_torchvision
from tq.imagefolder import read_image

RANDOM = np.random.default_rng(0)


def _bytes(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def _folder(
    root: Path, *, gray: bool = False, test: str = "test", sizes: tuple[tuple[int, int], ...] = ((20, 20),)
) -> Path:
    """Two classes of 3 and 2 PNG files in each part; sizes (width, height) in turn."""
    for part in ("train", test):
        for name, count in (("cat", 3), ("airplane", 2)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                width, height = sizes[i % len(sizes)]
                array = _bytes(height, width) if gray else _bytes(height, width, 3)
                Image.fromarray(array).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize("gray", [False, True])
def test_load_imagefolder(tmp_path: Path, gray: bool) -> None:
    _folder(tmp_path, gray=gray)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    d = data.load("imagefolder", root=str(tmp_path))
    assert d.classes == ("airplane", "cat") and d.train.labels.tolist() == [0, 0, 1, 1, 1] == d.test.labels.tolist()
    assert d.train.images.shape == (5, 1 if gray else 3, 20, 20)
    expected = np.atleast_3d(np.asarray(Image.open(tmp_path / "train" / "cat" / "1.png"))).transpose(2, 0, 1)
    assert np.array_equal(d.train.images[3], expected)
    pixels = d.train.images.double() / 255
    assert d.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert d.std == pytest.approx(pixels.var((0, 2, 3), correction=0).sqrt().tolist())


def test_load_imagefolder_of_many_sizes(tmp_path: Path) -> None:
    _folder(tmp_path, test="val", sizes=((24, 18), (18, 60), (7, 9)))
    assert data.load("imagefolder", root=str(tmp_path)).test.images.shape == (5, 3, 18, 18)
    assert data.load("imagefolder", root=str(tmp_path), image_size=11).train.images.shape == (5, 3, 11, 11)


def test_load_imagefolder_of_jpegs_in_chunks(tmp_path: Path) -> None:
    for part, count in (("train", 150), ("test", 3)):
        (tmp_path / part / "only").mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(tmp_path / part / "only" / f"{i:03}.JPG")
    d = data.load("imagefolder", root=str(tmp_path))
    assert (d.train.images.amax((1, 2, 3)).int() - torch.arange(150)).abs().max() <= 1


def test_load_imagefolder_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            data.load("imagefolder", root=str(tmp_path))

    (tmp_path / "train").mkdir()
    refused("test does not exist")
    (tmp_path / "test").mkdir()
    refused("train holds no class folders")
    (tmp_path / "train" / "cat").mkdir()
    refused("class folder .*cat holds no images")
    for part in ("train", "test"):
        (tmp_path / part).rename(tmp_path / f"old-{part}")
    _folder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(imagefolder, "_available_bytes", lambda: 1000)
        refused("10 images of 20x20 need 0.0 GiB, but 0.0 GiB are free; make them smaller or fewer")
    picture = tmp_path / "test" / "cat" / "2.png"
    picture.write_bytes(picture.read_bytes()[:100])
    refused(f"image {picture} cannot be read")
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "dog")
    refused("train has a class folder 'cat' that .*test lacks")


def test_available_bytes_is_plausible() -> None:
    free = imagefolder._available_bytes()
    assert free is None or 2**20 < free < 2**50


def test_read_image_crops_the_centre(tmp_path: Path) -> None:
    array = _bytes(10, 16, 3)
    Image.fromarray(array).save(tmp_path / "wide.png")
    assert np.array_equal(read_image(tmp_path / "wide.png", channels=3, size=None), array[:, 3:13].transpose(2, 0, 1))
    gray = read_image(tmp_path / "wide.png", channels=1, size=5)
    assert gray.shape == (1, 5, 5) and gray.dtype == torch.uint8


@pytest.mark.parametrize("resize", [16, 20, 22])
def test_read_image_resizes_before_the_crop_as_torchvision_does(tmp_path: Path, resize: int) -> None:
    picture = Image.fromarray(_bytes(40, 40, 3))
    picture.save(tmp_path / "square.png")
    transforms = import_torchvision().transforms
    steps = [transforms.Resize(resize), transforms.CenterCrop(14), transforms.PILToTensor()]
    got = read_image(tmp_path / "square.png", channels=3, size=14, resize=resize)
    _same_but_for_a_rounding(got, transforms.Compose(steps)(picture))


@pytest.mark.parametrize("shape", [(40, 61, 3), (61, 40, 3)])
def test_read_image_with_resize_is_the_centre_of_the_larger_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    Image.fromarray(_bytes(*shape)).save(tmp_path / "x.png")
    large = read_image(tmp_path / "x.png", channels=3, size=20, resize=20)
    assert torch.equal(large, read_image(tmp_path / "x.png", channels=3, size=20))
    got = read_image(tmp_path / "x.png", channels=3, size=14, resize=20)
    _same_but_for_a_rounding(got, large[:, 3:17, 3:17])


def _same_but_for_a_rounding(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


def test_read_image_decodes_no_jpeg_below_its_resize(tmp_path: Path) -> None:
    array = _bytes(64, 64)
    Image.fromarray(array).save(tmp_path / "fine.jpg", quality=100)
    whole = read_image(tmp_path / "fine.jpg", channels=1, size=64)
    got = read_image(tmp_path / "fine.jpg", channels=1, size=8, resize=64)
    assert torch.equal(got, whole[:, 28:36, 28:36])


def test_only_what_is_needed_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder(tmp_path)
    whole = data.load("imagefolder", root=str(tmp_path))
    d = data.load("imagefolder", root=str(tmp_path), whole=False)
    assert d.train.shape == whole.train.shape == (3, 20, 20) and len(d.train) == 5
    for picture in (tmp_path / "train" / "cat").iterdir():
        picture.write_bytes(b"damaged")
    assert torch.equal(d.test.images, whole.test.images)
    airplanes = torch.tensor([1, 0, 1])
    assert torch.equal(d.train.take(airplanes), whole.train.images[airplanes])
    with pytest.raises(ValueError, match=r"image .*cat/0.png cannot be read"):
        d.train.take(torch.tensor([2]))
    with pytest.raises(ValueError, match="cannot be read"):
        _ = d.mean
    monkeypatch.setattr(imagefolder, "_available_bytes", lambda: 3000)
    assert torch.equal(d.train.take(airplanes[:2]), whole.train.images[[1, 0]])
    with pytest.raises(ValueError, match="5 images of 20x20 need"):
        _ = d.train.images


def test_load_imagefolder_with_resize(tmp_path: Path) -> None:
    _folder(tmp_path, sizes=((24, 18), (18, 60)))
    d = data.load("imagefolder", root=str(tmp_path), image_size=14, resize=16)
    first = read_image(tmp_path / "test" / "cat" / "0.png", channels=3, size=14, resize=16)
    assert d.resize == 16 and d.test.images.shape == (5, 3, 14, 14) and torch.equal(d.test.images[2], first)


def test_read_image_modes(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", channels=1, size=4).eq(128).all()
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        Image.new(mode, (6, 6)).save(tmp_path / "image.tif" if mode == "CMYK" else tmp_path / "image.png")
        file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
        assert read_image(file, channels=3, size=3).shape == (3, 3, 3)


def test_read_image_follows_the_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    array = np.zeros((16, 16), dtype=np.uint8)
    array[:8] = 255
    Image.fromarray(array).save(tmp_path / "turned.jpg", exif=exif)
    image = read_image(tmp_path / "turned.jpg", channels=1, size=16)
    assert image[0, 0, 0] < 5 and image[0, 15, 0] > 250


def test_read_image_decodes_a_large_jpeg_close_to_its_average(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 640).astype(np.uint8)[None, :, None].repeat(500, 0).repeat(3, 2)
    Image.fromarray(smooth).save(tmp_path / "large.jpg", quality=95)
    image = read_image(tmp_path / "large.jpg", channels=3, size=50)
    expected = smooth[0, 70:570, 0].reshape(50, 10).mean(1)
    assert np.abs(image[0, 25].numpy() - expected).max() < 1.5


def test_read_image_refuses(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png cannot be read: not an image"):
        read_image(tmp_path / "text.png", channels=3, size=8)
    with pytest.raises(ValueError, match=r"absent\.png does not exist"):
        read_image(tmp_path / "absent.png", channels=3, size=8)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        read_image(tmp_path / "text.png", channels=4, size=8)
