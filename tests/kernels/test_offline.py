"""Machine code without a GPU: what is read from it, and that each gate closes.

Kernels compile in a process without Triton's interpreter, which this file is when it runs as a script.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from triton_kernels import offline, sass
from triton_kernels.launch import Case, Launch, interpreted

Arguments = dict[str, torch.Tensor | int | float | None]

LISTING = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P0 BRA `(.L_x_3) ;
.L_x_0:
        /*0020*/                   SYNCS.PHASECHK P1, [R2] ;
.L_x_1:
        /*0030*/              @!P1 IMMA.16832.S8.S8 R4, R8.ROW, R9.COL, R4 ;
        /*0040*/                   STS [R3], R4 ;
        /*0050*/              @!UP0 BRA `(.L_x_1) ;
        /*0060*/                   I2FP.F32.S32 R4, R4 ;
        /*0070*/               @P2 BRA `(.L_x_0) ;
.L_x_2:
        /*0080*/                   IADD3 R4, R4, 0x1, RZ ;
        /*0090*/               @P2 BRA `(.L_x_2) ;
.L_x_3:
        /*00a0*/                   EXIT ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4);
        /*00c0*/                   NOP;
"""


@triton.jit
def product(x, w, y, K, stride, M: tl.constexpr, N: tl.constexpr, S: tl.constexpr):
    """int32 y[M, N] = int8 x[M, K] @ w[N, K].T, K a multiple of S."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, S)
    acc = tl.zeros((M, N), tl.int32)
    for start in range(0, K, S):
        left = tl.load(x + m[:, None] * stride + (k + start)[None, :])
        right = tl.load(w + n[None, :] * stride + (k + start)[:, None])
        acc = tl.dot(left, right, acc, out_dtype=tl.int32)
    tl.store(y + m[:, None] * N + n[None, :], acc)


@triton.jit
def hoard(x, y, N: tl.constexpr):
    """Subtracts the sum of N values, all of them kept in registers."""
    n = tl.arange(0, N)
    values = tl.load(x + n)
    tl.store(y + n, values - tl.sum(values))


def empty(*shape: int, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def product_case(needs: dict[int, tuple[str, ...]], **limits: int) -> Case:
    args: Arguments = {"x": empty(64, 512), "w": empty(64, 512), "y": empty(64, 64, dtype=torch.int32)}
    args |= {"K": 512, "stride": 512}
    return Case("product", [Launch(product, (1,), args, {"M": 64, "N": 64, "S": 64})], needs, **limits)


def compile_all() -> dict[str, Any]:
    values: Arguments = {"x": empty(8192, dtype=torch.float32), "y": empty(8192, dtype=torch.float32)}
    cases = {
        "good": product_case({80: (r"^IMMA\.16832\.S8\.S8",), 90: (r"^IGMMA.*S8\.S8",)}),
        "other": product_case({80: ("IGMMA",)}),
        "spilling": Case("hoard", [Launch(hoard, (1,), values, {"N": 8192}, num_warps=1)], {80: ()}),
        "broken": Case("hoard", [Launch(hoard, (1,), values, {"N": 8191})], {80: ()}),
    }
    return {
        name: offline.summary(offline.check_all([("test", case)], (80, 90), workers=1))["cases"]
        for name, case in cases.items()
    }


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    done = run(__file__)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.mark.parametrize("arch, instruction", [(80, "IMMA.16832.S8.S8"), (90, "IGMMA.64x64x32.S8.S8")])
def test_an_int8_product_runs_on_tensor_cores(compiled: dict[str, Any], arch: int, instruction: str) -> None:
    (result,) = [result for result in compiled["good"] if result["arch"] == arch]
    (launch,) = result["launches"]
    assert result["misses"] == []
    assert any(name.startswith(instruction) for name in launch["loop_tensor"])
    assert launch["kernel"] == "product" and launch["spill_bytes"] == launch["loop_i2f"] == 0
    # The two tiles of 64 x 64 bytes are loaded at least two steps ahead.
    assert 16 <= launch["registers"] <= 255 and 2 * 64 * 64 <= launch["shared_bytes"] <= 6 * 64 * 64
    assert 20 < launch["loop"] < 500


def test_spills_are_seen(compiled: dict[str, Any]) -> None:
    (result,) = compiled["spilling"]
    assert result["launches"][0]["spill_bytes"] > 0
    assert result["misses"] == [f"hoard spills {result['launches'][0]['spill_bytes']} bytes"]


def test_a_missing_instruction_is_seen(compiled: dict[str, Any]) -> None:
    (result,) = compiled["other"]
    assert result["arch"] == 80 and result["misses"] == ["no instruction matches IGMMA"]


def test_what_does_not_compile_misses_its_gates(compiled: dict[str, Any]) -> None:
    (result,) = compiled["broken"]
    assert result["launches"] == [] and result["misses"][0].startswith("does not compile: ")


def test_limits_of_case_and_architecture() -> None:
    binary = offline.Binary("k", 80, 200, 0, 170 * 1024, (), ())
    assert offline.misses(Case("c", [], {}), 90, [binary]) == []
    assert offline.misses(Case("c", [], {}), 80, [binary]) == [
        f"k has {170 * 1024} bytes of shared memory, not at most {163 * 1024}"
    ]
    assert offline.misses(Case("c", [], {}, max_registers=168, max_shared=1024), 90, [binary]) == [
        "k has 200 registers, not at most 168",
        f"k has {170 * 1024} bytes of shared memory, not at most 1024",
    ]


@pytest.mark.parametrize(
    "only, reason",
    [("(", "expected a regular expression, got '('"), ("no such kernel", "got none: run without --only")],
)
def test_a_filter_that_cannot_be_followed(
    only: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["offline", "--only", only])
    monkeypatch.setattr(offline, "interpreted", lambda: False)
    monkeypatch.setattr(offline, "project_cases", lambda: [("m", Case("c", [], {}))])
    assert offline.main() == 2 and reason in capsys.readouterr().err


def test_one_launch_of_a_case_suffices_for_what_it_needs() -> None:
    work, rest = (offline.Binary("k", 80, 9, 0, 0, code, ()) for code in (("IMMA.16832 R4, R8",), ("EXIT",)))
    assert offline.misses(Case("c", [], {80: ("^IMMA",)}), 80, [work, rest]) == []


def test_the_innermost_loop_with_tensor_cores_is_the_main_loop() -> None:
    instructions, loops = sass.parse(LISTING.splitlines())
    assert len(instructions) == 13 and loops == [(3, 6), (2, 8), (8, 10)]
    assert sass.main_loop(instructions, loops) == (
        "IMMA.16832.S8.S8 R4, R8.ROW, R9.COL, R4",
        "STS [R3], R4",
        "BRA `(.L_x_1)",
    )
    assert sass.main_loop(instructions, [(8, 10)])[0] == "IADD3 R4, R4, 0x1, RZ"
    assert sass.main_loop(instructions, []) == ()


@pytest.mark.skipif(not interpreted(), reason="Triton's interpreter is off")
def test_the_interpreter_is_refused() -> None:
    with pytest.raises(ValueError, match="got InterpretedFunction: start Python without TRITON_INTERPRET"):
        offline.compile_launch(product_case({}).launches[0], 90)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "triton_kernels.offline"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("expected to compile kernels, got TRITON_INTERPRET=1")


def one_a_width() -> list[str]:
    """All cases that name no width; of the others the last for each set of kernels and width, to save minutes."""
    chosen = {}
    for module, case in offline.project_cases():
        title = offline.title(module, case)
        width = re.search(r"\bw\d", title)
        kernels = tuple(launch.kernel.fn.__name__ for launch in case.launches)
        chosen[(module, *kernels, width[0]) if width else title] = title
    return list(chosen.values())


def test_kernels_pass_their_gates(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    only = "|".join(map(re.escape, one_a_width()))
    done = run("-m", "triton_kernels.offline", "--only", f"^({only})$", "--json", str(report))
    assert done.returncode in (0, 1), done.stderr
    cases = json.loads(report.read_text())["cases"]
    missed = [f"{case['module']} {case['case']} sm_{case['arch']}: {miss}" for case in cases for miss in case["misses"]]
    assert not missed, "\n".join(missed)


if __name__ == "__main__":
    print(json.dumps(compile_all()))
