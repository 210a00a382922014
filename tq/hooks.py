"""A network for a while: in evaluation mode, or with hooks that are gone afterwards, whatever happens in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """With hooks that `register_forward_hook` and its like have just returned."""
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()
