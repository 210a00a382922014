"""The settings of post-training quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tq.byte_size import parse_size
from tq.config.checks import DATASETS, MODELS, at_least, check_choices, check_group, known
from tq.scheme import Scheme
from tq.training_rules import parse_override


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
        check_choices(self)
        Scheme.parse(self.scheme)
        if self.model is not None:
            known("model", self.model, MODELS, extra=":" in self.model)
        if self.dataset is not None:
            known("dataset", self.dataset, DATASETS)
        if len(self.mean) != len(self.std) or any(not value > 0 for value in self.std):
            raise ValueError(f"mean and std need one value a channel, std above 0; got {self.mean} and {self.std}")
        check_group(self)
        at_least("calib", self.calib, 1)
        at_least("batch_size", self.batch_size, 1)
        at_least("tolerance", self.tolerance, 0)
        at_least("seed", self.seed, 0)
        if self.image_size is not None:
            at_least("image_size", self.image_size, 1)
        if self.target_size is not None and self.max_drop is not None:
            raise ValueError("bits are chosen for either target_size or max_drop; give one of them")
        if self.target_size is not None:
            parse_size(self.target_size)
        if self.max_drop is not None:
            at_least("max_drop", self.max_drop, 0)
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be above 50 and at most 100, got {self.percentile}")
        for rule in self.override:
            parse_override(rule)
