"""A whole packed network in one call on a CPU: `native.cpp`, compiled for this machine on first use.

Why it exists: one int8 convolution through PyTorch's oneDNN operators costs about 30 us before it computes anything,
which is more than most layers of a small network take; and between two calls activations go through main memory. Here
each image runs through all layers at once, its activations stay in the cache, and nothing is set up per call.

It needs a C++ compiler ($CXX, g++ or clang++), as torch.compile does; `why_not()` says what is missing. Integer sums
are exact on every CPU: AMX and VNNI where they are there, plain C++ elsewhere.
"""

import ctypes
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from triton_kernels.layout import unpack_weight
from triton_kernels.steps import Codes, Program, Step, check_inputs

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
ISAS = ("plain", "vnni", "amx")
LANES = 16
MOST_CODES = 8
_KINDS = {"quantize": 0, "conv": 1, "depthwise": 2, "add": 3, "mean": 4, "max_pool": 5, "pad_shortcut": 6}


class _Place(ctypes.Structure):
    _fields_ = [("base", ctypes.c_int64), ("offset", ctypes.c_int64)]


class _Codes(ctypes.Structure):
    _fields_ = [
        ("offset", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("border", "zero_point", "qmin", "qmax", "binary")),
        ("inverse", ctypes.c_float),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in (
                *("kind", "relu", "height", "width", "channels", "out_height", "out_width", "out_channels"),
                *("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w"),
                *("in_border", "chunk", "chunks", "blocks", "n_codes", "has_residual", "has_float", "unused"),
            )
        ),
        ("strides", ctypes.c_int64 * 4),
        ("source", _Place),
        ("residual", _Place),
        ("out", _Place),
        *((name, ctypes.c_void_p) for name in ("weight", "correction", "scale", "bias", "chunk_offset", "block")),
        ("codes", _Codes * MOST_CODES),
    ]


@cache
def _library() -> ctypes.CDLL | str:
    """The compiled library, or why there is none."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return "no C++ compiler was found; install g++ or set CXX"
    try:
        version = subprocess.run(
            [*shlex.split(compiler), "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError as error:
        return f"{compiler} cannot be run: {error.strerror}"
    key = hashlib.sha256("".join((SOURCE.read_text(), *FLAGS, compiler, version, _cpu())).encode()).hexdigest()[:16]
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tq" / f"native-{key}.so"
    if not cached.exists() and (problem := _compile(compiler, cached)):
        return problem
    try:
        library = ctypes.CDLL(str(cached))
    except OSError as error:
        return f"the compiled library {cached} cannot be loaded ({error}); delete it, or set XDG_CACHE_HOME"
    library.tq_step_bytes.restype = ctypes.c_int64
    assert library.tq_step_bytes() == ctypes.sizeof(_Step)
    return library


def _cpu() -> str:
    """What `-march=native` depends on: a home directory may be shared by machines that differ."""
    info = Path("/proc/cpuinfo")
    first = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    return platform.machine() + "".join(line for line in first if line.startswith(("model", "flags", "Features")))


def _compile(compiler: str, target: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "native.so"
        command = [*shlex.split(compiler), *FLAGS, "-fopenmp", "-shared", "-fPIC", "-w", str(SOURCE), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            return f"{compiler} refused the source: {next((line for line in lines if 'error' in line), lines[-1])}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # into the target's own folder first, so that the last move is atomic
            with tempfile.TemporaryDirectory(dir=target.parent) as own:
                partial = Path(own) / target.name
                shutil.copy(built, partial)
                os.replace(partial, target)
        except OSError as error:
            return f"the compiled library cannot be kept in {target.parent}: {error.strerror}"
    return ""


def why_not() -> str:
    """Why no program can be compiled here; an empty string when it can."""
    library = _library()
    return library if isinstance(library, str) else ""


def why_not_program(program: Program) -> str:
    """Why this program has no plan; an empty string when it has one."""
    most = max((len(program.codes(v)) for v in range(-len(program.inputs), len(program.steps))), default=0)
    return f"a value is read in {most} different codes, more than {MOST_CODES}" if most > MOST_CODES else ""


@cache
def isa() -> str:
    """ "amx", "vnni" or "plain": the best instructions that this machine has. Raises ValueError where `why_not`."""
    library = _library()
    if isinstance(library, str):
        raise ValueError(f'expected what impl "native" needs, but {library}: use impl "cpu" or "auto"')
    return ISAS[library.tq_isa()]


@cache
def mean_is_exact(channels: int, height: int, width: int) -> bool:
    """Whether a "mean" step sums images of this size in the order of `torch.mean`, found by trying.

    PyTorch takes the order from its vector width: on AVX2 and AVX-512 it is the step's for multiples of 32 channels.
    """
    generator = torch.Generator().manual_seed(0)
    plan = Plan(Program((Step(kind="mean", source=-1),), ((channels, height, width),), (0,)))
    for images in (1, 2):
        x = torch.randn(images, channels, height, width, generator=generator, device="cpu").to(
            memory_format=torch.channels_last
        )
        if not torch.equal(plan([x])[0], x.mean((2, 3), keepdim=True)):
            return False
    return True


_numbers = itertools.count()
_plans: weakref.WeakValueDictionary[int, "Plan"] = weakref.WeakValueDictionary()


class Plan:
    """A `Program` laid out in memory and ready to run; it holds what the C++ side points into."""

    def __init__(self, program: Program, *, use: str | None = None) -> None:
        """use: an instruction set of `ISAS` not above `isa()`; the best by default. Raises ValueError."""
        best = isa()
        if use is not None and (use not in ISAS or ISAS.index(use) > ISAS.index(best)):
            raise ValueError(f"expected one of {ISAS[: ISAS.index(best) + 1]} on this machine, got {use!r}")
        self.program, self.isa, self.number = program, use or best, next(_numbers)
        _plans[self.number] = self
        self._library = _library()
        self._kept: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._arenas = torch.empty(0, dtype=torch.uint8, device="cpu")
        layout = _Layout(program)
        self._arena_bytes = layout.size + _slack(program)
        self._steps = (_Step * (len(program.inputs) + len(program.steps)))()
        for j in range(len(program.inputs)):
            self._fill_common(self._steps[j], -1 - j, layout)
            self._steps[j].kind, self._steps[j].source = _KINDS["quantize"], _Place(j, 0)
        for i, step in enumerate(program.steps):
            self._fill(self._steps[len(program.inputs) + i], i, step, layout)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """float32 CPU tensors [N, C, H, W] or [N, C] in, the same out, images channels last."""
        if torch.compiler.is_compiling():
            compiled: list[Tensor] = torch.ops.tq.run_plan(list(inputs), self.number)
            return compiled
        return self.run(inputs)

    def empty(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs for these inputs, not filled."""
        check_inputs(self.program, inputs)
        shapes = [(inputs[0].shape[0], *self.program.shape(v)) for v in self.program.outputs]
        device = inputs[0].device
        return [torch.empty(s, dtype=torch.float32, device=device, memory_format=torch.channels_last) for s in shapes]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What a call does, eagerly."""
        if any(x.device.type != "cpu" for x in inputs):
            raise ValueError(
                "expected CPU tensors, got others: this network was fused for the CPU; fuse it again there"
            )
        outputs, images = self.empty(inputs), inputs[0].shape[0]
        tensors = [*inputs, *outputs]
        base = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
        # an image's stride counts in bytes
        apart = (ctypes.c_int64 * len(tensors))(*(4 * t.stride(0) for t in tensors))
        threads = max(1, min(torch.get_num_threads(), images))
        with self._lock:
            if self._arenas.numel() < threads * self._arena_bytes:
                self._arenas = torch.empty(threads * self._arena_bytes, dtype=torch.uint8, device="cpu")
            for j, x in enumerate(inputs):
                self._steps[j].strides[:] = (*x.stride(), 0, 0) if x.dim() == 2 else x.stride()
            self._library.tq_run(  # type: ignore[union-attr]
                self._steps,
                ctypes.c_int32(len(self._steps)),
                ctypes.c_int64(images),
                ctypes.c_void_p(self._arenas.data_ptr()),
                ctypes.c_int64(self._arena_bytes),
                base,
                apart,
                ctypes.c_int32(threads),
                ctypes.c_int32(ISAS.index(self.isa)),
            )
        # a value that is output twice was written once
        first = self.program.outputs.index
        return [
            y if first(v) == i else outputs[first(v)].clone()
            for i, (v, y) in enumerate(zip(self.program.outputs, outputs, strict=True))
        ]

    def _keep(self, array: np.ndarray) -> int:
        self._kept.append(array)
        return int(array.ctypes.data)

    def _fill_common(self, c: _Step, value: int, layout: "_Layout") -> None:
        """What every step has: its output's shape, places and codes."""
        c.out_channels, c.out_height, c.out_width = c.channels, c.height, c.width = self.program.shape(value)
        c.has_float = self.program.reads_float(value)
        c.out = layout.float_place(value)
        formats = self.program.codes(value)
        c.n_codes = len(formats)
        for slot, codes in zip(c.codes, formats, strict=False):
            slot.offset, slot.border = layout.code_place(value, codes), layout.border(value, codes)
            slot.inverse, slot.binary = codes.inverse, codes.binary
            slot.zero_point, slot.qmin, slot.qmax = codes.zero_point, codes.qmin, codes.qmax

    def _fill(self, c: _Step, value: int, step: Step, layout: "_Layout") -> None:
        self._fill_common(c, value, layout)
        c.kind, c.relu = _KINDS[step.kind], step.relu
        c.channels, c.height, c.width = self.program.shape(step.source)
        (c.kernel_h, c.kernel_w), (c.stride_h, c.stride_w) = step.kernel, step.stride
        (c.pad_h, c.pad_w), (c.dilation_h, c.dilation_w) = step.padding, step.dilation
        if step.kind == "pad_shortcut":
            c.pad_w = step.front
        if step.residual is not None:
            c.has_residual, c.residual = True, layout.float_place(step.residual)
        if step.conv is None:
            c.source = layout.float_place(step.source)
        else:
            self._fill_conv(c, step, layout)

    def _fill_conv(self, c: _Step, step: Step, layout: "_Layout") -> None:
        conv = step.conv
        assert conv is not None
        out, per_group, kh, kw = conv.shape
        c.in_border = border = layout.border(step.source, conv.reads)
        pitch = c.width + 2 * border
        # the border may be wider than this layer's padding, for another reader of the same codes
        first = ((border - step.padding[0]) * pitch + border - step.padding[1]) * c.channels
        c.source = _Place(-1, layout.code_place(step.source, conv.reads) + first)
        weight = unpack_weight(conv.packed.cpu(), conv.bits, conv.shape).permute(0, 2, 3, 1).contiguous().numpy()
        taps = [
            (r * step.dilation[0] * pitch + q * step.dilation[1]) * c.channels for r in range(kh) for q in range(kw)
        ]
        if conv.groups == out == c.channels and per_group == 1:
            c.kind, blocks = _KINDS["depthwise"], [(b, min(LANES, out - b), b) for b in range(0, out, LANES)]
            c.chunks, offsets = len(taps), taps
            tiled = np.ascontiguousarray(weight.reshape(out, -1).T)
        else:
            tiled, blocks, offsets, c.chunk = _tile(weight, taps, conv.groups, step.dilation[1])
            c.chunks = len(offsets)
        c.blocks = len(blocks)
        c.weight = self._keep(tiled)
        c.block, c.chunk_offset = self._keep(np.array(blocks, np.int32)), self._keep(np.array(offsets, np.int32))
        total = -conv.reads.zero_point * weight.reshape(out, -1).astype(np.int32).sum(1)
        for name, vector in (("correction", total), ("scale", conv.scale), ("bias", conv.bias)):
            setattr(c, name, self._keep(_by_block(np.asarray(vector), blocks)))


def _slack(program: Program) -> int:
    """Bytes behind the values: tiles read, and drop, up to 15 pixels past the last one and 64 bytes past each."""
    convs = [s for s in program.steps if s.conv is not None]
    reach = max((16 * s.stride[1] * program.shape(s.source)[0] for s in convs), default=0)
    return -(-(reach + 64) // 64) * 64


class _Layout:
    """Where every value lies in the arena: first fit, a place being free again after its last reader."""

    def __init__(self, program: Program) -> None:
        self.program, self.size = program, 0
        self._place: dict[tuple[int, Codes | None], int] = {}
        live: list[tuple[int, int, int]] = []  # offset, end, last reader
        for value in (*range(-1, -1 - len(program.inputs), -1), *range(len(program.steps))):
            live = [entry for entry in live if entry[2] >= value]
            for codes in (None, *program.codes(value)):
                if codes is None and (value in program.outputs or not program.reads_float(value)):
                    continue
                size, at = self._bytes(value, codes), 0
                for offset, end, _ in sorted(live):
                    if offset - at >= size:
                        break
                    at = max(at, end)
                live.append((at, at + size, self._last_reader(value, codes)))
                self._place[value, codes] = at
                self.size = max(self.size, at + size)

    def border(self, value: int, codes: Codes) -> int:
        """The widest padding among the readers of these codes."""
        return max(
            max(s.padding)
            for s in self.program.steps
            if s.conv is not None and s.source == value and s.conv.reads == codes
        )

    def code_place(self, value: int, codes: Codes) -> int:
        """Offset of a value's codes, border included."""
        return self._place[value, codes]

    def float_place(self, value: int) -> _Place:
        """A value's floats: in the arena, or the output tensor itself."""
        if value in self.program.outputs:
            return _Place(len(self.program.inputs) + self.program.outputs.index(value), 0)
        return _Place(-1, self._place.get((value, None), 0))

    def _bytes(self, value: int, codes: Codes | None) -> int:
        c, h, w = self.program.shape(value)
        border = 0 if codes is None else 2 * self.border(value, codes)
        count = c * (h + border) * (w + border) * (4 if codes is None else 1)
        return -(-count // 64) * 64

    def _last_reader(self, value: int, codes: Codes | None) -> int:
        def reads(s: Step) -> bool:
            if codes is None:
                return s.residual == value or (s.source == value and s.conv is None)
            return s.source == value and s.conv is not None and s.conv.reads == codes

        return max(i for i, s in enumerate(self.program.steps) if reads(s))


def _tile(
    weight: np.ndarray, taps: Sequence[int], groups: int, dilation_w: int
) -> tuple[np.ndarray, list[tuple[int, int, int]], list[int], int]:
    """int8 OHWI as [block, chunk, chunk / 4, 16, 4], the blocks, the byte offsets of the chunks, a chunk's length."""
    out, kh, kw, per_group = weight.shape
    if groups == 1 and dilation_w == 1:  # a kernel row is one run of bytes
        runs, starts = weight.reshape(out, kh, kw * per_group), taps[::kw]
    else:
        runs, starts = weight.reshape(out, kh * kw, per_group), list(taps)
    length = runs.shape[2]
    pieces = -(-length // 64)
    chunk = -(-length // (4 * pieces)) * 4
    offsets = [start + piece * chunk for start in starts for piece in range(pieces)]
    padded = np.zeros((out, len(starts), pieces * chunk), np.int8)
    padded[:, :, :length] = runs
    per_out = out // groups
    blocks = [
        (g * per_out + o, min(LANES, per_out - o), g * per_group)
        for g in range(groups)
        for o in range(0, per_out, LANES)
    ]
    tiled = np.zeros((len(blocks), LANES, len(offsets), chunk), np.int8)
    for b, (first, count, _) in enumerate(blocks):
        tiled[b, :count] = padded[first : first + count].reshape(count, len(offsets), chunk)
    tiled = tiled.reshape(len(blocks), LANES, len(offsets), chunk // 4, 4).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(tiled), blocks, offsets, chunk


def _by_block(vector: np.ndarray, blocks: list[tuple[int, int, int]]) -> np.ndarray:
    padded = np.zeros((len(blocks), LANES), vector.dtype if vector.dtype == np.float32 else np.int32)
    for b, (first, count, _) in enumerate(blocks):
        padded[b, :count] = vector[first : first + count]
    return padded


# Opaque to the compiler, which calls it by the plan's number.
_LIB = torch.library.Library("tq", "FRAGMENT")
_LIB.define("run_plan(Tensor[] inputs, int plan) -> Tensor[]")
_LIB.impl("run_plan", lambda inputs, plan: _plans[plan].run(inputs), "CPU")
torch.library.register_fake("tq::run_plan", lambda inputs, plan: _plans[plan].empty(inputs), lib=_LIB)
