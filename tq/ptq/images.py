"""What a user gives for calibration, checked before a network is changed: one sentence for each mistake."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tq.hooks import evaluating

HIGHEST = 20.0
"""normalised pixels stay within some 3 of 0, raw ones reach 255"""


def checked(model: nn.Module, loader: Iterable[Any]) -> Iterator[Tensor]:
    """The images of `loader`, batch by batch, after the float network has run on two images of it.

    loader: float32 [B, ...], or tuples, lists that begin with such a batch; what follows (labels) is not looked at.
    Raises ValueError: nothing there, no float images, NaN, a network that cannot run on them or that answers with NaN.
    Warns where the values look like pixels that were never normalised.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = (_images(batch, number).to(device) for number, batch in enumerate(loader))
    first = next(batches, None)
    if first is None:
        raise ValueError("expected at least one calibration image, got none; give a loader with a batch in it")
    low, high = (float(v) for v in first.aminmax())
    if low >= 0 and high > HIGHEST:
        warnings.warn(
            f"calibration images reach from {low:g} to {high:g}; give them as the network was trained, which mostly "
            "means divided by 255 and normalised",
            stacklevel=3,
        )
    check_forward(model, first[:2])
    return chain([first], batches)


@torch.no_grad()
def check_forward(model: nn.Module, images: Tensor) -> Any:
    """What a network answers in evaluation mode, its mode restored. Raises ValueError with the reason if it cannot."""
    name, shape = type(model).__name__, list(images.shape)
    try:
        with evaluating(model):
            result = model(images.clone())  # a first operation in place would change the images
    except Exception as error:  # the user's code may raise anything
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(
            f"expected a network that runs on a batch of images alone, but {name} cannot run on {shape} ({reason}); "
            "check the size of the images and the arguments of its forward"
        ) from error
    if not all(bool(y.isfinite().all()) for y in tree_leaves(result) if isinstance(y, Tensor)):
        raise ValueError(f"{name} answers an image with NaN or infinity before it is quantized; check its weights")
    return result


def _images(batch: Any, number: int) -> Tensor:
    """The images of one batch of a loader."""
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor):
        raise ValueError(
            f"expected batches of images, or (images, labels), for calibration, got a {type(images).__name__} in batch "
            f"{number}; give float tensors [B, C, H, W]"
        )
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise ValueError(f"expected float images for calibration, got {kind}; normalise them as in training")
    if images.numel() == 0:
        raise ValueError(f"expected at least one image in each calibration batch, got {list(images.shape)}; drop it")
    if not bool(images.isfinite().all()):
        raise ValueError(f"calibration batch {number} holds NaN or infinity; check the images and their normalisation")
    return images
