"""Networks of other people: quantized, packed, saved, loaded and fused with equal predictions, or refused by name."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import tq
from tq._torchvision import import_torchvision
from tq.attach import coverage, quant_layers
from tq.fusion import fused_parts
from tq.packed import packed_layers

tv = import_torchvision().models


class Net(nn.Module):
    """Modules by name, and a function that calls them."""

    def __init__(self, call: Callable[[Any, Tensor], Any], **modules: Any) -> None:
        super().__init__()
        self.call = call
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


class Preset(nn.Conv2d):
    """A subclass that only chooses arguments."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__(inside, out, 3, padding=1)


class Standardized(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean(), self.bias, padding=1)


class Attention(nn.Module):
    """torch's own module reads the weight of one of its layers past that layer's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.attend, self.head = conv(3, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x).flatten(2).transpose(1, 2)
        if y.numel() < 0:  # torch.fx stops here
            return y
        out: Tensor = self.head(self.attend(y, y, y)[0].mean(1))
        return out


def conv(inside: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(inside, out, 3, padding=1)


def block(inside: int, out: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(conv(inside, out), nn.BatchNorm2d(out), act(inplace=True))


def tail(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def convs(call: Callable[[Any, Tensor], Any], **modules: Any) -> Net:
    return Net(call, c1=conv(3, 8), c2=conv(8, 8), head=nn.Linear(8, 5), **modules)


def head(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.head(x.mean((2, 3)))
    return out


def vgg(batch_norm: bool) -> nn.Module:
    """VGG-11 as torchvision has it, but narrow: its own classifier has 120 million weights."""
    with torch.device("meta"):
        model = tv.vgg.VGG(nn.Identity(), init_weights=False)
    model.features = tv.vgg.make_layers([16, "M", 32, "M", 64, 64, "M", 64, 64, "M", 64, 64, "M"], batch_norm)
    model.classifier = nn.Sequential(nn.Linear(64 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 7))
    return model


TORCHVISION: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    # name: network, layers, fused parts
    "resnet18": (lambda: tv.resnet18(weights=None, num_classes=7), 21, 1),
    "resnet50": (lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 2, 1, 1], width_per_group=16), 21, 1),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(weights=None, width_mult=0.5), 53, 2),
    "vgg11": (lambda: vgg(False), 10, 2),
    "vgg11_bn": (lambda: vgg(True), 10, 2),
    "squeezenet1_1": (lambda: tv.squeezenet1_1(weights=None, num_classes=7), 26, 10),
    "densenet": (lambda: tv.DenseNet(8, (2, 3), 16, 2, num_classes=7), 13, 8),
}


@torch.no_grad()
def float_network(make: Callable[[], nn.Module]) -> nn.Module:
    """With statistics as after training, so mild that deep networks neither die nor explode."""
    torch.manual_seed(0)
    model = make()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.7, 1.5)
            m.weight.uniform_(0.6, 1.2)
            m.bias.normal_(0, 0.2)
    return model


def all_equal(make: Callable[[], nn.Module], x: Tensor, path: Path, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Quantize, pack, save, load and fuse; every form must predict the same. The simulated and the fused network."""
    model = tq.quantize(float_network(make), [x], weight_range="minmax", **options)
    packed = tq.convert(model)
    tq.save(model, path)
    with torch.no_grad():
        want = model(x)
        assert want.isfinite().all() and want.std() > 0
        assert torch.equal(packed(x), want)
        assert torch.equal(tq.load(path, model=make())(x), want)
        fused = tq.fuse(packed, x)
        assert torch.equal(fused(x), want) and torch.equal(fused(x[:1]), packed(x[:1]))
    return model, fused


def floats(model: nn.Module) -> list[str]:
    return [line.name for line in coverage(model) if line.weight_bits == line.act_bits == 16]


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.filterwarnings("error::UserWarning")
def test_torchvision(name: str, tmp_path: Path) -> None:
    make, layers, parts = TORCHVISION[name]
    model, fused = all_equal(make, torch.randn(2, 3, 32, 32), tmp_path / "m.safetensors", scheme="w8a8")
    assert len(quant_layers(model)) == layers and not floats(model)
    found = [[step.kind for step in part.program.steps] for part in fused_parts(fused)]
    assert len(found) == parts and sum(kinds.count("conv") for kinds in found) == layers, found


def test_resnet18_has_norms_inside_layers_and_sums_inside_steps(tmp_path: Path) -> None:
    make = TORCHVISION["resnet18"][0]
    model, fused = all_equal(make, torch.randn(2, 3, 32, 32), tmp_path / "m.safetensors", scheme="w4a8")
    assert sum(layer.bn is not None for layer in quant_layers(model).values()) == 20
    assert not any(isinstance(m, nn.BatchNorm2d) for m in tq.convert(model).modules())
    (part,) = fused_parts(fused)
    kinds = [step.kind for step in part.program.steps]
    assert kinds.count("conv") == 21 and kinds.count("add") == 0
    assert sum(step.residual is not None and step.relu for step in part.program.steps) == 8
    assert sum(step.relu for step in part.program.steps) == 17


def test_relu6_stays_where_a_code_lies_above_it(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(block(3, 8, nn.ReLU6), block(8, 8, nn.ReLU6), *tail(8))

    x = 9 * torch.randn(2, 3, 8, 8)
    model, fused = all_equal(make, x, tmp_path / "m.safetensors", scheme="w8a8", first_last="same")
    # the second is averaged as floats
    assert sum(len(p.program.steps) for p in fused_parts(fused)) == 3 and len(fused_parts(fused)) == 2
    quant_layers(model)["1.0"].input_quantizer.set_range(0.05)  # codes up to 12.75, as training could have it
    packed = tq.convert(model)
    with torch.no_grad():
        want, fused = packed(x), tq.fuse(packed, x)
        assert torch.equal(fused(x), want) and len(fused_parts(fused)) == 3


LAYERS: dict[str, tuple[Callable[[], nn.Module], list[str], int]] = {
    # name: network, what stays float, norms folded
    "nested": (lambda: nn.Sequential(block(3, 8), nn.Sequential(nn.Sequential(block(8, 8))), *tail(8)), [], 2),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(3), block(3, 8), *tail(8)), [], 1),
    "shared conv": (lambda: convs(lambda m, x: head(m, F.relu(m.c2(F.relu(m.c2(m.c1(x))))))), [], 0),
    "norm used twice": (
        lambda: convs(lambda m, x: head(m, m.bn(m.c2(m.bn(m.c1(x))))), bn=nn.BatchNorm2d(8)), [], 0,
    ),
    "norm with two names": (
        lambda: (lambda bn: convs(lambda m, x: head(m, m.all[0](m.c2(m.c1(x)))), bn=bn, all=nn.ModuleList([bn])))(
            nn.BatchNorm2d(8)
        ), [], 0,
    ),
    "preset subclass": (lambda: nn.Sequential(Preset(3, 8), nn.BatchNorm2d(8), nn.ReLU(), *tail(8)), [], 1),
    "conv1d": (
        lambda: convs(lambda m, x: m.head(m.row(m.c2(m.c1(x)).flatten(2)).mean(2)), row=nn.Conv1d(8, 8, 3)),
        ["row"], 0,
    ),
    "transposed": (
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), *tail(6)), ["2"], 0,
    ),
    "in place": (lambda: convs(lambda m, x: (lambda y: head(m, m.c2(F.relu(y, True)) + y))(m.c1(x))), [], 0),
    "in place, read outside": (
        lambda: convs(lambda m, x: (lambda y: head(m, m.c2(F.relu(y, True)) * y))(m.c1(x) + 1)), [], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.*predict")
def test_modules(name: str, tmp_path: Path) -> None:
    make, left, folded = LAYERS[name]
    x = torch.randn(3, 3, 8, 8)
    model, _ = all_equal(make, x, tmp_path / "m.safetensors", scheme="w4a8", first_last="same")
    assert floats(model) == left
    assert sum(layer.bn is not None for layer in quant_layers(model).values()) == folded


def test_an_operation_in_place_is_noticed_by_fuse() -> None:
    x = torch.randn(3, 3, 8, 8)
    packed = tq.convert(tq.quantize(float_network(LAYERS["in place, read outside"][0]), [x]))
    with pytest.warns(UserWarning, match="Net would predict otherwise when fused; it is left as it was"):
        assert tq.fuse(packed, x) is packed


SEEN: dict[str, tuple[Callable[[], nn.Module], list[str], str]] = {
    # name: network, what stays float, warning
    "functional": (
        lambda: convs(
            lambda m, x: head(m, F.conv2d(m.c2(m.c1(x)), m.w, padding=1)), w=nn.Parameter(torch.randn(8, 8, 3, 3))
        ),
        ["w"], "Net calls conv2d 1 times as a function, which stays float",
    ),
    "subclass": (
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), Standardized(8, 8, 3), *tail(8)), ["2"],
        "Sequential calls conv2d 1 times",
    ),
    "attention": (Attention, ["attend.in_proj_weight", "attend.out_proj"], "torch.fx cannot read Attention"),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_what_cannot_be_seen_is_said_and_listed(name: str, tmp_path: Path) -> None:
    make, left, message = SEEN[name]
    with pytest.warns(UserWarning, match=message) as caught:
        model, _ = all_equal(make, torch.randn(3, 3, 8, 8), tmp_path / "m.safetensors", first_last="same")
    assert sorted(floats(model)) == sorted(left)
    assert not any("\n" in str(w.message) for w in caught)


def pruned() -> nn.Module:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), *tail(8))
    prune.l1_unstructured(model[2], "weight", 0.5)
    return model


def repeated() -> nn.Module:
    again = block(8, 8)
    return nn.Sequential(block(3, 8), again, again, *tail(8))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a block with two names": (repeated, r"layer 1\.0 is also registered as 2\.0; keep one name"),
    "a weight read elsewhere": (
        lambda: convs(lambda m, x: head(m, F.conv2d(m.c2(m.c1(x)), m.c2.weight, padding=1))),
        r"tensors of layer c2 are also read by the network's own code; leave .* with c2=float",
    ),
    "weight norm": (
        lambda: nn.Sequential(conv(3, 8), nn.utils.parametrizations.weight_norm(conv(8, 8)), *tail(8)),
        r"weight of layer 1 is computed anew .*remove_parametrizations",
    ),
    "pruning": (pruned, r"weight of layer 2 is computed anew"),
    "half": (
        lambda: nn.Sequential(block(3, 8), *tail(8)).half(), r"got float16 in layer 0\.0; call model\.float\(\) first",
    ),
    "DataParallel": (
        lambda: nn.DataParallel(nn.Sequential(block(3, 8), *tail(8))),
        r"expected a plain network, got it in a DataParallel; give its \.module",
    ),
    "torch.compile": (
        lambda: torch.compile(nn.Sequential(block(3, 8), *tail(8)), backend="eager"),
        r"got it in a OptimizedModule; give its \._orig_mod",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str) -> None:
    make, message = REFUSED[name]
    x, model = torch.randn(2, 3, 8, 8), float_network(make)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as error:
        warnings.simplefilter("ignore")
        tq.quantize(model, [x.half() if name == "half" else x])
    assert "\n" not in str(error.value) and not quant_layers(model)


def test_a_network_in_train_mode_is_read_as_it_evaluates(tmp_path: Path) -> None:
    def make() -> nn.Module:
        net = convs(lambda m, x: (x, x) if m.training else head(m, F.relu(m.bn(m.c2(m.c1(x))))), bn=nn.BatchNorm2d(8))
        return net.train()

    model, _ = all_equal(make, torch.randn(3, 3, 8, 8), tmp_path / "m.safetensors")
    assert not model.training and quant_layers(model)["c2"].bn is not None
    fresh = make()
    tq.attach(fresh, "w4a4", first_last="same")
    assert fresh.training and all(m.training for m in fresh.modules())


def test_the_public_names_outlive_the_modules_of_the_same_name() -> None:
    module = importlib.import_module("tq.attach")
    assert tq.attach is module.attach and callable(tq.attach)


def test_load_leaves_no_norm_behind(tmp_path: Path) -> None:
    make = TORCHVISION["mobilenet_v2"][0]
    x = torch.randn(2, 3, 32, 32)
    tq.save(tq.quantize(float_network(make), [x], weight_range="minmax"), tmp_path / "m.safetensors")
    loaded = tq.load(tmp_path / "m.safetensors", model=make())
    assert len(packed_layers(loaded)) == 53 and not any(isinstance(m, nn.BatchNorm2d) for m in loaded.modules())
