"""tq.ptq recovery: equalization, bias correction, re-estimated norms, AdaRound, blocks, efforts, resume."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq.attach import attach, quant_layers
from tq.ptq.calibrate import calibrate
from tq.ptq.capture import collect, float_names, units
from tq.ptq.correct import correct_bias, reestimate_norms
from tq.ptq.equalize import chains, equalize
from tq.ptq.reconstruct import Rates, SoftLayer
from tq.ptq.recover import recover

Networks = Callable[..., nn.Module]
Images = Callable[..., Tensor]


@pytest.fixture
def pair(network: Networks, images: Images) -> Callable[..., tuple[nn.Module, nn.Module, list[Tensor]]]:
    """pair(name, scheme): the calibrated network, its float twin, the images of the calibration."""

    def make(name: str, scheme: str = "w4a8", **options: Any) -> tuple[nn.Module, nn.Module, list[Tensor]]:
        batches = [images(name, 8, seed=s) for s in range(2)]
        twin = network(name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.fx cannot read")
            model = attach(copy.deepcopy(twin), scheme, **({"first_last": "8"} | options))
        calibrate(model, batches)
        return model.eval(), twin, batches

    return make


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Depthwise(nn.Module):
    """conv-ReLU-depthwise-BN-ReLU-grouped: chains with and without a norm, and ranges that are far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.norm, self.last = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.relu(self.norm(self.middle(torch.relu(self.first(x))))))
        return y


@pytest.mark.parametrize("name", ["resnet20", "lenet", "cnn", "odd", "branch"])
def test_equalize_keeps_the_predictions(network: Networks, images: Images, name: str) -> None:
    model, x = network(name), images(name)
    with torch.no_grad():
        before = model(x)
        found = equalize(model)
        after = model(x)
    assert bool(found) == (name != "branch")
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    if name == "resnet20":
        # inside a block only: a block's output has two readers
        assert (found[0].first, found[0].norm, found[0].second) == ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2")
        assert len(found) == 9


@torch.no_grad()
def test_equalize_evens_the_ranges() -> None:
    torch.manual_seed(0)
    model = Depthwise().eval()
    model.first.weight.mul_(torch.logspace(-2, 2, 6).view(-1, 1, 1, 1))
    x = torch.randn(3, 3, 9, 9)
    before = model(x)
    assert [(c.first, c.second) for c in chains(model)] == [("first", "middle"), ("middle", "last")]
    equalize(model)
    assert torch.allclose(model(x), before, rtol=1e-4, atol=1e-5)
    rows, columns = (w.abs().flatten(1).amax(1) for w in (model.first.weight, model.middle.weight))
    assert torch.allclose(rows, columns, rtol=0.01)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet20", "odd", "branch", "lenet"])
def test_correct_bias_removes_a_mean_error(pair: Any, name: str) -> None:
    model, twin, batches = pair(name, "w4a4")
    targets = float_names(model, twin)
    for layer in quant_layers(model).values():
        planted = layer.bn.bias if layer.bn is not None else layer.bias
        if planted is not None:
            planted.add_(0.5)
    correct_bias(model, twin, batches, targets)
    for layer_name, layer in quant_layers(model).items():
        got, wanted = (
            collect(net, of, batches)[1].movedim(layer.channel_dim, 0).flatten(1).mean(1)
            for net, of in ((model, layer_name), (twin, targets[layer_name]))
        )
        assert torch.allclose(got, wanted, atol=1e-3), layer_name


@torch.no_grad()
def test_reestimate_norms_recovers_planted_statistics(pair: Any) -> None:
    model, _, batches = pair("resnet20", "w8a8")
    layers = {name: layer for name, layer in quant_layers(model).items() if layer.bn is not None}
    assert reestimate_norms(model, batches) == list(layers)
    true = {name: (layer.bn.running_mean.clone(), layer.bn.running_var.clone()) for name, layer in layers.items()}
    for layer in layers.values():
        layer.bn.running_mean.add_(3.0)
        layer.bn.running_var.mul_(7.0)
    reestimate_norms(model, batches)
    for name, layer in layers.items():
        assert torch.allclose(layer.bn.running_mean, true[name][0], atol=1e-4)
        assert torch.allclose(layer.bn.running_var, true[name][1], rtol=1e-4)
    bn, layer = layers["conv1"].bn, layers["conv1"]
    layer.bn = None
    y = collect(model, "conv1", batches)[1].movedim(1, 0).flatten(1)
    layer.bn = bn
    assert torch.allclose(bn.running_mean, y.mean(1), atol=1e-5) and torch.allclose(bn.running_var, y.var(1), rtol=1e-4)


def test_units_are_residual_blocks_or_layers(pair: Any) -> None:
    model, twin, batches = pair("resnet20")
    targets = float_names(model, twin)
    blocks = units(model, targets, batches[0], blocks=True)
    assert [unit.name for unit in blocks[:3]] == ["conv1", "layer1.0", "layer1.1"] and len(blocks) == 11
    assert blocks[0].target == "bn1" and blocks[1].target == "layer1.0"
    assert blocks[4].layers == ("layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0")
    single = units(model, targets, batches[0], blocks=False)
    assert [unit.name for unit in single] == list(targets)
    for name in ("odd", "branch"):
        model, twin, batches = pair(name)
        targets = float_names(model, twin)
        assert [unit.name for unit in units(model, targets, batches[0], blocks=True)] == list(targets)


def test_adaround_beats_nearest_rounding_on_a_planted_layer() -> None:
    torch.manual_seed(0)
    # all weights lie 0.2 to 0.5 above a code and the inputs are positive: rounding to nearest adds up the error
    twin = nn.Sequential(nn.Linear(32, 8))
    with torch.no_grad():
        twin[0].weight.copy_((torch.randint(-7, 7, (8, 32)) + 0.2 + 0.3 * torch.rand(8, 32)) / 10)
        twin[0].weight[:, 0] = 0.7
    batches = [torch.rand(64, 32) + 0.5]
    model = attach(copy.deepcopy(twin), "w4a16", first_last="same")
    calibrate(model, batches, weight_range="minmax")
    nearest, steps = model[0].weight_codes()[0].detach(), model[0].weight_quantizer.step.clone()
    report = recover(model, twin, batches, effort="default", rounding="adaround", bias=False, iterations=200)
    assert report.rows[0].after < 0.5 * report.rows[0].before
    codes, scale = model[0].weight_codes()
    assert 0 < (codes - nearest).abs().max() <= 1 and torch.equal(model[0].weight_quantizer.step, steps)
    # what lies in the weights is code times step, so that any later rounding gives the same codes
    assert torch.equal(model[0].weight, codes * scale[:, None])
    got = F.mse_loss(model(batches[0]), twin(batches[0]))
    assert float(got.detach()) == pytest.approx(report.rows[0].after, rel=1e-4)


@pytest.mark.parametrize("scheme", ["w2a8", "w1a4", "w16a4", "w4a16"])
def test_blocks_lower_the_error(pair: Any, scheme: str) -> None:
    model, twin, batches = pair("resnet20", scheme)
    report = recover(model, twin, batches, rounding="blocks", bias=False, iterations=8, rates=Rates(batch=8))
    assert len(report.rows) == 11
    assert all(row.after <= row.before for row in report.rows)
    assert sum(row.after < row.before for row in report.rows) > len(report.rows) // 2
    for row in report.rows:
        target = next(
            u.target for u in units(model, float_names(model, twin), batches[0], blocks=True) if u.name == row.unit
        )
        got, wanted = collect(model, row.unit, batches)[1], collect(twin, target, batches)[1]
        assert float(F.mse_loss(got, wanted)) == pytest.approx(row.after, rel=1e-3)


def test_soft_layer_is_the_float_layer_at_first(pair: Any) -> None:
    model, twin, batches = pair("odd", "w4a16")
    layer = quant_layers(model)["grouped"]
    soft = SoftLayer(layer, rates=Rates(drop=0.0, rounder="adaround"), generator=torch.Generator())
    x = collect(twin, "grouped", batches)[0]
    wanted = collect(twin, "bn2", batches)[1]
    # the range clips a few weights, and so does the rectified sigmoid near 0 and 1
    assert F.mse_loss(soft(x), wanted) < 0.05 * wanted.var()


@pytest.mark.parametrize("effort", ["fast", "default", "best"])
@pytest.mark.parametrize("name", ["resnet20", "odd", "branch"])
def test_recover_efforts(pair: Any, name: str, effort: str) -> None:
    model, twin, batches = pair(name)
    before, told = tensors(twin), []
    options = {} if effort == "fast" else {"iterations": 2}
    report = recover(model, twin, batches, effort=effort, progress=lambda *step: told.append(step), **options)
    assert same(before, tensors(twin)) and bool(report.rows) == (effort != "fast")
    assert told[-1][1] == told[-1][2] and all(done <= total for _, done, total in told)
    assert bool(torch.isfinite(model(batches[0])).all()) and not any(m.training for m in model.modules())


def test_recover_every_part(pair: Any) -> None:
    model, twin, batches = pair("resnet20", "w4a4")
    with torch.no_grad():
        before = F.mse_loss(model(batches[0]), twin(batches[0]))
        report = recover(model, twin, batches, equalize=True, bias=True, norms=True, rounding="adaround", iterations=3)
        assert F.mse_loss(model(batches[0]), twin(batches[0])) < before
    assert len(report.equalized) == 9 and len(report.rows) == len(quant_layers(model))


def test_recover_is_seeded(pair: Any) -> None:
    results = []
    for seed in (0, 0, 1):
        model, twin, batches = pair("cnn", "w4a4")
        recover(model, twin, batches, iterations=8, seed=seed)
        results.append(tensors(model))
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_recover_resumes_bit_for_bit(pair: Any, tmp_path: Path) -> None:
    path = tmp_path / "recovery.pt"
    whole, twin, batches = pair("resnet20", "w4a4")
    recover(whole, twin, batches, iterations=3)

    class Stopped(Exception):
        pass

    def stop(_: str, done: int, total: int) -> None:
        if total > 1 and done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        recover(pair("resnet20", "w4a4")[0], twin, batches, iterations=3, state=path, progress=stop)
    assert path.exists() and not path.with_name(path.name + ".tmp").exists()
    model = pair("resnet20", "w4a4")[0]
    report = recover(model, twin, batches, iterations=3, state=path)
    assert report.resumed == 4 and len(report.rows) == 11 and same(tensors(model), tensors(whole))
    again = pair("resnet20", "w4a4")[0]
    assert recover(again, twin, batches, iterations=3, state=path).resumed == 11
    assert same(tensors(again), tensors(whole))


def test_recover_refuses_a_foreign_state(pair: Any, tmp_path: Path) -> None:
    path = tmp_path / "recovery.pt"
    model, twin, batches = pair("branch")
    recover(model, twin, batches, iterations=2, state=path)
    model = pair("branch")[0]
    with pytest.raises(ValueError, match="belongs to another recovery"):
        recover(model, twin, batches, iterations=3, state=path)
    path.write_bytes(b"no state")
    with pytest.raises(ValueError, match="damaged or not the state"):
        recover(model, twin, batches, iterations=2, state=path)


def test_recover_errors(pair: Any, network: Networks) -> None:
    model, twin, batches = pair("cnn")
    with pytest.raises(ValueError, match="no images"):
        recover(model, twin, [])
    with pytest.raises(ValueError, match="no images"):
        recover(model, twin, [batches[0][:0]])
    with pytest.raises(ValueError, match="expected finite images"):
        recover(model, twin, [batches[0] * torch.nan])
    with pytest.raises(ValueError, match=r"unknown effort 'bset'.*best"):
        recover(model, twin, batches, effort="bset")
    with pytest.raises(ValueError, match="unknown rounding 'up'"):
        recover(model, twin, batches, rounding="up")
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        recover(model, twin, batches, iterations=0)
    with pytest.raises(ValueError, match=r"expected a network made by tq\.attach"):
        recover(twin, twin, batches)
    with pytest.raises(ValueError, match="expected the float copy of the network"):
        recover(model, network("lenet"), batches)
    with pytest.raises(ValueError, match="expected the float copy of the network"):
        recover(model, copy.deepcopy(model), batches)
