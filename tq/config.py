"""The settings of every command: frozen dataclasses, the one source of flags, JSON files and the dashboard's form.

A field's docstring (the string below it) is its help text everywhere. Bad values raise ValueError with one
sentence. Standard library only: the dashboard imports this file and must not load torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from tq.byte_size import parse_size
from tq.config_io import choices as choices
from tq.config_io import from_dict as from_dict
from tq.config_io import from_json as from_json
from tq.config_io import to_argv as to_argv
from tq.config_io import to_dict as to_dict
from tq.scheme import ACT_BITS, Scheme, did_you_mean
from tq.training_rules import QUANTIZED_UPDATE as QUANTIZED_UPDATE
from tq.training_rules import check_inq, check_optimizer, check_recipe
from tq.training_rules import parse_override as parse_override

MODELS = (
    *("cnn", "lenet", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *("resnet20-a", "resnet32-a", "resnet44-a", "resnet56-a", "resnet110-a", "resnet18", "resnet50"),
)
DATASETS = ("digits", "mnist", "cifar10", "cifar100", "imagefolder")
PEERS = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    model: str = "resnet20"
    """cnn, lenet, resnet20|32|44|56|110 (CIFAR form; a trailing -a takes option-A shortcuts),
    resnet18, resnet50, or package.module:factory"""
    dataset: str = "digits"
    """digits (embedded), mnist, cifar10, cifar100 or imagefolder"""
    data: str | None = None
    """directory that holds the data set (imagefolder: DIR/train/<class>/* and DIR/test or DIR/val)"""
    download: bool = False
    """fetch mnist, cifar10 or cifar100 into --data when it is not there"""
    image_size: int | None = None
    """height and width in pixels; default: the data set's own (digits 32, imagefolder: that of its first image)"""
    scheme: str = "auto"
    """w<bits>a<bits> with 1, 2, 4, 8 or 16 (16 = not quantized), inq<bits> or inq<bits>a<bits> (weights of powers of
    two, 2 to 8 bits), or float; auto: w1a2, or inq5 with --method inq"""
    method: Literal["auto", "qat", "inq"] = "auto"
    """qat: all weights are quantized from the first step on; inq: incremental network quantization, portion by
    portion; auto: inq for the inq schemes, else qat"""
    portions: tuple[float, ...] = ()
    """inq: shares of the weights that are frozen one after the other, the last is 1, each for an equal part of the
    epochs; default: 0.5 0.75 0.875 1, more and smaller steps below 4 bits"""
    portion_strategy: Literal["pruning", "random"] = "pruning"
    """inq: which weights are frozen next, the largest or any"""
    progressive: tuple[str, ...] = ()
    """SCHEME:EPOCHS stages that lower the bits step by step before --scheme, e.g. w8a8:1 w4a4:2"""
    stage_act_bits: tuple[int, ...] = ()
    """activation bits per stage of the network (layer1, layer2, ...), e.g. 4 2 2; default: the scheme's everywhere"""
    first_last: Literal["16", "8", "same"] = "16"
    """bits of the first and the last layer: 16 (float), 8, or the same as the scheme"""
    override: tuple[str, ...] = ()
    """PATTERN=SCHEME per layer name, the last match wins, e.g. 'layer3.*=w2a4' 'layer1.0.conv1=float'"""
    act_quantizer: Literal["clip", "pact", "lsq", "lsq+"] = "lsq"
    """clip (fixed step 1), pact (learned range), lsq (learned step), lsq+ (the zero point of signed inputs too)"""
    pact_start: Literal["calibrated", "published"] = "calibrated"
    """where pact's learned range starts: calibrated with a few images, or at 2^bits - 1 as published"""
    weight_quantizer: Literal["auto", "scaled-sign", "lsq"] = "auto"
    """auto: scaled-sign at 1 bit, lsq (learned step) above"""
    granularity: Literal["channel", "tensor", "group"] = "channel"
    """one weight scale per output channel, per tensor, or per --group-size weights of a channel (float sums)"""
    group_size: int = 32
    """group: how many weights share a scale"""
    optimizer: Literal["sgd", "adam", "adamw", "hysteresis-sgd", "qsgd", "qtadam", "qtadamw"] = "sgd"
    """at 1 and 2 bits adamw with --batch-size 64 does better than sgd in trainings of thousands of steps;
    hysteresis-sgd keeps latent weights in its state (1 bit only); qsgd, qtadam and qtadamw quantize their updates"""
    hysteresis: float = 0.1
    """threshold that a latent weight must pass on the other side before its sign flips"""
    hysteresis_mode: Literal["loop", "one-step"] = "loop"
    """loop: keep the sign inside the threshold;
    one-step: use the raw latent weight for that step, as published in code"""
    hysteresis_relative: bool = False
    """threshold in units of the weight scale instead of latent units"""
    resolution: Literal["on-demand", "scheduled", "log-t"] = "on-demand"
    """when quantized updates get finer: on-demand (when a tensor's would all be zero),
    scheduled (with the epochs) or log-t (with the steps)"""
    qp: int = 0
    """resolution that on-demand and log-t start with: updates are multiples of 2^-qp, 0 to 32"""
    shared_resolution: bool = True
    """on-demand: one resolution for all tensors, as published; else one for each"""
    compensation_kappa: float = 2.0
    """scheduled: how fast the compensation ends, per epoch"""
    compensation_tau0: float = 0.5
    """scheduled: fraction of the epochs after which the compensation has fallen to half"""
    lr: float | None = None
    """peak learning rate; default: 0.05, and less for more bits when trained weights are the start (0.02 at 2 bits,
    0.01 at 4 and for inq, 0.005 at 8); adam and its kin: 0.001, 0.0002 at 4 bits and for inq, 0.0001 at 8"""
    momentum: float = 0.9
    """momentum of sgd, hysteresis-sgd and qsgd"""
    weight_decay: float = 1e-4
    """L2 for sgd, hysteresis-sgd, qsgd, adam and qtadam, decoupled for adamw and qtadamw"""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """learning rate over the run; step: x0.1 at --milestones"""
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9)
    """fractions of the run at which --schedule step divides the rate by ten"""
    warmup: float = 0.0
    """epochs of linear warm-up"""
    epochs: int = 10
    """epochs at --scheme"""
    float_epochs: int = 0
    """epochs of float training before quantizing, in the same run"""
    batch_size: int = 128
    """images per step"""
    distill: float = 0.0
    """share of the loss, 0 to 1, that is the distance from a float teacher's predictions instead of the labels"""
    distill_temperature: float = 4.0
    """softens both predictions before they are compared"""
    teacher: str | None = None
    """float weights of the teacher, same architecture; default: those of --init, or what the float epochs gave"""
    ema: float = 0.0
    """decay of an exponential moving average of the weights, such as 0.999, which is then what is evaluated and
    packed; 0: none"""
    norm_batches: int = 0
    """batches from which the statistics of the batch normalizations are estimated anew at the end; 0: kept"""
    oscillation_freeze: float = 0.0
    """freeze a weight whose code turns back and forth in more than this share of the steps, e.g. 0.02; 0: never"""
    weight_regularization: float = 0.0
    """strength of a pull of one-bit weights towards plus and minus their scale"""
    seed: int = 0
    """seeds weights, order of images and augmentation"""
    init: str | None = None
    """start from these float weights: .safetensors, .pt, .pth or .th"""
    augment: bool = True
    """random crop with padding (all), horizontal flip (colour images)"""
    compile: bool = True
    """torch.compile forward, backward and the optimizer's step"""
    amp: bool = False
    """bfloat16 autocast in training; evaluation stays exact"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.scheme == "auto":
            object.__setattr__(self, "scheme", "inq5" if self.method == "inq" else "w1a2")
        scheme = Scheme.parse(self.scheme)
        if self.method == "auto":
            object.__setattr__(self, "method", "inq" if scheme.pow2 else "qat")
        _known("model", self.model, MODELS, extra=":" in self.model)
        _known("dataset", self.dataset, DATASETS)
        for name in ("batch_size", "epochs"):
            _at_least(name, getattr(self, name), 1)
        for name in (
            *("float_epochs", "hysteresis", "momentum", "weight_decay", "warmup", "seed", "compensation_kappa"),
            *("norm_batches", "weight_regularization", "oscillation_freeze", "ema", "distill"),
        ):
            _at_least(name, getattr(self, name), 0)
        _check_group(self)
        check_optimizer(self)
        check_inq(self, scheme)
        check_recipe(self, scheme)
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, got {self.seed}")
        if self.image_size is not None:
            _at_least("image_size", self.image_size, 1)
        if bad_fractions := [m for m in self.milestones if not 0 <= m <= 1]:
            raise ValueError(f"milestones must be fractions of the run from 0 to 1, got {bad_fractions[0]}")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a positive number, got {self.lr}")
        if bad := [b for b in self.stage_act_bits if b not in ACT_BITS]:
            raise ValueError(f"stage_act_bits must be of {', '.join(map(str, ACT_BITS))}, got {bad[0]}")
        if self.optimizer == "hysteresis-sgd" and scheme.weight_bits != 1:
            raise ValueError(
                f"optimizer hysteresis-sgd trains 1-bit weights, but the scheme is {self.scheme}; "
                "use w1a* or another optimizer"
            )
        if self.optimizer == "hysteresis-sgd" and self.weight_quantizer == "lsq":
            raise ValueError("optimizer hysteresis-sgd needs weight_quantizer scaled-sign (or auto), got lsq")
        if self.optimizer == "hysteresis-sgd" and self.granularity == "group":
            raise ValueError("optimizer hysteresis-sgd has one scale a channel or a tensor; use that granularity")
        if self.weight_quantizer == "scaled-sign" and scheme.weight_bits not in (1, 16):
            raise ValueError(f"weight_quantizer scaled-sign has 1 bit, but the scheme is {self.scheme}; use lsq")
        if self.pact_start != "calibrated" and self.act_quantizer != "pact":
            raise ValueError(f"pact_start is of act_quantizer pact, but it is {self.act_quantizer}; change one of them")
        for rule in self.override:
            parse_override(rule)


@dataclass(frozen=True)
class QuantizeConfig:
    """Post-training quantization of one trained float network."""

    scheme: str = "w8a8"
    """w<bits>a<bits> with 1, 2, 4, 8 or 16 (16 = not quantized)"""
    model: str | None = None
    """architecture, when the file does not name it (.pt, .pth, .th)"""
    dataset: str | None = None
    """data set of the calibration images; default: the one named in the file"""
    data: str | None = None
    """directory that holds the data set"""
    image_size: int | None = None
    """height and width in pixels; default: the one named in the file, else the data set's own"""
    mean: tuple[float, ...] = ()
    """per channel, of pixels in 0..1, that the network was trained with; default: the file's, else the data set's"""
    std: tuple[float, ...] = ()
    """per channel, like mean"""
    calib: int = 512
    """number of calibration images, taken from the training split without labels"""
    weight_range: Literal["auto", "minmax", "percentile", "mse", "lp"] = "auto"
    """how a weight's range is chosen; auto: minmax from 4 bits on, mse below; lp: least cubed error"""
    act_range: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    """how an activation's range is chosen; entropy: least KL divergence, as TensorRT"""
    act_symmetric: bool = True
    """no zero points; otherwise inputs that can be negative get one"""
    percentile: float = 99.99
    """share of the values, in percent, that a percentile range covers"""
    granularity: Literal["channel", "tensor", "group"] = "channel"
    """one weight scale per output channel, per tensor, or per --group-size weights of a channel (float sums)"""
    group_size: int = 32
    """group: how many weights share a scale"""
    first_last: Literal["16", "8", "same"] = "8"
    """bits of the first and the last layer: 16 (float), 8, or the same as the scheme"""
    override: tuple[str, ...] = ()
    """PATTERN=SCHEME per layer name, the last match wins"""
    effort: Literal["none", "fast", "default", "best"] = "default"
    """how long to win accuracy back: not at all, seconds, minutes, tens of minutes"""
    target_size: str | None = None
    """largest file, such as 60KB: weight bits are chosen layer by layer, the scheme's at most"""
    max_drop: float | None = None
    """the same for a drop instead: most calibration images, in percent, that may change their class before recovery"""
    tolerance: float = 0.0
    """largest allowed difference of a logit between the simulated and the packed model, in logits"""
    seed: int = 0
    """which calibration images are drawn, and in what order the rounding learns from them"""
    batch_size: int = 256
    """images per forward"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def __post_init__(self) -> None:
        _check_choices(self)
        Scheme.parse(self.scheme)
        if self.model is not None:
            _known("model", self.model, MODELS, extra=":" in self.model)
        if self.dataset is not None:
            _known("dataset", self.dataset, DATASETS)
        if len(self.mean) != len(self.std) or any(not value > 0 for value in self.std):
            raise ValueError(f"mean and std need one value a channel, std above 0; got {self.mean} and {self.std}")
        _check_group(self)
        _at_least("calib", self.calib, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("tolerance", self.tolerance, 0)
        _at_least("seed", self.seed, 0)
        if self.image_size is not None:
            _at_least("image_size", self.image_size, 1)
        if self.target_size is not None and self.max_drop is not None:
            raise ValueError("bits are chosen for either target_size or max_drop; give one of them")
        if self.target_size is not None:
            parse_size(self.target_size)
        if self.max_drop is not None:
            _at_least("max_drop", self.max_drop, 0)
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be above 50 and at most 100, got {self.percentile}")
        for rule in self.override:
            parse_override(rule)


@dataclass(frozen=True)
class BenchConfig:
    """Latency and throughput of float eager, float compiled and packed, on the same inputs."""

    batch: tuple[int, ...] = (1, 256)
    """batch sizes"""
    dataset: str | None = None
    """data set of the images; default: the one named in the file"""
    data: str | None = None
    """directory that holds the data set"""
    float_file: str | None = None
    """the float model to compare with; default: the same network with the packed weights written out in float32"""
    peers: tuple[str, ...] = ()
    """other engines' own int8 networks beside ours: openvino, onnxruntime (an optional extra)"""
    seconds: float = 3.0
    """time spent on each row"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def __post_init__(self) -> None:
        if self.dataset is not None:
            _known("dataset", self.dataset, DATASETS)
        for peer in self.peers:
            _known("peer", peer, PEERS)
        if not self.batch or min(self.batch) < 1:
            raise ValueError(f"batch needs sizes of at least 1, got {list(self.batch)}")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds must be a positive number, got {self.seconds}")


@dataclass(frozen=True)
class KernelBenchConfig:
    """What the benchmark of the operators measures."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    only: str | None = None
    """regular expression, searched in names such as "square 8192x8192 m=16 w4 codes" and
    "resnet50: 64-64 3x3/1 @56 batch=64 w8 static"; measures only these and their peers"""
    m: tuple[int, ...] = ()
    """rows of the matrix products; default: 1 4 16 64 256 4096, or 1 16 in the quick set"""
    seconds: float = 0.2
    """time spent on each row, and on a GPU as much again with a cold cache"""
    quick: bool = False
    """a small set, about a minute on two cores; the default on a CPU unless --only or --m is given"""

    def __post_init__(self) -> None:
        if self.m and min(self.m) < 1:
            raise ValueError(f"m needs numbers of rows of at least 1, got {list(self.m)}")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds must be a positive number, got {self.seconds}")
        try:
            re.compile(self.only or "")
        except re.error as error:
            raise ValueError(f"only must be a regular expression, got {self.only!r}: {error}") from None


def _check_group(config: TrainConfig | QuantizeConfig) -> None:
    _at_least("group_size", config.group_size, 1)
    if config.granularity != "group" and config.group_size != type(config).group_size:
        raise ValueError(f"group_size is of granularity group, but it is {config.granularity}; change one of them")


def _check_choices(config: Any) -> None:
    for field in dataclasses.fields(config):
        if allowed := choices(field):
            _known(field.name, getattr(config, field.name), allowed)


def _known(what: str, value: str, known: tuple[str, ...], *, extra: bool = False) -> None:
    if value not in known and not extra:
        raise ValueError(
            f"unknown {what} {value!r}: expected one of {', '.join(known)}{did_you_mean(str(value), known)}"
        )


def _at_least(what: str, value: float, low: float) -> None:
    if not (math.isfinite(value) and value >= low):
        raise ValueError(f"{what} must be at least {low}, got {value}")
