"""ONNX files in the engines that run them, and their logits beside the packed network's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tq.peers import needed

Engine = Callable[[Tensor], Tensor]
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
SAME_CLASS = 0.995
"""share of the decided images that must get the packed network's class"""
TIE = 0.02
"""an image is decided when its two best logits lie further apart than this share of the largest logit"""
MEAN_DIFFERENCE = 0.02
"""allowed mean difference of a logit, as a share of the mean absolute logit.

The largest difference is reported and not bounded: float sums in another order tip single activations to the next code,
which at 2 bits is a third of their range, and moves a logit of that image (resnet20-w1a2 on CIFAR-10: by 1.7 at most,
where the largest logit is 23.6)."""


@dataclass(frozen=True)
class Agreement:
    """One engine's logits beside the packed network's, on the same images.

    same_class: share of all images; same_class_decided: of those that are not a tie. mean_difference,
    largest_difference: of a logit, absolute; mean_logit, largest_logit: the packed network's, absolute.
    """

    engine: str
    version: str
    accuracy: float
    same_class: float
    same_class_decided: float
    mean_difference: float
    largest_difference: float
    mean_logit: float
    largest_logit: float

    @property
    def passed(self) -> bool:
        """Within the tolerances above."""
        close = math.isfinite(self.mean_difference) and self.mean_difference <= MEAN_DIFFERENCE * self.mean_logit
        return close and self.same_class_decided >= SAME_CLASS


def open_engine(name: str, path: str | Path | bytes) -> Engine:
    """An ONNX file, or its bytes, in an engine on the CPU: float32 [N, C, H, W] -> logits. Raises ValueError."""
    needed(name)
    try:
        return {"onnxruntime": _onnxruntime, "openvino": _openvino}[name](path)
    except Exception as error:  # engines raise many kinds of their own
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{ENGINES[name]} cannot run the exported network (for an old engine try --weights int8): {reason}"
        ) from None


def agreement(name: str, expected: Tensor, got: Tensor, labels: Tensor) -> Agreement:
    """Compare an engine's logits [N, classes] with the packed network's."""
    got, expected = got.double(), expected.double()
    difference, best = (got - expected).abs(), expected.topk(min(2, expected.shape[1])).values
    same = got.argmax(1) == expected.argmax(1)
    decided = same[best[:, 0] - best[:, -1] > TIE * expected.abs().max()]
    return Agreement(
        engine=name,
        version=str(needed(name).__version__).split("-")[0],
        accuracy=100 * float((got.argmax(1) == labels).double().mean()),
        same_class=float(same.double().mean()),
        same_class_decided=float(decided.double().mean()) if len(decided) else 1.0,
        mean_difference=float(difference.mean()),
        largest_difference=float(difference.max()),
        mean_logit=float(expected.abs().mean()),
        largest_logit=float(expected.abs().max()),
    )


def _onnxruntime(path: str | Path | bytes) -> Engine:
    ort = needed("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # errors only: what it could not optimize is not ours to print
    options.log_severity_level = 3
    model = path if isinstance(path, bytes) else str(path)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        logits: np.ndarray = session.run(None, {"x": x.contiguous().cpu().numpy()})[0]
        return torch.from_numpy(logits)

    return run


def _openvino(path: str | Path | bytes) -> Engine:
    ov = needed("openvino")
    # without the first it computes in bfloat16 where the CPU can
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    core = ov.Core()
    network = core.read_model(path if isinstance(path, bytes) else str(path))
    compiled = core.compile_model(network, "CPU", {"PERFORMANCE_HINT": "LATENCY", **options})

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled(x.contiguous().cpu().numpy())[0].copy())

    return run
