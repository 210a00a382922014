"""Flags of the commands that work on a file: evaluate, look into, quantize, check, export and time it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from tq.config import BenchConfig, KernelBenchConfig, QuantizeConfig
from tq.flags.base import Output, Unchecked


@dataclass(frozen=True, kw_only=True)
class WithImages(Output):
    """The images that a file is used with."""

    dataset: str | None = None
    """data set; default: the one named in the file"""
    data: str | None = None
    """directory that holds the data set"""
    model: str | None = None
    """package.module:factory, for a file made from your own model"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Eval(WithImages):
    """Accuracy of a file or a run's file on the test images.

    $ tq eval runs/ID/model.safetensors
    $ tq eval last --json
    """

    target: Positional[str]
    """a packed or float model.safetensors, or a run"""
    batch_size: int = 500
    """images per forward"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    impl: Literal["auto", "cpu", "reference"] = "auto"
    """implementation of the integer arithmetic"""


@dataclass(frozen=True, kw_only=True)
class Predict(Output):
    """Top-5 classes of images.

    $ tq predict model.safetensors cat.png dog.jpg
    """

    file: Positional[str]
    """a packed or float model.safetensors, or a run"""
    images: Positional[tuple[Path, ...]]
    """image files"""
    model: str | None = None
    """package.module:factory, for a file made from your own model"""
    top: int = 5
    """number of classes shown"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Inspect(Output):
    """Where the bytes of a file go: layer, bits, shape, bytes, share; predicted against actual size.

    $ tq inspect model.safetensors
    """

    file: Positional[str]
    """model.safetensors or a run"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Quantize(Unchecked, QuantizeConfig, Output):
    """Quantize a trained float network without training, and prove the file.

    $ tq quantize float.safetensors --scheme w8a8
    $ tq quantize resnet20.th --model resnet20-a --dataset cifar10 --data DIR --scheme w4a8 --effort best
    $ tq quantize float.safetensors --target-size 60KB --plot front.svg
    $ tq quantize float.safetensors --max-drop 0.5
    """

    file: Positional[str]
    """float weights (.safetensors, .pt, .pth, .th) or a float run"""
    config: Path | None = None
    """read settings from this JSON file; flags given beside it win"""
    plot: Path | None = None
    """with --target-size or --max-drop: predicted loss against size, and the file written, as PNG, SVG or PDF"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class OnTestImages(WithImages):
    """A file or run, and the test images that a result is checked on."""

    file: Positional[str]
    """a packed model.safetensors or a run"""
    images: int = 1000
    """number of test images, evenly chosen"""
    batch_size: int = 100
    """images per forward"""


@dataclass(frozen=True, kw_only=True)
class Export(OnTestImages):
    """A packed file for other programs: ONNX with integer weights (QDQ), torch.export, a model hub's folder.

    $ tq export model.safetensors --onnx model.onnx
    $ tq export last --onnx model.onnx --data DIR --images 10000
    $ tq export model.safetensors --pt2 model.pt2 --hub resnet20-w4a4
    """

    onnx: Path | None = None
    """write ONNX; then ONNX Runtime and OpenVINO are compared with the packed file (0 images: not)"""
    weights: Literal["auto", "int8", "int4"] = "auto"
    """ONNX type that holds weights of 4 bits and less; auto: 4 bits int4, the others int8; int4: smaller, but slower"""
    pt2: Path | None = None
    """write a torch.export archive; it must predict bit for bit what the file predicts"""
    hub: Path | None = None
    """write model.safetensors, config.json and README.md into this folder"""


@dataclass(frozen=True, kw_only=True)
class Verify(OnTestImages):
    """A packed file layer by layer: all implementations must give the same numbers; how far it is from float.

    $ tq verify model.safetensors
    $ tq verify last --data DIR --float-file float.safetensors
    $ tq verify model.safetensors --onnx model.onnx --json
    """

    float_file: str | None = None
    """the float network that it was made of: signal-to-noise ratio of every layer"""
    onnx: Path | None = None
    """an exported ONNX file: its logits in ONNX Runtime and OpenVINO"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


@dataclass(frozen=True, kw_only=True)
class Bench(Unchecked, BenchConfig, Output):
    """Latency and throughput: float eager, float compiled, packed; predictions are checked first.

    $ tq bench model.safetensors
    $ tq bench last --batch 1 32 256 --json
    $ tq bench kernels --help
    """

    file: Positional[str]
    """a packed model.safetensors or a run; the word kernels: the operators alone, with flags of their own"""
    config: Path | None = None
    """read settings from this JSON file; flags given beside it win"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Kernels(Unchecked, KernelBenchConfig, Output):
    """The operators on matrices and convolutions beside their peers: checked, timed, and against the device's ceilings.

    $ tq bench kernels
    $ tq bench kernels --only "square.*m=(1|16) w1" --json
    $ tq bench kernels --only resnet50 --out benchmarks/results/kernels-resnet50.json
    """
