"""The settings of the benchmarks: of a file, and of the operators alone."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tq.config.checks import DATASETS, known

PEERS = ("openvino", "onnxruntime")


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
            known("dataset", self.dataset, DATASETS)
        for peer in self.peers:
            known("peer", peer, PEERS)
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
