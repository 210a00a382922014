"""Compile the kernels for GPUs that are not there, read their machine code, and hold it to what was intended.

    python -m triton_kernels.offline [--arch 80 90] [--only REGEX] [--json FILE]

prints a table of every case of the kernel modules and exits with 1 when one misses a gate: no spills, each instruction
that the case needs occurs, registers and shared memory within what its occupancy leaves and what the architecture has.
A launch is specialised by Triton's own code for a call on a GPU, so what is read is what such a call would run. This
says nothing about time.
"""

import importlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from triton_kernels import sass
from triton_kernels.launch import Case, Launch, interpreted
from triton_kernels.tuning import shared_limit

MODULES = (
    "quant_matmul",
    "weight_only",
    "quantize_rows",
    "quant_conv2d",
    "binary_matmul",
    "fake_quant",
)


@dataclass(frozen=True, slots=True)
class Binary:
    """A launch as machine code; `loop` holds the instructions of its main loop."""

    kernel: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: tuple[str, ...]
    loop: tuple[str, ...]

    def numbers(self) -> dict[str, Any]:
        """What the report shows. STS and I2F in the loop are signs of a layout that takes the long way."""
        return {
            "kernel": self.kernel,
            "registers": self.registers,
            "spill_bytes": self.spill_bytes,
            "shared_bytes": self.shared_bytes,
            "tensor": _count(self.instructions, sass.TENSOR),
            "loop": len(self.loop),
            "loop_tensor": _count(self.loop, sass.TENSOR),
            "loop_sts": sum(_count(self.loop, re.compile("STS")).values()),
            "loop_i2f": sum(_count(self.loop, re.compile("I2F")).values()),
        }


@dataclass(frozen=True, slots=True)
class Result:
    """A case on one architecture: its launches' machine code, and a sentence for each gate that it misses."""

    module: str
    case: Case
    arch: int
    binaries: list[Binary]
    misses: list[str]


def compile_launch(launch: Launch, arch: int) -> Binary:
    """Compile a launch for CUDA architecture `arch` (80, 90, ...), as Triton's JIT would for these arguments.

    Tensors may be on device "meta". Raises ValueError under Triton's interpreter; what Triton raises for a kernel that
    does not compile is passed on.
    """
    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise ValueError(
            f"expected a compiled kernel, got {type(kernel).__name__}: start Python without TRITON_INTERPRET to compile"
        )
    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    given: dict[str, Any] = {
        **launch.args,
        **launch.constants,
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": False,
    }
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments, specialization, rest = bind(**given)
    options, signature, constants, attributes = kernel._pack_args(backend, given, arguments, specialization, rest)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    code = sass.read(compiled.asm["cubin"])
    # Triton's shared memory is all dynamic; the 1 KB that cuobjdump shows for sm_90 is the system's.
    shared_bytes: int = compiled.metadata.shared
    return Binary(compiled.name, arch, code.registers, code.spill_bytes, shared_bytes, code.instructions, code.loop)


def misses(case: Case, arch: int, binaries: list[Binary]) -> list[str]:
    """What the machine code of a case's launches lacks or has too much of."""
    found = []
    for binary in binaries:
        limit = min(case.max_shared, shared_limit(("cuda", arch)))
        if binary.spill_bytes:
            found.append(f"{binary.kernel} spills {binary.spill_bytes} bytes")
        if binary.registers > case.max_registers:
            found.append(f"{binary.kernel} has {binary.registers} registers, not at most {case.max_registers}")
        if binary.shared_bytes > limit:
            found.append(f"{binary.kernel} has {binary.shared_bytes} bytes of shared memory, not at most {limit}")
    for pattern in case.needs.get(arch, ()):
        if not any(re.search(pattern, text) for binary in binaries for text in binary.instructions):
            found.append(f"no instruction matches {pattern}")
    return found


def check(module: str, case: Case, arch: int) -> Result:
    """Compile a case and hold it to the gates; a kernel that does not compile misses them."""
    binaries: list[Binary] = []
    try:
        for launch in case.launches:
            binaries.append(compile_launch(launch, arch))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return Result(module, case, arch, binaries, [f"does not compile: {reason}"])
    return Result(module, case, arch, binaries, misses(case, arch, binaries))


def project_cases() -> list[tuple[str, Case]]:
    """Every case of the kernel modules, with its module's name."""
    return [(name, case) for name in MODULES for case in importlib.import_module(f"triton_kernels.{name}").cases()]


def title(module: str, case: Case) -> str:
    """What the report calls a case."""
    return case.name if case.name.startswith(module) else f"{module} {case.name}"


def check_all(cases: list[tuple[str, Case]], archs: Sequence[int], workers: int | None = None) -> list[Result]:
    """Check cases on architectures, several at once: Triton compiles outside of Python's lock.

    A case whose `needs` name architectures is checked on these alone: its tiles may be too large for the others.
    """
    jobs = [(name, case, arch) for name, case in cases for arch in archs if not case.needs or arch in case.needs]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = pool.map(lambda job: check(*job), jobs)
        return list(track(results, "compiling", len(jobs), console=Console(stderr=True), transient=True))


def table(results: list[Result]) -> Table:
    """One row a launch; what comes after shared memory counts instructions of the main loop."""
    columns = (
        "case",
        "sm",
        "kernel",
        "registers",
        "spill B",
        "shared KB",
        "loop",
        "tensor cores",
        "STS",
        "I2F",
        "gates",
    )
    out = Table(*columns, title=f"Machine code by Triton {triton.__version__}; counts are of the main loop")
    for result in results:
        head = escape(title(result.module, result.case)), str(result.arch)
        verdict = f"[red]{escape('; '.join(result.misses))}" if result.misses else "[green]pass"
        for row in [binary.numbers() for binary in result.binaries] or [{}]:
            tensor = " ".join(f"{count} {name}" for name, count in row.get("loop_tensor", {}).items())
            shared = round(row["shared_bytes"] / 1024) if row else ""
            left = (row.get(name, "") for name in ("kernel", "registers", "spill_bytes"))
            right = (row.get(name, "") for name in ("loop_sts", "loop_i2f"))
            out.add_row(*head, *map(str, (*left, shared, row.get("loop", ""), tensor, *right)), verdict)
            head, verdict = ("", ""), ""
    return out


def summary(results: list[Result]) -> dict[str, Any]:
    """The report as JSON, without a date, so that it changes with the code alone."""
    return {
        "triton": triton.__version__,
        "ptxas": knobs.nvidia.ptxas.version,
        "cases": [
            {
                "module": result.module,
                "case": result.case.name,
                "arch": result.arch,
                "misses": result.misses,
                "launches": [binary.numbers() for binary in result.binaries],
            }
            for result in results
        ],
    }


def _count(instructions: tuple[str, ...], name: re.Pattern[str]) -> dict[str, int]:
    return dict(Counter(text.split()[0] for text in instructions if name.match(text)))


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compile the kernels for GPUs that are not there and hold their machine code to its gates."""

    arch: tuple[int, ...] = (80, 90)
    """CUDA architectures"""
    only: str = ""
    """take the cases in whose name this regular expression is found"""
    json: Path | None = None
    """write the numbers to this file"""


def main() -> int:
    """Print the report; 1 when a gate is missed, 2 for bad input."""
    arguments = tyro.cli(Arguments, prog="python -m triton_kernels.offline")
    if interpreted():
        return _refuse("expected to compile kernels, got TRITON_INTERPRET=1: unset it and run again")
    try:
        only = re.compile(arguments.only)
    except re.error as error:
        return _refuse(f"expected a regular expression, got {arguments.only!r}: {error}")
    cases = [(module, case) for module, case in project_cases() if only.search(title(module, case))]
    if not cases:
        return _refuse(f"expected a case that matches {arguments.only!r}, got none: run without --only")
    results = check_all(cases, arguments.arch)
    # A pipe or a log has no width; the table is then as wide as it needs to be.
    Console(width=None if sys.stdout.isatty() else 200).print(table(results))
    missed = sum(bool(result.misses) for result in results)
    print(f"{len(results)} cases compiled, {missed} miss a gate")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(summary(results), indent=1) + "\n")
    return 1 if missed else 0


def _refuse(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
