"""The ways to run a packed network that `tq bench` compares: float, packed, fused, and other engines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor
from torch import Tensor, nn

from tq import checkpoint, peers
from tq.attach import to_channels_last
from tq.config import BenchConfig
from tq.dequantize import build_float, dequantized
from tq.file_info import Info
from tq.fusion import fuse, fused_parts, left_alone
from tq.packed import PackedLayer
from tq.weights import load_into, weights_from

REFERENCE = "reference"
CALIBRATION_IMAGES = 300
"""images that a peer's own quantization sees (its default)"""


@dataclass
class Contender:
    """One way to run the network: images -> logits. `problem` is why it cannot run.

    rule: what its logits are held to: "finite", or those of the contender `like`: "equal" to them, "close", "near"
    where float layers that round otherwise tip codes, and "agrees" for a network that quantizes in its own way.
    how: what runs it, where that is not plain.
    """

    name: str
    call: Callable[[Tensor], Tensor]
    rule: str
    like: str = ""
    how: str = ""
    accuracy: float | None = None
    problem: str = ""


def contenders(
    path: str | Path, info: Info, config: BenchConfig, images: Tensor
) -> tuple[list[Contender], Callable[[Tensor], Tensor]]:
    """All of them, for images [N, C, H, W] on the device that is to be measured, and the reference implementation.

    The float network is config.float_file, or "float (dequantized)": the packed weights written out, as fast as the
    float model, but not it. Raises ValueError: the float file cannot be used, or a peer is not installed.
    """
    packed, reference = (checkpoint.load(path, impl=impl, device=images.device) for impl in ("auto", "reference"))
    model, title = _float_model(path, info, config)
    model = to_channels_last(model).to(images.device).eval()
    fused = fuse(packed, images[:2])
    how = ", ".join(dict.fromkeys(part.how for part in fused_parts(fused))) or "nothing to fuse"
    if (left := left_alone(fused)) and fused_parts(fused):
        how += f", without {', '.join(left)}"
    found = [
        Contender(f"{title} eager", model, "finite"),
        Contender(f"{title} compiled", _compiled(model, freeze=True), "close", f"{title} eager"),
        Contender("packed eager", packed, "equal", REFERENCE),
        Contender(
            "packed compiled", _compiled(packed, freeze=False), "equal" if _integer(packed) else "near", "packed eager"
        ),
        Contender("packed fused", fused, "equal", "packed eager", how=how),
    ]
    if not _integer(packed):
        found.append(Contender("packed fused compiled", _compiled(fused, freeze=True), "near", "packed eager", how=how))
    for name in config.peers:
        call = peers.int8(name, copy.deepcopy(model).cpu(), images[:CALIBRATION_IMAGES].cpu())
        found.append(Contender(f"{name} int8", call, "agrees", f"{title} eager"))
    return found, reference


def _integer(model: nn.Module) -> bool:
    """Whether a packed network computes nothing in float with numbers of its own."""
    return all(isinstance(m, PackedLayer) and m.integer for m in model.modules() if _has_own_floats(m))


def _has_own_floats(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(tensor.is_floating_point() for tensor in own)


def _float_model(path: str | Path, info: Info, config: BenchConfig) -> tuple[nn.Module, str]:
    if config.float_file is None:
        return dequantized(path, info), "float (dequantized)"
    model = build_float(path, info)
    load_into(model, weights_from(config.float_file), where=config.float_file)
    return model, "float"


def _compiled(model: nn.Module, *, freeze: bool) -> Callable[[Tensor], Tensor]:
    """The model through torch.compile, one static graph for each batch size."""

    # a function of its own, because dynamo keeps (and limits) graphs by code object
    def forward(x: Tensor) -> Tensor:
        logits: Tensor = model(x)
        return logits

    run: Callable[[Tensor], Tensor] = torch.compile(forward, fullgraph=True, dynamic=False)
    traced: set[torch.Size] = set()

    def call(x: Tensor) -> Tensor:
        if x.shape in traced:
            return run(x)
        # read while tracing, where the options of torch.compile do not reach; all contenders share one code object
        with inductor.patch(freezing=freeze), dynamo.patch(recompile_limit=1000):
            logits = run(x)
        traced.add(x.shape)
        return logits

    return call
