"""The state file of a recovery: its finished units, so that a stopped one goes on where it was.

Tensors only, read with weights_only=True: {"UNIT|NAME": tensor of the unit, "UNIT|row": float64 [3] (mean squared error
before and after, seconds), "fingerprint": uint8 [32]}, the SHA-256 of weights, images and settings.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tq.atomic import atomic
from tq.ptq.capture import Unit


@dataclass(frozen=True)
class UnitResult:
    """One unit of the network: the mean squared error of its outputs before and after, and the time it took."""

    unit: str
    layers: int
    before: float
    after: float
    seconds: float


class RecoveryState:
    """The state file: tensors only, {"UNIT|NAME": tensor}, with each unit's row and the fingerprint as bytes."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self.path = path
        self.tensors = {"fingerprint": torch.tensor(list(bytes.fromhex(fingerprint)), dtype=torch.uint8)}
        if path is None or not path.exists():
            return
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            same = torch.equal(found["fingerprint"], self.tensors["fingerprint"])
        except Exception as error:  # zip, pickle, key and type errors: all mean the same to the user
            raise ValueError(f"{path} is damaged or not the state of a recovery; delete it to start anew") from error
        if not same:
            raise ValueError(
                f"{path} belongs to another recovery (other weights, images, settings or seed); "
                f"delete it or name another file"
            )
        self.tensors = found

    def __len__(self) -> int:
        return sum(name.endswith("|row") for name in self.tensors)

    def restore(self, model: nn.Module, unit: Unit) -> UnitResult | None:
        """Load a finished unit into the network, None when it is not finished."""
        row = self.tensors.get(f"{unit.name}|row")
        if row is None:
            return None
        module = model.get_submodule(unit.name)
        module.load_state_dict({name: self.tensors[f"{unit.name}|{name}"] for name in module.state_dict()})
        before, after, seconds = row.tolist()
        return UnitResult(unit.name, len(unit.layers), before, after, seconds)

    def keep(self, model: nn.Module, unit: Unit, row: UnitResult) -> None:
        """Add a finished unit and write the file."""
        if self.path is None:
            return
        for name, tensor in model.get_submodule(unit.name).state_dict().items():
            self.tensors[f"{unit.name}|{name}"] = tensor.detach().cpu().clone()
        self.tensors[f"{unit.name}|row"] = torch.tensor([row.before, row.after, row.seconds], dtype=torch.float64)
        try:
            with atomic(self.path, otherwise="the recovery cannot be resumed from here") as file:
                torch.save(self.tensors, file)
        except OSError as error:
            # the network itself can still be finished, and is much smaller
            warnings.warn(str(error), stacklevel=2)
            self.path = None


def fingerprint(model: nn.Module, float_model: nn.Module, images: list[Tensor], settings: object) -> str:
    """Hash of everything that the result depends on; `settings` by its repr."""
    digest = hashlib.sha256(repr(settings).encode())
    tensors = [
        *model.state_dict().items(),
        *float_model.state_dict().items(),
        *((str(i), x) for i, x in enumerate(images)),
    ]
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
