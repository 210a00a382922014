"""Tile choices: the planner's default, or the fastest of its candidates as timed once on this machine and kept.

The environment variable TQ_TUNE says how a choice is made:

    cached   (default) one timed earlier, on this device with these versions and kernels; else the default
    on       the same, but what is missing is timed now: about 2 s of kernel time a shape, and the compilation
    off      always the default

So a first call never takes minutes by surprise, and `TQ_TUNE=on` before any command fills the store for its shapes. The
store is one JSON file a device, version and state of the kernels, in $XDG_CACHE_HOME/tq or ~/.cache/tq.
"""

import fcntl
import hashlib
import json
import os
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from triton_kernels.launch import Launch

Key = tuple[int | str, ...]
# launches, seconds to spend -> milliseconds
Measure = Callable[[Sequence[Launch], float], float]
# op, key, seconds: None when the timing of a shape begins, what it took when it ends
Listener = Callable[[str, Key, float | None], None]

MODES = ("off", "cached", "on")
BUDGET_S = 2.0
FLUSH_BYTES = 256 * 1024 * 1024
# KB of shared memory that one block can have (CUDA C++ Programming Guide, technical specifications by capability)
SHARED_KB = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}

_listeners: list[Listener] = []


@dataclass(frozen=True, slots=True)
class Config:
    """Tile sizes by constexpr name, and the compile options that go with them."""

    tiles: tuple[tuple[str, int], ...]
    num_warps: int = 4
    num_stages: int = 3

    @property
    def constants(self) -> dict[str, int]:
        """The tile sizes as keyword arguments of the kernel."""
        return dict(self.tiles)


def choose(
    op: str,
    key: Key,
    candidates: Sequence[Config],
    default: Config,
    launch: Callable[[Config], Sequence[Launch]],
    *,
    device: torch.device | str,
    measure: Measure | None = None,
) -> Config:
    """The configuration for a kernel call: `default`, or one of `candidates` that was faster when timed (see above).

    key: what the choice depends on, such as bits, N, K and a bucket of M. launch(config) plans the call; its launches
    are run many times, so they must only overwrite their outputs. measure: by default `measure_ms`, which needs a CUDA
    or HIP device; on others the default is taken. Raises ValueError for an unknown TQ_TUNE.
    """
    mode = os.environ.get("TQ_TUNE", "cached")
    if mode not in MODES:
        raise ValueError(
            f"expected TQ_TUNE to be one of {', '.join(MODES)}, got {mode!r}: set one of these or unset it"
        )
    device = torch.device(device)
    if mode == "off" or (measure is None and device.type != "cuda"):
        return default
    store = open_store(device)
    found = store.get(op, key, [default, *candidates])
    if found is not None or mode == "cached":
        return found or default
    # Timing synchronizes, which would break a graph that is being captured.
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return default
    times_ms, tried = _time_all(op, key, [default, *candidates], launch, measure or measure_ms)
    if not times_ms:
        warnings.warn(
            f"{op} {key}: none of {tried} configurations runs on this device; the default is taken", stacklevel=2
        )
        return default
    best = min(times_ms, key=times_ms.__getitem__)
    store.put(op, key, best, times_ms[best], skipped=tried - len(times_ms))
    return best


@contextmanager
def listening(callback: Listener) -> Iterator[None]:
    """Call callback(op, key, None) when the timing of a shape begins and callback(op, key, seconds) when it ends."""
    _listeners.append(callback)
    try:
        yield
    finally:
        _listeners.remove(callback)


def architecture(device: torch.device | str) -> tuple[str, int]:
    """("cuda", 90) for compute capability 9.0, ("hip", 942) for gfx942 (90 for gfx90a), else (device type, 0)."""
    device = torch.device(device)
    if device.type != "cuda":
        return device.type, 0
    if torch.version.hip:
        found = re.match(r"gfx(\d+)", torch.cuda.get_device_properties(device).gcnArchName)
        return "hip", int(found[1]) if found else 0
    major, minor = torch.cuda.get_device_capability(device)
    return "cuda", 10 * major + minor


def shared_limit(architecture: tuple[str, int]) -> int:
    """Bytes of shared memory that one block can have; for unknown GPUs the 48 KB that all have."""
    backend, number = architecture
    return 1024 * (64 if backend == "hip" else SHARED_KB.get(number, 48))


def fits(config: Config, shared_bytes: int, architecture: tuple[str, int]) -> bool:
    """Whether the pipeline's buffers, `shared_bytes` for each of config's stages, fit; always on "cpu" and "meta"."""
    if architecture[0] in ("cpu", "meta"):
        return True
    return config.num_stages * shared_bytes <= shared_limit(architecture)


def measure_ms(launches: Sequence[Launch], seconds: float) -> float:
    """Median milliseconds of the launches, one after another, with a cold L2; compiles them first."""

    def run() -> None:
        for launch in launches:
            launch.run()

    run()
    # Clearing this also keeps the device busy while the next call is queued, so launch time is not measured.
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    torch.cuda.synchronize()
    times: list[float] = []
    end_at = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end_at and len(times) < 200):
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(5)]
        for start, end in events:
            flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) for start, end in events]
    return statistics.median(times)


def _time_all(
    op: str, key: Key, configs: Sequence[Config], launch: Callable[[Config], Sequence[Launch]], measure: Measure
) -> tuple[dict[Config, float], int]:
    """Milliseconds by configuration, without those that do not compile or run, and how many were tried."""
    distinct = list(dict.fromkeys(configs))
    times_ms: dict[Config, float] = {}
    began = time.perf_counter()
    for listener in list(_listeners):
        listener(op, key, None)
    try:
        for config in distinct:
            # Too many registers, too much shared memory, or a tile that this back end cannot compile: not an option.
            with suppress(Exception):
                times_ms[config] = measure(launch(config), BUDGET_S / len(distinct))
    finally:
        for listener in list(_listeners):
            listener(op, key, time.perf_counter() - began)
    return times_ms, len(distinct)


class Store:
    """The choices for one device, in memory and in a file that several processes may add to."""

    def __init__(self, path: Path, about: dict[str, str]) -> None:
        """about: what the choices hold for; a file that says something else is not used."""
        self.path, self.about = path, about
        self._confirmed: dict[tuple[str, Key], Config] = {}
        self._entries, damage = self._read()
        if damage:
            warnings.warn(f"{path} is ignored and will be rewritten: {damage}", stacklevel=3)

    def get(self, op: str, key: Key, candidates: Sequence[Config]) -> Config | None:
        """What is stored for this call, if it is still one of the candidates."""
        config = self._confirmed.get((op, key))
        if config is None and (entry := self._entries.get(_name(op, key))) is not None:
            config = _config(entry)
            if config not in candidates:
                return None
            self._confirmed[op, key] = config
        return config

    def put(self, op: str, key: Key, config: Config, time_ms: float, skipped: int) -> None:
        """Add a choice to what the file holds by now. Where nothing can be written, it holds for this process."""
        self._confirmed[op, key] = config
        tiles, warps, stages = config.constants, config.num_warps, config.num_stages
        entry = {"tiles": tiles, "num_warps": warps, "num_stages": stages, "time_ms": time_ms, "skipped": skipped}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._entries = {**self._read()[0], _name(op, key): entry}
                partial = self.path.with_suffix(".tmp")
                partial.write_text(json.dumps({"about": self.about, "choices": self._entries}, indent=1) + "\n")
                os.replace(partial, self.path)
        except OSError as error:
            warnings.warn(f"tile choices are not kept: cannot write {self.path}: {error.strerror}", stacklevel=3)

    def _read(self) -> tuple[dict[str, Any], str]:
        """The file's choices, and why there are none if it is not ours or damaged."""
        try:
            content = json.loads(self.path.read_text())
            if content["about"] != self.about:
                return {}, "it was written for another device or version"
            choices: dict[str, Any] = content["choices"]
            for entry in choices.values():
                _config(entry)
        except (FileNotFoundError, NotADirectoryError):
            return {}, ""
        except OSError as error:
            return {}, f"it cannot be read ({error.strerror})"
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}, "it is damaged"
        return choices, ""


@cache
def open_store(device: torch.device) -> Store:
    """The store of a device, for the installed versions and the kernels as they are."""
    backend, number = architecture(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    about = {
        "device": name,
        "architecture": f"{backend} {number}",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "kernels": _sources_hash(),
    }
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return Store(folder / "tq" / f"tiles-{slug}-{digest}.json", about)


@cache
def _sources_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _name(op: str, key: Key) -> str:
    return " ".join(map(str, (op, *key)))


def _config(entry: dict[str, Any]) -> Config:
    tiles = tuple((str(name), int(size)) for name, size in entry["tiles"].items())
    return Config(tiles, int(entry["num_warps"]), int(entry["num_stages"]))
