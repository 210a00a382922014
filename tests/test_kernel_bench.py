"""tq bench kernels: the shapes, what is checked before a time is printed, the numbers of a row, the goals."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tq import machine
from tq.cli import main
from tq.config import KernelBenchConfig
from tq.kernels import ours as kernel_ours
from tq.kernels import peers as kernel_peers
from tq.kernels import run as kernel_bench
from tq.kernels import shapes as kernel_shapes
from tq.kernels import timing as kernel_timing
from tq.kernels.goals import goals, lines
from tq.kernels.layers import Layer, least_bytes
from tq.kernels.shapes import Problem, Shape, convolutions, problems

CPU = torch.device("cpu")
MATRIX = Shape(("square",), (48, 32))
CONV = Shape(("resnet50",), (16, 8, 3, 3), 6, 1, 1)
LIMITS = {"copy_bytes_s": 1e10, "int8_ops_s": 1e11, "float_ops_s": 5e10, "how": "given by the test"}


def quiet(*_: object) -> None:
    """Notify nobody, keep nothing."""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """Two tiny problems in place of the set, known ceilings, and no compilation."""
    found = [
        Problem(MATRIX, 5, ((8, "fp32"), (1, "fp32"), (4, "static"), (4, "dynamic"), (4, "codes"))),
        Problem(CONV, 4, ((2, "fp32"), (2, "static"), (2, "codes"))),
    ]
    monkeypatch.setattr(kernel_shapes, "problems", lambda config, device: found)
    monkeypatch.setattr(kernel_bench, "ceilings", lambda *_: dict(LIMITS))
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    return found


def test_every_convolution_once_with_all_its_networks() -> None:
    found = convolutions()
    assert len({replace(shape, groups=()) for shape in found}) == len(found)
    by_network = {name: [s for s in found if name in s.groups] for name in kernel_shapes.NETWORKS}
    assert {name: len(shapes) for name, shapes in by_network.items()} == {"resnet20": 8, "resnet18": 11, "resnet50": 23}
    both = next(s for s in found if s.groups == ("resnet18", "resnet50") and s.weight == (64, 3, 7, 7))
    assert (both.size, both.stride, both.padding, both.output) == (224, 2, 3, (64, 112, 112))
    assert both.name == "resnet18, resnet50: 3-64 7x7/2 @224"
    # 4.09 GMAC for an image of 224 pixels, each distinct convolution counted once: less than all of them
    macs = sum(Problem(s, 1, ()).operations / 2 for s in by_network["resnet50"])
    assert 1e9 < macs < 4.1e9


def test_sets_for_devices_and_only() -> None:
    quick = problems(KernelBenchConfig(), CPU)
    assert [p.name for p in quick[:2]] == ["square 4096x4096 m=1", "square 4096x4096 m=16"]
    assert len(quick) == 5 and len(quick[0].kinds) == 8
    full = problems(KernelBenchConfig(), torch.device("cuda"))
    assert len(full) == 5 * 6 + len(convolutions())
    assert {a for _, a in full[0].kinds} == {"bf16", "fp16", "static", "dynamic", "codes"}
    assert {p.rows for p in full if p.shape.conv} == {256, 64}
    some = problems(KernelBenchConfig(only=r"square 8192.*m=7 w1 (static|codes)", m=(7, 9)), CPU)
    assert [(p.name, p.kinds) for p in some] == [("square 8192x8192 m=7", ((1, "static"), (1, "codes")))]
    with pytest.raises(ValueError, match="leaves nothing"):
        problems(KernelBenchConfig(only="nothing of the kind"), CPU)


def test_least_bytes_counts_everything_once() -> None:
    problem = Problem(MATRIX, 5, ())
    assert least_bytes(problem, 1, torch.int8, torch.float32) == 48 * 4 + 4 * 48 + 5 * 32 + 4 * 5 * 48
    assert least_bytes(problem, 16, torch.bfloat16, torch.bfloat16) == 2 * 48 * 32 + 2 * 5 * (32 + 48)
    conv = least_bytes(Problem(CONV, 2, ()), 4, torch.uint8, torch.uint8)
    assert conv == 16 * 36 + 2 * 4 * 16 + 2 * 8 * 36 + 2 * 16 * 36


def test_bench_checks_and_times_every_row(tiny: list[Problem]) -> None:
    kept: list[int] = []
    result = kernel_bench.bench(
        KernelBenchConfig(seconds=0.01, device="cpu"), notify=quiet, keep=lambda r: kept.append(len(r["rows"]))
    )
    json.dumps(result, allow_nan=False)
    rows = result["rows"]
    assert result["finished"] and kept == [8, len(rows)] and result["set"] == "quick"
    assert [row["error"] for row in rows] == [""] * len(rows)
    ours = [row for row in rows if row["ours"]]
    assert {row["contender"] for row in ours} >= {"tq cpu"}
    for row in ours:
        exact = row["activation"] != "fp32"
        assert row["ms"] > 0 and row["calls"] >= 5
        assert row["checked"] == "equals reference" or (not exact and row["checked"].startswith("mean error"))
    codes = next(row for row in rows if row["activation"] == "codes" and row["ours"])
    assert codes["ceiling_ms"] == max(1e3 * codes["bytes"] / 1e10, 1e3 * 2 * 5 * 48 * 32 / 1e11)
    assert codes["fraction"] == codes["ceiling_ms"] / codes["ms"]
    floats = [row["ms"] for row in rows if row["problem"] == codes["problem"] and row["float_layer"]]
    assert codes["speedup"] == min(floats) / codes["ms"]
    assert kernel_bench.table(result)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda y: y.flip(0), "differ from the reference"),
        (lambda y: torch.cat([y[:-1], y[-1:] + 1]), "differ from the reference"),
        (lambda y: y[:-1], "instead of"),
    ],
)
def test_a_wrong_row_has_no_time(
    tiny: list[Problem], monkeypatch: pytest.MonkeyPatch, damage: Callable[[Tensor], Tensor], said: str
) -> None:
    good = kernel_ours.operator(tiny[0], Layer(MATRIX, CPU), 4, "codes")
    call = good.make()
    bad = replace(good, make=lambda: lambda: damage(call()))
    monkeypatch.setattr(kernel_bench, "ours", lambda problem, layer: [bad])
    monkeypatch.setattr(kernel_bench, "peers", lambda problem, layer: [])
    row = kernel_bench._measure(tiny[0], Layer(MATRIX, CPU), LIMITS, 0.01)[0]
    assert row["error"].startswith("wrong") and said in row["error"]
    assert row["ms"] is None and row["fraction"] is None and row["speedup"] is None


def test_a_peer_that_fails_is_skipped_and_ours_is_an_error(
    tiny: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise RuntimeError("no such instruction\nmore")

    ours = kernel_ours.operator(tiny[0], Layer(MATRIX, CPU), 4, "codes")
    monkeypatch.setattr(kernel_bench, "ours", lambda problem, layer: [replace(ours, make=fail)])
    monkeypatch.setattr(kernel_bench, "peers", lambda problem, layer: [replace(ours, make=fail, ours=False)])
    peer, mine = kernel_bench._measure(tiny[0], Layer(MATRIX, CPU), LIMITS, 0.01)
    assert (mine["error"], mine["skipped"]) == ("not run: RuntimeError: no such instruction", "")
    assert (peer["error"], peer["skipped"]) == ("", "not run: RuntimeError: no such instruction")


def test_packages_that_are_missing_say_so() -> None:
    problem, layer = Problem(MATRIX, 2, ()), Layer(MATRIX, CPU)
    peer = kernel_peers._package(problem, layer, "nosuchpackage int8", 8, "bf16", torch.bfloat16, quiet)
    with pytest.raises(ModuleNotFoundError) as error:
        peer.make()
    assert machine.reason(error.value) == "not installed"


def test_ctrl_c_keeps_what_was_measured(
    tiny: list[Problem], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = kernel_bench._measure

    def once(problem: Problem, *rest: Any) -> list[dict[str, Any]]:
        if problem.shape.conv:
            raise KeyboardInterrupt
        return measure(problem, *rest)

    monkeypatch.setattr(kernel_bench, "_measure", once)
    out = tmp_path / "kernels.json"
    assert main(["bench", "kernels", "--seconds", "0.01", "--device", "cpu", "--out", str(out)]) == 130
    captured = capsys.readouterr()
    assert "interrupted; 8 rows were measured before" in " ".join(captured.err.split())
    written = json.loads(out.read_text())
    assert not written["finished"] and len(written["rows"]) == 8
    assert "tq bench kernels" in captured.out and "quantization_cost dynamic" in captured.out


def test_the_command_prints_json_and_fails_for_a_wrong_row(
    tiny: list[Problem], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "kernels", "--seconds", "0.01", "--device", "cpu", "--json"]
    assert main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["versions"]["torch"] == torch.__version__ and result["ceilings"]["copy_bytes_s"] == 1e10
    expected = Layer.expected
    monkeypatch.setattr(Layer, "expected", lambda *args: expected(*args) + 1)
    assert main(argv) == 1
    captured = capsys.readouterr()
    wrong = [row for row in json.loads(captured.out)["rows"] if row["error"]]
    assert wrong and all(row["ms"] is None for row in wrong)
    assert f"{len(wrong)} of" in captured.err


@pytest.mark.parametrize(
    "flags", [["--only", "("], ["--m", "0"], ["--seconds", "0"], ["--only", "nothing"], ["--device", "xyz"]]
)
def test_bad_flags_are_one_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", *flags]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_on_a_gpu_calls_are_timed_warm_and_cold_from_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bool] = []
    calls: list[int] = []

    def events(run: Callable[[], Any], flush: object = None) -> float:
        flushed.append(flush is not None)
        run()
        return 1e-4

    def graph(call: Callable[[], Any], count: int) -> Callable[[], None]:
        return lambda: calls.append(count)

    monkeypatch.setattr(kernel_timing, "_buffer", lambda device: "flush")
    monkeypatch.setattr(kernel_timing, "_events", events)
    monkeypatch.setattr(kernel_timing, "_graph", graph)
    clock = kernel_timing.Clock(quiet, torch.device("cuda"))  # type: ignore[arg-type]
    kernel_timing.in_turns([clock], 0.001)
    assert set(calls) == {1, 10} and not clock.note
    assert set(clock.samples["warm"]) == {1e-5} and set(clock.samples["cold"]) == {1e-4}
    assert sum(flushed) == len(clock.samples["cold"]) >= 5

    def no_graph(*_: object) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(kernel_timing, "_graph", no_graph)
    clock = kernel_timing.Clock(quiet, torch.device("cuda"))  # type: ignore[arg-type]
    kernel_timing.in_turns([clock], 0.001)
    assert clock.note == "no CUDA graph: operation not permitted when stream is capturing"
    assert clock.samples["cold"] and clock.samples["warm"]


def test_half_precision_layers_as_on_a_gpu() -> None:
    for shape in (MATRIX, CONV):
        layer = Layer(shape, CPU)
        layer.float_dtype = torch.bfloat16
        problem = Problem(shape, 5, ((1, "bf16"), (4, "fp16"), (2, "static")))
        for contender in [*kernel_peers.peers(problem, layer), *kernel_ours.ours(problem, layer)]:
            if contender.name in ("tq cpu", "torch bf16", "torch._int_mm"):
                found = layer.check(contender.make()(), contender.expected(), 5, contender.error)
                assert not found[1], (contender.name, found)


def test_ceilings_are_measured() -> None:
    found = kernel_timing.ceilings(CPU, 0.01, (64,))
    assert found["copy_bytes_s"] > 0 and found["float_ops_s"] > 0
    assert found["int8_ops_s"] is None or found["int8_ops_s"] > 0


def row_of(problem: str, bits: int, activation: str, ms: float, **more: Any) -> dict[str, Any]:
    """A row of ours as the goals read it."""
    about = {"op": "quant_matmul", "weight": [8192, 8192], "rows": 1, "networks": ["square"], "ours": True}
    numbers = {"ms": ms, "bytes_ms": 0.5, "operations": 10**9, "speedup": 2.0, "warm_speedup": 3.0}
    return {"problem": problem, "bits": bits, "activation": activation, **about, **numbers, **more}


def test_goals_are_read_off_the_rows() -> None:
    conv = {"op": "quant_conv2d", "networks": ["resnet50"], "weight": [64, 64, 3, 3]}
    rows = [
        row_of("a", 8, "codes", 1.0),
        row_of("a", 8, "static", 1.1),
        row_of("b", 8, "codes", 2.0, rows=16),
        row_of("b", 8, "static", 2.6, rows=16),
        row_of("c", 8, "codes", 1.0, rows=4096, weight=[4096, 4096], operations=10**8),
        row_of("d", 2, "codes", 1.0, **conv, speedup=1.0),
        row_of("e", 2, "codes", 1.0, **conv, speedup=4.0),
    ]
    found = goals(rows, LIMITS)
    assert found["resnet50_speedup"]["w2"]["value"] == pytest.approx(2.0)
    assert found["resnet50_speedup"]["w2"]["reason"] == "of the 23 convolutions"
    assert found["resnet50_speedup"]["w8"]["value"] is None and found["resnet50_speedup"]["w8"]["reason"]
    assert found["bandwidth"]["w8 codes"] == {"value": statistics.median([0.5, 0.25]), "lowest": 0.25, "n": 2}
    assert found["int8_gemm"]["fraction_of_peak c"]["value"] == pytest.approx(1.0)
    assert found["int8_gemm"]["speedup_over_float c"]["value"] == 2.0
    assert found["quantization_cost"]["static"]["value"] == pytest.approx(0.2)
    assert found["quantization_cost"]["static"]["highest"] == pytest.approx(0.3)
    assert found["quantization_cost"]["dynamic"]["value"] is None
    text = "\n".join(lines(found))
    assert "resnet50_speedup w2: 2.00, warm 3.00 (2 rows; of the 23 convolutions)" in text
    assert "quantization_cost dynamic: not measured" in text
    empty = goals([], {})
    assert all(goal["value"] is None and goal["reason"] for group in empty.values() for goal in group.values())
