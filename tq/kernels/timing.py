"""Times of a call on a device, warm and with a cold cache, and the device's own ceilings, measured the same way.

On a GPU calls run from CUDA graphs, so that the host's work for a launch is not measured. Warm: one graph of several
calls in a row. Cold: before every call of a graph of one, a buffer larger than the L2 cache is overwritten, which also
keeps the device busy while the next graph is submitted. On a CPU there is only warm.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from triton_kernels import cpu

Call = Callable[[], Tensor]
WARM_CALLS, MIN_SAMPLES, TURN_S, GRAPH_S = 3, 5, 0.02, 1e-3
FLUSH_BYTES = 256 << 20
MOST_CALLS = 50
"""calls in one graph; as many as take GRAPH_S, if fewer"""


class Clock:
    """Times one call. samples: seconds a call, by "warm" and "cold" (on a CPU only warm)."""

    def __init__(self, call: Call, device: torch.device) -> None:
        self.call, self.note, self.calls = call, "", 1
        self.samples: dict[str, list[float]] = {"warm": []} if device.type == "cpu" else {"warm": [], "cold": []}
        for _ in range(WARM_CALLS):
            call()
        if device.type != "cpu":
            self._prepare(device)

    def _prepare(self, device: torch.device) -> None:
        self._flush = _buffer(device)
        once = _events(self.call)
        self.calls = max(1, min(MOST_CALLS, int(GRAPH_S / max(once, 1e-9))))
        self._one: Callable[[], Any] = self.call
        self._many: Callable[[], Any] = self._loop
        try:
            self._one, self._many = _graph(self.call, 1), _graph(self.call, self.calls)
        except RuntimeError as error:
            self.note = f"no CUDA graph: {(str(error).splitlines() or ['no reason given'])[0]}"

    def _loop(self) -> None:
        for _ in range(self.calls):
            self.call()

    def sample(self, kind: str) -> None:
        """Take one more time of a kind."""
        if "cold" not in self.samples:
            start = time.perf_counter()
            self.call()
            seconds = time.perf_counter() - start
        elif kind == "warm":
            seconds = _events(self._many) / self.calls
        else:
            seconds = _events(self._one, self._flush)
        self.samples[kind].append(seconds)


@cache
def _buffer(device: torch.device) -> Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)


def _events(run: Callable[[], Any], flush: Tensor | None = None) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if flush is not None:
        flush.zero_()
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1e-3 * float(start.elapsed_time(end))


def _graph(call: Call, calls: int) -> Callable[[], None]:
    # allocations and plans of a first call on a side stream must not happen while capturing
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    replay: Callable[[], None] = graph.replay
    return replay


def in_turns(clocks: Sequence[Clock], seconds: float) -> None:
    """Give every clock `seconds` for each kind of time, in short turns, so that disturbances fall on all alike."""
    spent = {(i, kind): 0.0 for i, clock in enumerate(clocks) for kind in clock.samples}

    def pending(i: int, kind: str) -> bool:
        return spent[i, kind] < seconds or len(clocks[i].samples[kind]) < MIN_SAMPLES

    while any(pending(*key) for key in spent):
        for i, kind in filter(lambda key: pending(*key), spent):
            start, now = time.perf_counter(), 0.0
            while now < min(TURN_S, seconds):
                clocks[i].sample(kind)
                now = time.perf_counter() - start
            spent[i, kind] += now


def median(call: Call, device: torch.device, seconds: float) -> float:
    """Median seconds of a warm call."""
    clock, end = Clock(call, device), time.perf_counter() + seconds
    while len(clock.samples["warm"]) < MIN_SAMPLES or time.perf_counter() < end:
        clock.sample("warm")
    return statistics.median(clock.samples["warm"])


def ceilings(device: torch.device, seconds: float, sizes: Sequence[int]) -> dict[str, Any]:
    """What the device reaches: {"copy_bytes_s", "int8_ops_s", "float_ops_s"}, and how each was measured.

    A large copy, read and written bytes counted; the best of square products of `sizes`: torch._int_mm on a GPU,
    oneDNN's exact int8 product on a CPU, and torch.matmul in bfloat16 or, on a CPU, float32.
    """
    count = (1 << 30) if device.type == "cuda" else (256 << 20)
    found: dict[str, Any] = {"copy_bytes_s": 2 * count / median(_copy(count, device), device, seconds)}
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    for name, make in (("int8_ops_s", _int8), ("float_ops_s", lambda n, d: _float(n, d, dtype))):
        try:
            found[name] = max(2 * n**3 / median(make(n, device), device, seconds) for n in sizes)
        except (RuntimeError, NotImplementedError) as error:
            found[name], found[f"{name}_reason"] = None, str(error).splitlines()[0]
    how = "torch._int_mm" if device.type == "cuda" else "oneDNN int8"
    shown = str(dtype).removeprefix("torch.")
    found["how"] = f"copy of {count >> 20} MiB; {how} and torch.matmul {shown} of sizes {', '.join(map(str, sizes))}"
    return found


def _copy(count: int, device: torch.device) -> Call:
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _int8(n: int, device: torch.device) -> Call:
    weight = torch.randint(-128, 128, (n, n), dtype=torch.int8, device=device)
    if device.type == "cuda":
        return lambda: torch._int_mm(weight, weight.t())
    if missing := cpu.probe("int_matmul"):
        raise RuntimeError(missing)
    form, x = cpu.prepare_matmul(weight, 128), torch.randint(0, 256, (n, n), dtype=torch.uint8)
    return lambda: cpu.int_matmul(x, form)


def _float(n: int, device: torch.device, dtype: torch.dtype) -> Call:
    x = torch.randn(n, n, dtype=dtype, device=device)
    return lambda: torch.matmul(x, x)
