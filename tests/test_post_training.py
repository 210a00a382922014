"""tq.quantize with bits chosen and accuracy won back: the file keeps its limit, the predictions stay exact."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tq import checkpoint
from tq.attach import coverage, quant_layers
from tq.conversion import convert
from tq.file_info import Info
from tq.macs import multiply_accumulates
from tq.mixed_precision import choose_bits
from tq.post_training import quantize, run
from tq.scheme import Scheme

Make = Callable[..., nn.Module]
Images = Callable[..., Tensor]


@pytest.mark.parametrize("effort", ["none", "fast", "default"])
def test_every_effort_gives_a_network_that_packs_exactly(effort: str, network: Make, images: Images) -> None:
    batches = [images("resnet20", 8), images("resnet20", 8, seed=2)]
    found = run(network("resnet20"), batches, "w4a4", effort=effort)
    x = images("resnet20", 3, seed=9)
    with torch.no_grad():
        assert torch.equal(convert(found.model)(x), found.model(x))
    assert (found.recovery is None) == (effort == "none") and found.choice is None
    if found.recovery is not None:
        assert bool(found.recovery.rows) == (effort == "default")


def test_eight_bits_need_no_learned_rounding(network: Make, images: Images) -> None:
    found = run(network("cnn"), [images("cnn", 8)], "w8a8", effort="default")
    assert found.recovery is not None and found.recovery.rows == ()


def test_a_target_size_is_kept_to_the_byte(network: Make, images: Images, tmp_path: Path) -> None:
    batches, float_model = [images("resnet20", 16)], network("resnet20")
    sizes = {}
    for target in (45_000, 60_000, 120_000):
        model = copy.deepcopy(float_model)
        found = run(model, batches, "w8a8", effort="none", target_bytes=target)
        assert found.choice is not None
        written = checkpoint.save(model, tmp_path / f"{target}.safetensors", Info())
        assert written == found.choice.allocation.chosen.bytes <= target
        bits = {line.name: line.weight_bits for line in coverage(model)}
        assert bits["conv1"] == bits["linear"] == 8, "pinned by first_last"
        assert set(found.choice.allocation.reasons) == set(quant_layers(model))
        assert "pinned by --first-last 8" in found.choice.allocation.reasons["conv1"]
        sizes[target] = written
    assert sizes[45_000] < sizes[60_000] < sizes[120_000]
    with pytest.raises(ValueError, match="smallest"):
        run(copy.deepcopy(float_model), batches, "w8a8", effort="none", target_bytes=20_000)


def test_overrides_pin_layers_and_the_scheme_is_the_most(network: Make, images: Images) -> None:
    found = run(
        network("resnet20"), [images("resnet20", 8)], "w4a4", effort="none", target_bytes=70_000,
        override=("layer3.2.*=w2a8",),
    )  # fmt: skip
    lines = {line.name: (line.weight_bits, line.act_bits) for line in coverage(found.model)}
    assert lines["layer3.2.conv1"] == (2, 8)
    assert max(w for name, (w, _) in lines.items() if name.startswith("layer1")) <= 4
    assert lines["layer1.0.conv1"][1] == 4


def test_a_drop_is_measured_and_kept(network: Make, images: Images) -> None:
    batches, model = [images("cnn", 64)], network("cnn")
    choice = choose_bits(model, batches, Scheme(8, 8), max_drop=5.0)
    assert choice.measured and any(m.drop <= 5.0 for m in choice.measured)
    loose = choose_bits(model, batches, Scheme(8, 8), max_drop=60.0)
    assert loose.allocation.chosen.bytes <= choice.allocation.chosen.bytes
    assert not quant_layers(model), "the float network is not changed"


def test_settings_reach_their_parts(network: Make, images: Images, tmp_path: Path) -> None:
    batches = [images("cnn", 8)]
    model = quantize(network("cnn"), [batches[0].abs()], "w8a8", act_symmetric=False, act_range="entropy")
    signed = [layer.input_quantizer for layer in quant_layers(model).values() if layer.input_quantizer.signed]
    assert any(q.zero_point for q in signed)
    state = tmp_path / "state"
    first = run(network("cnn"), batches, "w2a8", effort="default", state=state)
    again = run(network("cnn"), batches, "w2a8", effort="default", state=state)
    assert first.recovery is not None and again.recovery is not None
    assert first.recovery.resumed == 0 and again.recovery.resumed == len(first.recovery.rows)
    x = images("cnn", 3, seed=5)
    assert torch.equal(first.model(x), again.model(x))


def test_multiply_accumulates_of_a_known_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 1, groups=4), nn.Flatten(), nn.Linear(8 * 9, 5))
    assert multiply_accumulates(model, torch.randn(1, 3, 7, 7)) == {"0": 8 * 9 * 27, "1": 8 * 9 * 2, "3": 5 * 72}


def test_a_target_of_the_whole_file_is_used_in_full(network: Make, images: Images, tmp_path: Path) -> None:
    batches, model = [images("lenet", 16)], network("lenet")
    whole = copy.deepcopy(model)
    run(whole, batches, "w8a8", effort="none")
    target = checkpoint.save(whole, tmp_path / "whole.safetensors", Info())
    found = run(model, batches, "w8a8", effort="none", target_bytes=target)
    # the header of one width is far shorter than that of two: a search by weight bytes alone would miss it
    assert found.choice is not None and found.choice.allocation.chosen.bytes <= target
    assert found.choice.allocation.chosen.loss <= min(
        p.loss for p in found.choice.allocation.front if p.bytes <= target
    )
