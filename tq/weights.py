"""Float weights from a file of tensors, and into a network, strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")


def weights_from(path: str | Path) -> dict[str, Tensor]:
    """The float tensors of a .safetensors, .pt, .pth or .th file by name, on the CPU.

    Wrappers are undone: the keys of `_WRAPPERS`, whatever lies beside them, and the prefixes `module.` (DataParallel)
    and `_orig_mod.` (torch.compile) when all names have them. Nothing but tensors is unpickled.
    Raises ValueError naming the file when it is missing, damaged, not a state dict, or holds NaN or infinity.
    """
    path = Path(path)
    state = _read(path)
    while (inner := next((state[k] for k in _WRAPPERS if isinstance(state.get(k), Mapping)), None)) is not None:
        state = dict(inner)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(state):
        odd = next(
            (f"{k!r} is a {type(v).__name__}" for k, v in state.items() if not isinstance(v, Tensor)), "it is empty"
        )
        raise ValueError(f"{path} is not a state dict of tensors ({odd}); save model.state_dict() to it")
    if packed := next((name for name in tensors if name.endswith(".weight_packed")), None):
        raise ValueError(f"{path} is already a packed tq model ({packed}); float weights are needed here")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path} holds NaN or infinity in {name}; the training that wrote it diverged")
    return tensors


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, where: str | Path) -> None:
    """Copy `state` into `model` strictly; `where` is the file that an error names. Raises ValueError."""
    own = model.state_dict()
    # Files from before torch 0.4.1 lack this counter, which only momentum=None batch norms read.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    parts = [
        f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape:", shapes))
        if names
    ]
    if parts:
        prefix = next((p for p in _PREFIXES if any(f".{p}" in f".{name}" for name in unexpected)), None)
        advice = "is this a file of another model? pass --model"
        if prefix:
            of = sum(f".{prefix}" in f".{name}" for name in state)
            advice = (
                f"{of} of its {len(state)} names have the wrapper's {prefix!r}, which is taken off only where all "
                "begin with it; save the state_dict of the network without its wrapper"
            )
        raise ValueError(f"{where} does not fit the model: {'; '.join(parts)}; {advice}")
    model.load_state_dict(dict(state), strict=True)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")
    if path.suffix not in (".safetensors", ".pt", ".pth", ".th"):
        raise ValueError(f"weights file {path} must be .safetensors, .pt, .pth or .th")
    # Damaged files raise a dozen different types (zip, pickle, struct, header), all meaning the same to the user.
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if objects := re.search(r"Unsupported \w+: GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds Python objects ({objects[1]}), which are never unpickled; save model.state_dict() to it"
            ) from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
        raise ValueError(f"{path} is damaged or not a weights file ({reason})") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"{path} is not a state dict of tensors (it holds a {type(loaded).__name__}); save model.state_dict() to it"
        )
    return dict(loaded)
