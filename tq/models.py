"""The float networks that tq trains and quantizes.

ResNet-20/32/44/56/110 are the CIFAR networks of He, Zhang, Ren and Sun, "Deep Residual Learning for Image
Recognition" (2015, arXiv:1512.03385), section 4.2: a 3x3 stem, three stages of n = (depth - 2) / 6 blocks with
16, 32 and 64 channels, global average pooling and one linear layer. Their shortcuts are projections wherever the
shape changes (option B); the `-a` names take the paper's parameter-free ones (option A).

Every network can be traced by torch.fx and compiled with fullgraph=True: no forward branches on data.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tq._torchvision import import_torchvision


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels added evenly on both sides. [N,C,H,W] -> [N,C',H/2,W/2]"""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        extra = out_channels - in_channels
        self.before, self.after = extra // 2, extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the shortcut is the identity where the shape does not change."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            if option == "A":
                self.shortcut = PadShortcut(in_channels, out_channels)
            else:
                conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of `depth` = 6n + 2 layers. float32 [N,C,H,W] -> logits [N,num_classes]"""

    def __init__(self, depth: int, *, option: str, num_classes: int, in_channels: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1, option=option)
        self.layer2 = _stage(16, 32, blocks, stride=2, option=option)
        self.layer3 = _stage(32, 64, blocks, stride=2, option=option)
        self.linear = nn.Linear(64, num_classes)
        _init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Cnn(nn.Module):
    """Three conv-BN-ReLU blocks with pooling, and one linear layer. float32 [N,C,H,W] -> logits [N,num_classes]"""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(in_channels, 32), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = _conv3x3(32, 64), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = _conv3x3(64, 128), nn.BatchNorm2d(128)
        self.linear = nn.Linear(128, num_classes)
        _init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.conv3(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class LeNet(nn.Module):
    """LeNet-5's shape (LeCun et al. 1998) with ReLU, max-pooling and batch norm. [N,C,H,W] -> logits [N,num_classes]"""

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        # LeNet-5 sees 32x32; two pixels of padding give MNIST's 28x28 the same 5x5 maps at the end.
        padding = 2 if image_size < 32 else 0
        side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"lenet needs images of at least 12 pixels, got {image_size}")
        self.conv1, self.bn1 = nn.Conv2d(in_channels, 6, 5, padding=padding, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 16, 5, bias=False), nn.BatchNorm2d(16)
        self.fc1, self.bn3 = nn.Linear(16 * side * side, 120, bias=False), nn.BatchNorm1d(120)
        self.fc2, self.bn4 = nn.Linear(120, 84, bias=False), nn.BatchNorm1d(84)
        self.linear = nn.Linear(84, num_classes)
        _init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2).flatten(1)
        x = F.relu(self.bn3(self.fc1(x)))
        logits: Tensor = self.linear(F.relu(self.bn4(self.fc2(x))))
        return logits


def _cnn(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    if image_size < 4:
        raise ValueError(f"cnn needs images of at least 4 pixels, got {image_size}")
    return Cnn(num_classes=num_classes, in_channels=in_channels)


def _cifar_resnet(depth: int, option: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return CifarResNet(depth, option=option, num_classes=num_classes, in_channels=in_channels)


def _torchvision_resnet(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    model: nn.Module = getattr(import_torchvision().models, name)(weights=None, num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "cnn": _cnn,
    "lenet": LeNet,
    **{f"resnet{depth}": partial(_cifar_resnet, depth, "B") for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}-a": partial(_cifar_resnet, depth, "A") for depth in (20, 32, 44, 56, 110)},
    "resnet18": partial(_torchvision_resnet, "resnet18"),
    "resnet50": partial(_torchvision_resnet, "resnet50"),
}


def build(name: str, *, num_classes: int, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """A freshly initialised network: a name of BUILDERS, or 'package.module:factory'.

    A factory is called with those of num_classes, in_channels and image_size that its signature accepts; it is
    imported, so only ever pass a name that the user typed, never one that was read from a model file.
    Weights are drawn from torch's global generator. Raises ValueError.
    """
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels), ("image_size", image_size)):
        if value < 1:
            raise ValueError(f"{what} must be at least 1, got {value}")
    settings = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    if name in BUILDERS:
        return BUILDERS[name](**settings)
    if ":" not in name:
        raise ValueError(f"unknown model {name!r}: expected one of {', '.join(BUILDERS)}, or package.module:factory")
    factory = _import_factory(name)
    try:
        model = factory(**_accepted(factory, settings))
    except TypeError as error:
        raise ValueError(f"model {name!r}: calling the factory failed: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r}: the factory must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _import_factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    # The console script does not have the working directory on its path, where a user's own model often lies.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        raise ValueError(f"model {name!r}: cannot import {module_name!r}: {error}") from error
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if factory is None:
        raise ValueError(f"model {name!r}: module {module_name!r} has no {attribute!r}")
    if not callable(factory):
        raise ValueError(f"model {name!r}: {attribute!r} must be callable, got {type(factory).__name__}")
    return factory


def _accepted(factory: Callable[..., Any], settings: dict[str, int]) -> dict[str, int]:
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return settings
    return {
        k: v
        for k, v in settings.items()
        if k in parameters and parameters[k].kind is not inspect.Parameter.POSITIONAL_ONLY
    }


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int, option: str) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride=stride, option=option)
    rest = [BasicBlock(out_channels, out_channels, stride=1, option=option) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _init(model: nn.Module) -> None:
    """He et al., "Delving Deep into Rectifiers" (2015, arXiv:1502.01852), equation 10: variance 2 / fan-in."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
