"""Multiply-accumulates of each convolution and linear layer for one image, counted while the network runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tq.hooks import hooked


@torch.no_grad()
def multiply_accumulates(model: nn.Module, image: Tensor) -> dict[str, int]:
    """{layer: count} for image [1, C, H, W]: weights of one output times outputs. A layer called twice counts twice."""
    counts: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            counts[name] = counts.get(name, 0) + output.numel() // len(image) * weight[0].numel()

        return hook

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with hooked(m.register_forward_hook(count(n)) for n, m in layers):
        model(image)
    return counts
