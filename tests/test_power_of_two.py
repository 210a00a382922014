"""Power-of-two weights (INQ) from the training form to the file and other engines: the same numbers everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tq import checkpoint, hub
from tq.attach import attach, coverage, quant_layers
from tq.conversion import convert
from tq.cross_check import contenders
from tq.dequantize import dequantized
from tq.divergence import compare, first_divergence
from tq.export import load_pt2, to_pt2, weight_notes
from tq.file_info import Info
from tq.fusion import fuse, fused_parts, left_alone
from tq.layers import EXACT_FLOAT32, QuantConv2d, QuantLinear
from tq.mixed_precision import choose_bits
from tq.packed import Format, PackedLayer, packed_layers
from tq.post_training import run
from tq.ptq.calibrate import calibrate
from tq.quantizers import LearnedStep, PowerOfTwo
from tq.scheme import POW2_BITS, Scheme

Make = Callable[..., nn.Module]
Images = Callable[..., Tensor]
SCHEMES = [*(f"inq{b}" for b in POW2_BITS), *(f"inq{b}a8" for b in (2, 3, 4, 5)), "inq5a2", "inq3a1"]
NAMES = ("lenet", "odd", "branch")
LENET = {"name": "lenet", "args": {"num_classes": 7, "in_channels": 1, "image_size": 13}}
INFO = Info(model=LENET, data={"name": "digits", "channels": 1, "size": 13}, classes=tuple("0123456"))

pytestmark = pytest.mark.filterwarnings("ignore:torch.fx cannot read")


@torch.inference_mode()
def assert_equal(model: nn.Module, packed: nn.Module, x: Tensor) -> None:
    assert model(x).isfinite().all() and model(x).std() > 0
    for batch in (x, x[:1]):
        assert torch.equal(packed(batch), model(batch))


@pytest.mark.parametrize("first_last", ["8", "same"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_packed_and_loaded_equal_the_training_form(
    quantized: Make, network: Make, images: Images, tmp_path: Path, name: str, scheme: str, first_last: str
) -> None:
    model = quantized(name, scheme, first_last=first_last)
    checkpoint.save(model, tmp_path / "m.safetensors")
    for impl in ("auto", "reference"):
        packed = convert(model, impl=impl)
        assert scheme in {layer.format.name for layer in packed_layers(packed).values()}
        assert_equal(model, packed, images(name, 3))
        loaded = checkpoint.load(tmp_path / "m.safetensors", model=network(name, seed=9), impl=impl)
        assert_equal(model, loaded, images(name, 3))


def layer_of(values: Tensor, act_bits: int = 8) -> tuple[nn.Sequential, int]:
    """A linear or conv layer with these weights, which are powers of two already, and its accumulators' bound."""
    source = nn.Linear(values.shape[1], len(values)) if values.ndim == 2 else nn.Conv2d(values.shape[1], len(values), 3)
    source.weight.data.copy_(values)
    inputs = LearnedStep(act_bits, signed=False)
    kind = QuantLinear if values.ndim == 2 else QuantConv2d
    parts = {"weight_quantizer": PowerOfTwo(5, source.weight), "input_quantizer": inputs, "bn": None}
    model = nn.Sequential(kind.from_float(source, **parts)).eval()
    return model, model[0].accumulator_bound()


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(
    ("codes", "kernels"),
    [
        ((0, 1, -1, 64, -128), ("int8_weight",)),
        ((0, 1, -1, 2, -4, 8, 16, -64, 128, -128), ("int8_weight", "high_weight")),
    ],
)
def test_five_bits_are_one_int8_product_or_two(conv: bool, codes: tuple[int, ...], kernels: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    shape = (7, 13, 3, 3) if conv else (7, 131)
    values = torch.tensor(codes, dtype=torch.float32)[torch.randint(len(codes), shape)] / 128
    model, bound = layer_of(values)
    assert bound < EXACT_FLOAT32
    x = torch.rand(3, *((13, 7, 5) if conv else (131,))) * 255
    for impl in ("auto", "reference"):
        packed = convert(model, impl=impl)
        assert packed[0].kernels == kernels and packed[0].one_product == (len(kernels) == 1)
        assert_equal(model, packed, x)


@pytest.mark.parametrize("wide", [False, True])
def test_sums_past_the_precision_of_float32_are_rounded_once(wide: bool) -> None:
    """Above 2^24 an accumulator is no float32; two products still are, until either of them passes 2^24 too."""
    torch.manual_seed(0)
    k = 9001 if wide else 2003
    # one sign, so that the sums come near their bound
    values = torch.tensor([128.0, 64, 1, 8 if wide else 2])[torch.randint(4, (5, k))] / 128
    if wide:
        values[:, : k - 99] = 1
    model, bound = layer_of(values)
    assert bound > EXACT_FLOAT32
    x = torch.rand(3, k) * 55 + 200
    assert model[0].accumulate(x).abs().max() > EXACT_FLOAT32
    for impl in ("auto", "reference"):
        packed = convert(model, impl=impl)
        assert packed[0].kernels == (() if wide else ("int8_weight", "high_weight"))
        assert_equal(model, packed, x)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_file_has_the_predicted_size_and_repeats(
    quantized: Make, network: Make, tmp_path: Path, name: str, scheme: str
) -> None:
    model, paths = quantized(name, scheme), [tmp_path / n for n in "ab"]
    predicted = checkpoint.predict_bytes(model)
    assert checkpoint.save(model, paths[0]) == paths[0].stat().st_size == predicted
    checkpoint.save(checkpoint.load(paths[0], model=network(name, seed=5)), paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    account = checkpoint.inspect(paths[0])
    assert account.file_bytes == account.predicted_bytes == predicted
    assert scheme in {row.bits for row in account.rows}
    tensors = safetensors.torch.load_file(paths[0])
    assert tensors["tq.layers"].shape[1] == 10 and set(tensors["tq.layers"][:, 9].tolist()) == {1}


def test_metadata_names_the_codebook(quantized: Make, tmp_path: Path) -> None:
    checkpoint.save(quantized("lenet", "inq5", first_last="8"), tmp_path / "m.safetensors", INFO)
    blob = (tmp_path / "m.safetensors").read_bytes()
    metadata = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    groups = json.loads(metadata["quantization_config"])["config_groups"].values()
    assert sorted((g["weights"]["type"], g["weights"]["num_bits"]) for g in groups) == [("int", 8), ("pow2", 5)]
    written = hub.write(tmp_path / "m.safetensors", tmp_path / "hub")
    assert set(written) == set(hub.FILES) and "inq5, w8a16" in (tmp_path / "hub" / "README.md").read_text()


def test_fused_where_one_product_is_enough(quantized: Make, images: Images) -> None:
    x = images("resnet20", 3)
    whole = convert(quantized("resnet20", "inq4a8", first_last="same"))
    mixed = convert(quantized("resnet20", "inq4a8", first_last="same", override=["layer2.*=inq5a8"]))
    with torch.no_grad():
        for packed in (whole, mixed):
            fused = fuse(packed, x[:2])
            assert torch.equal(fused(x), packed(x))
            two = [name for name, layer in packed_layers(packed).items() if not layer.one_product]
            assert sorted(left_alone(fused)) == two and bool(two) == (packed is mixed)
            assert fused_parts(fused)
    assert left_alone(whole) == list(packed_layers(whole)), "nothing is fused yet"


@pytest.mark.parametrize("scheme", ["inq3a8", "inq5a8", "inq5"])
def test_every_implementation_is_equal(quantized: Make, images: Images, scheme: str) -> None:
    model = quantized("odd", scheme, first_last="same")
    packed = convert(model, impl="reference")
    others, refused = contenders(packed, images("odd", 2))
    assert {"cpu", "native", "fused"} <= others.keys() | refused.keys() and "fused" in others
    for name, other in [*others.items(), ("training form", model)]:
        rows = compare(packed, other, [images("odd", 5)], names={} if name == "fused" else None)
        assert first_divergence(rows) is None, name


def test_dequantized_computes_what_weight_only_layers_do(quantized: Make, images: Images, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    checkpoint.save(quantized("lenet", "inq6"), path, INFO)
    packed, plain = checkpoint.load(path), dequantized(path, INFO).eval()
    with torch.no_grad():
        assert torch.allclose(plain(images("lenet", 5)), packed(images("lenet", 5)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["inq5a8", "inq3"])
def test_pt2_predicts_bit_for_bit(quantized: Make, images: Images, tmp_path: Path, scheme: str) -> None:
    packed = convert(quantized("lenet", scheme, first_last="same"))
    to_pt2(packed, tmp_path / "m.pt2", source=tmp_path / "m.safetensors", info=INFO)
    with torch.no_grad():
        assert torch.equal(load_pt2(tmp_path / "m.pt2")(images("lenet", 5)), packed(images("lenet", 5)))


def test_post_training_and_recovery(network: Make, images: Images) -> None:
    """Rounded to powers of two without training; equalization moves the weights, and the codebook with them."""
    batches = [images("cnn", 16)]
    for settings in ({"effort": "none"}, {"effort": "default"}):
        found = run(network("cnn"), batches, "inq5", **settings)
        assert_equal(found.model, convert(found.model), images("cnn", 3, seed=5))
        assert {line.scheme for line in coverage(found.model)} == {"inq5", "w8a16"}
    model = attach(network("cnn"), "inq4")
    layer = quant_layers(model)["conv2"]
    layer.weight.data *= 8
    before = float(layer.weight_quantizer.top)
    calibrate(model, batches)
    assert float(layer.weight_quantizer.top) == before + 3


def test_bits_are_not_chosen_among_powers_of_two(network: Make, images: Images) -> None:
    for scheme, override in (("inq4", ()), ("w4a8", ("conv2=inq3a8",))):
        with pytest.raises(
            ValueError, match=r"among integer weights of 1, 2, 4 and 8 bits, not powers of two; got inq"
        ):
            choose_bits(network("cnn"), [images("cnn", 4)], Scheme.parse(scheme), target_bytes=10**5, override=override)


def test_format_names() -> None:
    assert Format(5, 16, False, 0, (3, 3), True).name == "inq5"
    assert Format(5, 8, False, 0, (3, 3), True).name == "inq5a8"
    assert Format(4, 8, False, 0, (3, 3)).name == "w4a8"
    layer = PackedLayer(Format(3, 16, False, 0, (3, 3), True))
    assert repr(layer) == "PackedLayer(3x3, inq3)"


def test_export_says_how_powers_of_two_are_held(quantized: Make) -> None:
    notes = weight_notes(convert(quantized("cnn", "inq5a8", first_last="8", override=["conv2=inq3a8"])), "auto")
    assert [note.split(": ")[1] for note in notes] == [
        "int8, as packed",
        "float32, exactly (int8 ends below 128)",
        "int8, exactly",
    ]
