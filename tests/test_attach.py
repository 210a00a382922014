"""tq.attach: which layers get which bits, what is folded, which inputs are unsigned."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq.attach import attach, coverage, plan_bits, quant_layers, sites
from tq.layers import QuantConv2d
from tq.quantizers import LearnedWeight, ScaledSign
from tq.scheme import Scheme

NAMES = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer3.0.conv1", "linear")


class Net(nn.Module):
    """Two convolutions, with what lies between them and after them given by functions."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 1)
        self.relu, self.pool, self.norm = nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(5)
        self.drop, self.offset = nn.Dropout(), nn.Parameter(torch.ones(()))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.between(self, x)
        return out


def bits(plan: dict[str, Scheme]) -> list[str]:
    return [str(scheme) for scheme in plan.values()]


@pytest.mark.parametrize(
    ("scheme", "first_last", "ends", "middle"),
    [
        ("w1a2", "16", "float", "w1a2"),
        ("w1a2", "8", "w8a8", "w1a2"),
        ("w1a2", "same", "w1a2", "w1a2"),
        ("w2a16", "8", "w8a16", "w2a16"),
        ("w2a16", "16", "float", "w2a16"),
        ("w16a4", "8", "w16a8", "w16a4"),
        ("float", "8", "float", "float"),
    ],
)
def test_plan_bits_first_last(scheme: str, first_last: str, ends: str, middle: str) -> None:
    plan = plan_bits(NAMES, Scheme.parse(scheme), first_last=first_last)
    assert list(plan) == list(NAMES) and bits(plan) == [ends, *[middle] * 4, ends]


def test_plan_bits_override_last_match_wins() -> None:
    rules = ("layer*=w4a4", "*.conv2=w2a8", "layer1.*=float", "linear=w8a8", "layer1.0.conv2=w1a1")
    plan = plan_bits(NAMES, Scheme(1, 2), override=rules)
    assert bits(plan) == ["float", "float", "w1a1", "w4a4", "w4a4", "w8a8"]


@pytest.mark.parametrize(
    ("pattern", "hint"), [("layer1.0.conv3", "'layer1.0.conv"), ("liner", "'linear'"), ("zzz", "matches no layer")]
)
def test_plan_bits_unmatched_pattern(pattern: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"override pattern '{pattern}' matches no layer") as error:
        plan_bits(NAMES, Scheme(1, 2), override=(f"{pattern}=w2a2",))
    assert hint in str(error.value) and "\n" not in str(error.value)


def test_plan_bits_per_stage() -> None:
    plan = plan_bits(NAMES, Scheme(1, 2), stage_act_bits=(8, 4), override=("layer2.*=w2a2",))
    assert bits(plan) == ["float", "w1a8", "w1a8", "w2a2", "w1a2", "float"]
    with pytest.raises(ValueError, match=r"gives 4 stages, but the network has no layer4"):
        plan_bits(NAMES, Scheme(1, 2), stage_act_bits=(2, 2, 2, 2))


def test_attach_swaps_layers(network: Callable[..., nn.Module]) -> None:
    model = network("resnet20")
    names = [site.name for site in sites(model)]
    weights = {name: model.get_submodule(name).weight for name in names}
    assert attach(model, "w1a2", override=("layer2.*=w2a4",), act_quantizer="pact") is model
    layers = quant_layers(model)
    assert set(layers) == set(names) - {"conv1", "linear"} and len(names) == 22
    for name, layer in layers.items():
        assert layer.weight is weights[name] and isinstance(layer, QuantConv2d)
        assert isinstance(layer.weight_quantizer, LearnedWeight if name.startswith("layer2") else ScaledSign)
        assert layer.input_quantizer.bits == (4 if name.startswith("layer2") else 2)
        assert not layer.input_quantizer.signed and layer.bn is not None
    assert isinstance(model.bn1, nn.BatchNorm2d) and isinstance(model.layer1[0].bn1, nn.Identity)
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_attach_options(network: Callable[..., nn.Module]) -> None:
    model = attach(network("cnn"), "w1a16", weight_quantizer="lsq", granularity="tensor")
    assert all(
        m.weight_quantizer.step.shape == (1,) and m.input_quantizer is None for m in quant_layers(model).values()
    )
    model = attach(network("cnn"), "w16a4", first_last="same", act_quantizer="clip")
    assert all(m.weight_quantizer is None and m.input_quantizer.bits == 4 for m in quant_layers(model).values())


def test_sites_fold_the_norm_that_follows() -> None:
    assert [site.bn for site in sites(Net(lambda m, x: m.second(m.norm(m.first(x)))))] == ["norm", None]
    assert [site.bn for site in sites(Net(lambda m, x: m.norm(m.second(m.first(x)))))] == [None, "norm"]
    assert [site.bn for site in sites(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)))] == ["1"]
    # [B, 7, 3] -> [B, 7, 5]: this norm has one mean for each of the 7 rows
    assert [site.bn for site in sites(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(7)))] == [None]


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lambda m, x: m.norm(m.second(m.second(m.first(x)))), id="shared conv"),
        pytest.param(lambda m, x: m.norm(m.second(m.norm(m.first(x)))), id="norm used twice"),
        pytest.param(lambda m, x: (lambda y: m.norm(y) + y)(m.second(m.first(x))), id="output used twice"),
        pytest.param(lambda m, x: m.norm(m.relu(m.second(m.first(x)))), id="something between"),
        pytest.param(lambda m, x: (lambda y: (m.norm(y), y))(m.second(m.first(x))), id="also returned"),
    ],
)
def test_sites_fold_nothing(between: Callable[[nn.Module, Tensor], Any]) -> None:
    found = sites(Net(between))
    assert [site.name for site in found] == ["first", "second"] and not any(site.bn for site in found)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(5, affine=False),
        nn.BatchNorm2d(5, track_running_stats=False),
        nn.GroupNorm(1, 5),
        nn.InstanceNorm2d(5),
    ],
)
def test_sites_do_not_fold_other_norms(norm: nn.Module) -> None:
    assert [site.bn for site in sites(nn.Sequential(nn.Conv2d(3, 5, 1), norm))] == [None]


UNSIGNED = {
    "relu module": lambda m, x: m.second(m.relu(m.first(x))),
    "functional relu": lambda m, x: m.second(F.relu(m.first(x))),
    "method": lambda m, x: m.second(m.first(x).relu()),
    "pool": lambda m, x: m.second(m.pool(m.relu(m.first(x)))),
    "keyword": lambda m, x: m.second(input=F.max_pool2d(input=m.relu(m.first(x)), kernel_size=2)),
    "functional pools": lambda m, x: m.second(F.avg_pool2d(F.max_pool2d(m.relu(m.first(x)), 2), 2)),
    "adaptive": lambda m, x: m.second(F.adaptive_avg_pool2d(m.drop(torch.sigmoid(m.first(x))), 1)),
    "reshape": lambda m, x: m.second(m.relu(m.first(x)).flatten(1).view(-1, 5, 3, 1)),
    "add": lambda m, x: (lambda y: m.second(y + m.pool(y)))(m.relu(m.first(x))),
    "torch.add": lambda m, x: (lambda y: m.second(torch.add(y, y, alpha=2)))(m.relu(m.first(x))),
    "iadd": lambda m, x: (lambda y: m.second(operator.iadd(y, 1)))(m.relu(m.first(x))),
    "positive constant": lambda m, x: m.second(0.5 + m.relu(m.first(x)) + 1),
    "cat": lambda m, x: (lambda y: m.second(torch.cat([y, m.pool(y)], 3)))(m.relu(m.first(x))),
    "cat keyword": lambda m, x: (lambda y: m.second(torch.cat(dim=3, tensors=(y, y))))(m.relu(m.first(x))),
}
SIGNED = {
    "image": lambda m, x: m.second(x),
    "conv": lambda m, x: m.second(m.first(x)),
    "norm": lambda m, x: m.second(m.norm(m.relu(m.first(x)))),
    "negative constant": lambda m, x: m.second(m.relu(m.first(x)) + (-1)),
    "constant first": lambda m, x: m.second(-0.5 + m.relu(m.first(x))),
    "subtraction": lambda m, x: m.second(m.relu(m.first(x)) - 1),
    "parameter": lambda m, x: m.second(m.relu(m.first(x)) + m.offset),
    "add signed": lambda m, x: (lambda y: m.second(m.relu(y) + y))(m.first(x)),
    "add keyword": lambda m, x: (lambda y: m.second(torch.add(m.relu(y), other=y)))(m.first(x)),
    "alpha": lambda m, x: (lambda y: m.second(torch.add(y, m.pool(y), alpha=-1)))(m.relu(m.first(x))),
    "cat signed": lambda m, x: (lambda y: m.second(torch.cat([m.relu(y), y], 1)))(m.first(x)),
    "product": lambda m, x: (lambda y: m.second(m.relu(y) * y))(m.first(x)),
    "called twice": lambda m, x: m.second(m.second(m.relu(m.first(x)))),
    "leaky": lambda m, x: m.second(F.leaky_relu(m.first(x))),
}


@pytest.mark.parametrize("case", [*UNSIGNED, *SIGNED])
def test_sites_unsigned_inputs(case: str) -> None:
    site = {site.name: site for site in sites(Net((UNSIGNED | SIGNED)[case]))}["second"]
    assert site.unsigned == (case in UNSIGNED)


def test_sites_are_in_the_order_of_execution() -> None:
    net = Net(lambda m, x: m.first(x))
    net.between = lambda m, x: m.first(m.second(x))
    assert [site.name for site in sites(net)] == ["second", "first"]


def test_attach_to_what_fx_cannot_read(network: Callable[..., nn.Module]) -> None:
    with pytest.warns(UserWarning, match="torch.fx cannot read Branching") as caught:
        model = attach(network("branch"), "w1a2", first_last="same")
    assert "\n" not in str(caught[0].message)
    layers = quant_layers(model)
    assert list(layers) == ["conv1", "conv2", "head"]
    assert all(m.bn is None and m.input_quantizer.signed for m in layers.values())


def test_coverage_lists_everything(network: Callable[..., nn.Module]) -> None:
    model = network("odd")
    lines = {line.name: line for line in coverage(attach(model, "w4a8", override=("grouped=w2a16", "flat=w16a4")))}
    assert list(lines) == ["stem", "grouped", "depthwise", "flat", "plain", "head"]
    found = {name: (line.kind, line.weight_bits, line.act_bits) for name, line in lines.items()}
    assert found["stem"] == ("conv", 16, 16) and found["head"] == ("linear", 16, 16)
    assert found["grouped"] == ("conv", 2, 16) and found["flat"] == ("conv", 16, 4) and found["plain"] == ("conv", 4, 8)
    assert lines["grouped"].shape == (15, 3, 3, 3)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"first_last": "4"}, "expected one of 16, 8, same"),
        ({"first_last": 8}, "expected one of 16, 8, same"),
        ({"act_quantizer": "pakt"}, "'pact'"),
        ({"weight_quantizer": "sign"}, "scaled-sign"),
        ({"granularity": "row"}, "channel, tensor"),
        ({"scheme": "w1b2"}, "'w1a2'"),
        ({"stage_act_bits": (3,)}, "no layer1"),
    ],
)
def test_attach_errors(network: Callable[..., nn.Module], options: dict[str, Any], hint: str) -> None:
    model = network("cnn")
    with pytest.raises(ValueError) as error:
        attach(model, **{"scheme": "w1a2", **options})
    assert hint in str(error.value) and "\n" not in str(error.value) and not quant_layers(model)


def test_attach_twice(network: Callable[..., nn.Module]) -> None:
    model = attach(network("cnn"), "w1a2")
    with pytest.raises(ValueError, match=r"Cnn is already quantized"):
        attach(model, "w1a2")


def test_attach_without_layers() -> None:
    with pytest.raises(ValueError, match=r"has no nn.Conv2d or nn.Linear layer"):
        attach(nn.Sequential(nn.ReLU()), "w1a2")


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_attach_names_the_layer_that_has_no_quantized_form(settings: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3, **settings), nn.Conv2d(5, 7, 1))
    with pytest.raises(ValueError, match=r"layer 2 has padding .*; change it, or leave the layer float with 2=float"):
        attach(model, "w1a2", first_last="same")
    assert not quant_layers(model)
    assert set(quant_layers(attach(model, "w1a2", first_last="same", override=("2=float",)))) == {"0", "3"}


def test_attach_refuses_a_layer_with_two_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model.add_module("again", model[1])
    with pytest.raises(ValueError, match=r"layer 1 is also registered as again"):
        attach(model, "w1a2")
