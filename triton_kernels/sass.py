"""What a cubin holds: registers, spilled bytes, its instructions, and the loop that does the work.

Read by the two tools that come with Triton: `cuobjdump -res-usage` for the resources, `nvdisasm -c` for the code, which
looks like this:

    .L_x_2:
            /*0a20*/              @!P0 IGMMA.64x128x32.S8.S8 R24, gdesc[UR8], R24, !UPT, gsb0 ;
            /*0a30*/               @P0 BRA `(.L_x_2) ;
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from triton import knobs

# Products of the tensor cores: HMMA, IMMA, BMMA up to sm_89, HGMMA, IGMMA, QGMMA (fp8) on sm_90, UTC*MMA on sm_100.
TENSOR = re.compile(r"(UTC)?[A-Z]G?MMA\b")

_LABEL = re.compile(r"(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.+?)\s*;")
_BRANCH = re.compile(r"BRA\b.*`\((\.L_\w+)\)")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class Code:
    """instructions: the kernel's, without predicates, in their order; loop: those of its main loop, empty if none."""

    registers: int
    spill_bytes: int
    instructions: tuple[str, ...]
    loop: tuple[str, ...]


# nvdisasm takes 0.2 s for any cubin, and cases share small kernels.
@cache
def read(cubin: bytes) -> Code:
    """Disassemble a cubin that holds one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        found = _RESOURCES.search(_output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name))
        lines = _output(knobs.nvidia.nvdisasm.path, "-c", file.name).splitlines()
    assert found, "cuobjdump names no resources"
    registers, stack, local = map(int, found.groups())
    instructions, loops = parse(lines)
    return Code(registers, stack + local, instructions, main_loop(instructions, loops))


def parse(lines: Iterable[str]) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """The instructions, and for each backward branch the range [start, end) of those that it repeats."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in lines:
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(found[1])
            branch = _BRANCH.match(found[1])
            # An instruction that jumps to itself only fills the end of the code.
            if branch and labels.get(branch[1], len(instructions)) < len(instructions) - 1:
                loops.append((labels[branch[1]], len(instructions)))
    return tuple(instructions), loops


def main_loop(instructions: tuple[str, ...], loops: list[tuple[int, int]]) -> tuple[str, ...]:
    """Of the innermost loops the one with most tensor-core products, or without any, the longest."""

    def products(loop: tuple[int, int]) -> int:
        return sum(bool(TENSOR.match(text)) for text in instructions[slice(*loop)])

    working = [loop for loop in loops if products(loop)] or loops
    innermost = [a for a in working if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in working)]
    best = max(innermost, key=lambda loop: (products(loop), loop[1] - loop[0]), default=(0, 0))
    return instructions[slice(*best)]


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
