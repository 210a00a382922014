"""The way back from a packed file to a float network, so that the two can be timed beside each other.

`build_float` gives the architecture that a file names, with fresh weights; `dequantized` also writes the packed weights
out in it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tq import checkpoint
from tq.attach import sites
from tq.file_info import Info
from tq.models import build
from tq.packed import packed_layers


def build_float(path: str | Path, info: Info) -> nn.Module:
    """The float network that a file names, with fresh weights. Raises ValueError if only its owner can build it."""
    if info.model is None:
        raise ValueError(f"{path} names no model that tq can build, so there is no float network to compare with")
    return build(info.model["name"], **info.model["args"])


def dequantized(path: str | Path, info: Info) -> nn.Module:
    """The float network of a file's architecture with the packed weights written out in float32, to compare speeds.

    A folded batch normalization is there again, undoing nothing. Inputs are not quantized, so its logits are those of
    neither network. Raises ValueError for a network that only its owner can build.
    """
    packed, model = checkpoint.load(path), build_float(path, info)
    own = model.state_dict()
    kept = {name: tensor for name, tensor in packed.state_dict().items() if name in own}
    model.load_state_dict(kept, strict=False)
    norms = {site.name: site.bn for site in sites(model)}
    for name, layer in packed_layers(packed).items():
        target, norm_name = model.get_submodule(name), norms[name]
        assert isinstance(target, nn.Conv2d | nn.Linear)
        weight, bias = layer.values(), layer.bias
        with torch.no_grad():
            target.weight.copy_(weight)
            if norm_name and f"{norm_name}.running_mean" not in kept:
                norm = model.get_submodule(norm_name)
                assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
                assert norm.running_var is not None
                # gamma is 1 and the mean 0 in a fresh one
                norm.running_var.fill_(1 - norm.eps)
                norm.bias.copy_(bias)
                bias = torch.zeros_like(bias)
            if target.bias is not None:
                target.bias.copy_(bias)
    return model
