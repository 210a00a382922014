"""What the machine is busy with: CPU and memory by psutil, GPUs by NVML where there are any (`pip install 'tq[gpu]'`).

No Textual here. `Probe()()` takes about a millisecond; the poller's thread calls it every three seconds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One GPU at one moment; None where the driver does not tell."""

    name: str
    busy: float | None
    """percent of the time since the last sample that a kernel ran"""
    used_bytes: float
    total_bytes: float
    power_w: float | None = None
    celsius: float | None = None


@dataclass(frozen=True)
class System:
    """The machine at one moment."""

    cpu: float
    """percent of all cores since the last sample"""
    used_bytes: float
    total_bytes: float
    gpus: tuple[Gpu, ...] = ()
    no_gpu: str = "no GPU"
    """what to say where there are none"""


class Probe:
    """Call it for a `System`. What it needs is loaded by the first call, off the user interface's thread."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        self._no_gpu = ""

    def __call__(self) -> System:
        import psutil

        if not self._no_gpu:
            self._open()
        memory = psutil.virtual_memory()
        return System(
            cpu=psutil.cpu_percent(),
            used_bytes=memory.total - memory.available,
            total_bytes=memory.total,
            gpus=tuple(self._gpu(handle) for handle in self._handles),
            no_gpu=self._no_gpu,
        )

    def _open(self) -> None:
        self._no_gpu = "no GPU"
        try:
            import pynvml
        except ImportError:
            if os.path.exists("/dev/nvidia0"):
                self._no_gpu = "GPU not read: pip install 'tq[gpu]'"
            return
        try:
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError:
            # no driver, or none that this process may ask
            return
        self._nvml = pynvml

    def _gpu(self, handle: Any) -> Gpu:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
        return Gpu(
            name=name.decode() if isinstance(name, bytes) else name,
            busy=self._ask(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            used_bytes=float(memory.used),
            total_bytes=float(memory.total),
            power_w=self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            celsius=self._ask(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
        )

    def _ask(self, what: Any) -> float | None:
        try:
            return float(what())
        except self._nvml.NVMLError:
            return None
