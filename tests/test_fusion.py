"""Fusing a packed network: the same predictions, one call where it can be, and torch's own operations elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tq.attach import attach
from tq.conversion import convert
from tq.fusion import fuse, fused_parts
from tq.ptq.calibrate import calibrate
from triton_kernels import chain, native

IMPLS = ["auto", "reference"] if native.why_not() else ["native", "auto", "reference", "cpu"]


class Tangled(nn.Module):
    """Identities, dropout, a value that is read in two ways, an operation of torch's own, a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.skip, self.drop, self.relu = nn.Identity(), nn.Dropout(), nn.ReLU()
        self.pool, self.flat = nn.MaxPool2d(3, 2, 1), nn.Flatten()
        self.head, self.second = nn.Linear(8 * 4 * 5, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn_a(self.a(x)))
        y = self.b(x) + self.skip(x)
        z = torch.sigmoid(y) * self.c(self.drop(y))  # nothing of the kernels'
        z = self.pool(F.relu(z + y))
        out: Tensor = self.second(self.drop(self.head(self.flat(z)).relu()))
        return out


def packed_tangled() -> nn.Module:
    torch.manual_seed(0)
    model = attach(Tangled().eval(), "w4a8", first_last="same")
    calibrate(model, [torch.randn(5, 3, 8, 9)])
    return convert(model.eval())


@pytest.mark.parametrize("name", ["cnn", "lenet", "resnet20", "odd"])
@pytest.mark.parametrize("scheme", ["w8a8", "w1a2", "w4a4", "w2a1"])
def test_predictions_stay_the_same(
    name: str, scheme: str, quantized: Callable[..., nn.Module], images: Callable[..., Tensor]
) -> None:
    for first_last in ("8", "16"):
        packed = convert(quantized(name, scheme, first_last=first_last))
        with torch.no_grad():
            for impl in IMPLS:
                fused = fuse(packed, images(name, 2), impl=impl)
                assert fused_parts(fused)
                for batch in (1, 5):
                    x = images(name, batch, seed=batch)
                    assert torch.equal(fused(x), packed(x)), impl


def test_a_whole_resnet_is_one_call(quantized: Callable[..., nn.Module], images: Callable[..., Tensor]) -> None:
    packed = convert(quantized("resnet20", "w8a8", first_last="8"))
    fused = fuse(packed, images("resnet20", 1))
    (part,) = fused_parts(fused)
    # 19 convolutions and 2 shortcuts with their sums and ReLUs inside, the pooling, and the classifier
    assert len(part.program.steps) == 23 and [n.op for n in fused.graph.nodes].count("call_module") == 1
    assert ("native" in part.how) != bool(native.why_not())
    assert sum(s.residual is not None for s in part.program.steps) == 9


def test_what_the_kernels_cannot_do_stays_torchs() -> None:
    packed, x = packed_tangled(), torch.randn(3, 3, 8, 9)
    with torch.no_grad():
        want = packed(x)
        for impl in IMPLS:
            fused = fuse(packed, x[:1], impl=impl)
            assert torch.equal(fused(x), want)
            assert len(fused_parts(fused)) >= 2
            assert {str(n.target) for n in fused.graph.nodes} >= {"sigmoid"} or "sigmoid" in fused.code


def test_fused_network_compiles_without_a_graph_break() -> None:
    packed, x = packed_tangled(), torch.randn(3, 3, 8, 9)
    fused = fuse(packed, x)
    with torch.no_grad():
        compiled = torch.compile(fused, fullgraph=True)
        torch.testing.assert_close(compiled(x), packed(x))  # its sigmoid rounds otherwise
    assert not packed(x).requires_grad and not fused(x).requires_grad


def test_another_image_size_is_refused_in_one_sentence() -> None:
    fused = fuse(packed_tangled(), torch.randn(1, 3, 8, 9))
    with pytest.raises(ValueError, match="fused for that image size; fuse it again"):
        fused(torch.randn(1, 3, 9, 9))


def test_what_cannot_be_fused_is_said(network: Callable[..., nn.Module], quantized: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="expected a packed network, got a LeNet"):
        fuse(network("lenet"), torch.randn(1, 1, 13, 13))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        branching = convert(quantized("branch", "w4a8"))
    with pytest.warns(UserWarning, match=r"torch\.fx cannot read Branching .* it is not fused"):
        assert fuse(branching, torch.randn(1, 3, 9, 7)) is branching
    with pytest.raises(ValueError, match="expected impl to be one of"):
        fuse(packed_tangled(), torch.randn(1, 3, 8, 9), impl="cublas")


def test_a_part_that_would_predict_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = chain.executor

    def wrong(*args: Any) -> tuple[Any, str]:
        run, how = right(*args)
        return lambda inputs: [y + 1e-3 for y in run(inputs)], how

    monkeypatch.setattr(chain, "executor", wrong)
    packed, x = packed_tangled(), torch.randn(3, 3, 8, 9)
    with pytest.warns(UserWarning, match="would change predictions"):
        fused = fuse(packed, x)
    assert not fused_parts(fused) and torch.equal(fused(x), packed(x))


class Awkward(nn.Module):
    """Keyword operands, a half-precision input, a sum that only looks alike for one image, a child with our prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fused_head = nn.Conv2d(8, 4, 1)
        self.position = nn.Parameter(torch.randn(1, 8, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(input=self.a(x))
        y = self.b(y.half().float()) + self.position
        out: Tensor = self.fused_head(F.relu(y)).mean((2, 3))
        return out


def test_awkward_networks_are_fused_as_far_as_they_go() -> None:
    torch.manual_seed(0)
    model = attach(Awkward().eval(), "w8a8", first_last="same")
    calibrate(model, [torch.randn(5, 3, 6, 6)])
    packed = convert(model.eval())
    x = torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        fused = fuse(packed, x[:1])
        assert fused_parts(fused) and torch.equal(fused(x), packed(x))
