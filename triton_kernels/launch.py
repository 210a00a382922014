"""One kernel call as a value: what to run, on which grid, with which arguments and compile options.

The functions that plan a kernel call return `Launch`es and run nothing; so the same plan is run on a device, run under
Triton's interpreter, and compiled offline for a GPU that is not there (`offline`), with the very same specializations.
"""

from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Launch:
    """kernel: a `triton.jit` function. args: its runtime arguments by name (tensors, numbers, None, or named tuples of
    these). constants: its `tl.constexpr` arguments by name."""

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Tensor | int | float | tuple[Any, ...] | None]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3

    def run(self) -> None:
        """Enqueue the kernel on the current stream; nothing when the grid is empty."""
        if not all(self.grid):
            return
        # Without fusion a product and the sum after it are rounded separately, as in the reference.
        self.kernel[self.grid](
            **self.args,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            enable_fp_fusion=False,
        )


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter (TRITON_INTERPRET=1), on CPU tensors."""
    return bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel at one shape, for the offline report: what is compiled and what its machine code must show.

    needs: regular expressions of instructions by architecture (80, 90) that must occur. max_registers and max_shared
    (bytes) are what the intended occupancy leaves to one thread and one block.
    """

    name: str
    launches: list[Launch]
    needs: dict[int, tuple[str, ...]]
    max_registers: int = 255
    max_shared: int = 227 * 1024
