"""The settings of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tq.config.checks import DATASETS, MODELS, at_least, check_choices, check_group, known
from tq.scheme import ACT_BITS, Scheme
from tq.training_rules import check_inq, check_optimizer, check_recipe, parse_override


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
    """where pact's learned range starts: calibrated with a few images, or at the largest code (2^bits - 1 for inputs
    that are never negative), as published for Quantized_ResNet"""
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
    one-step: use scale times latent weight for that step, as published in code"""
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
        check_choices(self)
        if self.scheme == "auto":
            object.__setattr__(self, "scheme", "inq5" if self.method == "inq" else "w1a2")
        scheme = Scheme.parse(self.scheme)
        if self.method == "auto":
            object.__setattr__(self, "method", "inq" if scheme.pow2 else "qat")
        known("model", self.model, MODELS, extra=":" in self.model)
        known("dataset", self.dataset, DATASETS)
        for name in ("batch_size", "epochs"):
            at_least(name, getattr(self, name), 1)
        for name in (
            *("float_epochs", "hysteresis", "momentum", "weight_decay", "warmup", "seed", "compensation_kappa"),
            *("norm_batches", "weight_regularization", "oscillation_freeze", "ema", "distill"),
        ):
            at_least(name, getattr(self, name), 0)
        check_group(self)
        check_optimizer(self)
        check_inq(self, scheme)
        check_recipe(self, scheme)
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, got {self.seed}")
        if self.image_size is not None:
            at_least("image_size", self.image_size, 1)
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
