"""Other engines on the same float network, for `tq bench` and for the comparison table: OpenVINO and ONNX Runtime.

Each takes a float network and calibration images and gives a function images -> logits on the CPU. The packages are
optional (`pip install 'tq[onnx]'`); a missing one is a ValueError that says so.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Peer = Callable[[Tensor], Tensor]


def int8(name: str, model: nn.Module, calibration: Tensor) -> Peer:
    """`model` quantized to int8 by a peer's own post-training quantization, at its defaults.

    name: one of tq.config.PEERS. model: float, on the CPU, in evaluation mode. calibration: normalised float32
    [N, C, H, W]. Raises ValueError: the package is missing.
    """
    build = {"openvino": _openvino, "onnxruntime": _onnxruntime}[name]
    with _quiet():
        return build(model, calibration)


def needed(name: str) -> Any:
    """An optional package, or a ValueError that says how to get it."""
    try:
        return import_module(name)
    except ImportError:
        raise ValueError(
            f"{name} is not installed; it is an optional extra of tq: python -m pip install 'tq[onnx]'"
        ) from None


def _openvino(model: nn.Module, calibration: Tensor) -> Peer:
    ov, nncf = needed("openvino"), needed("nncf")
    network = ov.convert_model(model, example_input=calibration[:1])
    network.reshape([-1, *calibration.shape[1:]])
    dataset = nncf.Dataset([x.numpy() for x in calibration.contiguous().split(1)])
    quantized = nncf.quantize(network, dataset, subset_size=len(calibration))
    core, requests = ov.Core(), {}

    def run(x: Tensor) -> Tensor:
        x = x.contiguous()
        if x.shape not in requests:
            still = quantized.clone()
            still.reshape(list(x.shape))
            options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            requests[x.shape] = core.compile_model(still, "CPU", options).create_infer_request()
        request = requests[x.shape]
        request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))
        request.infer()
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return run


def _onnxruntime(model: nn.Module, calibration: Tensor) -> Peer:
    ort, quantization = needed("onnxruntime"), needed("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        plain, static = str(Path(folder) / "float.onnx"), str(Path(folder) / "int8.onnx")
        needed("onnx"), needed("onnxscript")
        torch.onnx.export(
            model, (calibration[:2],), plain, dynamo=True, input_names=["x"], output_names=["logits"],
            dynamic_shapes={"x": {0: torch.export.Dim("n")}}, external_data=False,
        )  # fmt: skip

        class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
            def __init__(self) -> None:
                self.rest = iter(calibration.contiguous().split(32))

            def get_next(self) -> dict[str, np.ndarray] | None:
                x = next(self.rest, None)
                return None if x is None else {"x": x.numpy()}

        quantization.shape_inference.quant_pre_process(plain, plain)
        quantization.quantize_static(
            plain, static, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(static, options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"x": x.contiguous().numpy()})[0])

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and notes that these packages print."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
