"""What each layer's weights cost at each width: one layer quantized at a time, everything else left as it is.

    loss(layer, bits) = KL(p || q) - KL(p || q0), nats an image, mean over the calibration images

p are the float network's class probabilities, q those with one layer's weights at `bits`, q0 those with all weights
float; inputs are quantized as calibrated in q and q0, so that only the weights are charged. No labels. The sum over
layers is the additive model that tq/ptq/allocate.py minimises (after ZeroQ, arXiv 2001.00281, section 3.3, which
measures the same divergence on synthetic images).

A layer's weights are exchanged for codes * scale in float32, which is the evaluation form but for the rounding of
float sums. Everything in front of the layer is computed once a batch: torch.fx splits the network there; a network
that it cannot read is run as a whole, about twice as slow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tq.attach import quant_layers
from tq.hooks import evaluating
from tq.layers import QuantLayer, channels_last
from tq.ptq.ranges import weight_scale
from tq.quantizers import LearnedWeight
from tq.traced import Unreadable, trace

BITS = (1, 2, 4, 8)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sensitivity:
    """One layer at one width: the loss in nats an image, and how many images in percent change their top class."""

    layer: str
    bits: int
    loss: float
    disagreement: float


@dataclass
class _Sum:
    loss: float = 0.0
    changed: int = 0

    def add(self, p: Tensor, logits: Tensor) -> None:
        """p: float64 log probabilities [B, classes]."""
        q = logits.double().log_softmax(1)
        self.loss += float(F.kl_div(q, p, reduction="sum", log_target=True))
        self.changed += int((q.argmax(1) != p.argmax(1)).sum())


class Probe:
    """An attached and calibrated network whose layers can be given any weight bits for a while.

    images: normalised batches [B, C, H, W]; they are kept, with the float network's log probabilities of each.
    weight_range, percentile: how the scales are chosen, as in `calibrate`.
    Raises ValueError: no image, no layer whose weights are quantized.
    """

    def __init__(
        self, model: nn.Module, images: Iterable[Tensor], *, weight_range: str = "mse", percentile: float = 99.99
    ) -> None:
        self.model, self.images = model, [channels_last(x) for x in images]
        self.layers = {n: layer for n, layer in quant_layers(model).items() if layer.weight_quantizer is not None}
        if not self.images or not sum(len(x) for x in self.images):
            raise ValueError("sensitivities need at least one calibration image")
        if not self.layers:
            raise ValueError(f"{type(model).__name__} has no layer with quantized weights; call tq.attach first")
        self._method, self._percentile = weight_range, percentile
        # asked now: while the weights are float the layers have no quantizer
        self._per_channel = {n: q.per_channel for n, layer in self.layers.items() if (q := layer.weight_quantizer)}
        self._weights: dict[tuple[str, int], Tensor] = {}
        self.total = sum(len(x) for x in self.images)
        with self._float(inputs=True):
            self.targets = [log_probabilities(model(x)) for x in self.images]

    def disagreement(self, bits: Mapping[str, int]) -> float:
        """Images in percent whose top class is not the float network's, with these weight bits (others float)."""
        return self._measure(bits).changed * 100 / self.total

    def loss(self, bits: Mapping[str, int]) -> float:
        """KL divergence from the float network, nats an image, with these weight bits (others float)."""
        return self._measure(bits).loss / self.total

    def _measure(self, bits: Mapping[str, int]) -> _Sum:
        result = _Sum()
        with self._float(), contextlib.ExitStack() as stack:
            for name, width in bits.items():
                stack.enter_context(exchanged(self.layers[name], self.quantized(name, width)))
            for x, p in zip(self.images, self.targets, strict=True):
                result.add(p, self.model(x))
        return result

    def quantized(self, name: str, bits: int) -> Tensor:
        """codes * scale of one layer at `bits`, in the layout and shape of its weight; computed once."""
        if (name, bits) not in self._weights:
            weight, per_channel = self.layers[name].weight.detach(), self._per_channel[name]
            quantizer = LearnedWeight(bits, weight, per_channel=per_channel)
            quantizer.set_step(
                weight_scale(weight, bits, method=self._method, percentile=self._percentile, per_channel=per_channel)
            )
            codes, scale = quantizer(weight)
            value = (codes * scale.view(-1, *[1] * (weight.ndim - 1))).detach()
            self._weights[name, bits] = channels_last(value)
        return self._weights[name, bits]

    def rows(self, bits: Mapping[str, Sequence[int]], on_step: Progress) -> list[Sensitivity]:
        """Every layer of `bits` at each of its widths; on_step(done, of) after each batch of each."""
        sums = {(name, width): _Sum() for name, widths in bits.items() for width in widths}
        baseline, graph = _Sum(), _trace(self.model)
        steps, done = len(sums) * len(self.images), 0
        with self._float():
            for x, p in zip(self.images, self.targets, strict=True):
                baseline.add(p, self.model(x))
                for name, run in _forks(self.model, graph, x, list(bits)):
                    for width in bits[name]:
                        with exchanged(self.layers[name], self.quantized(name, width)):
                            sums[name, width].add(p, run())
                        done += 1
                        on_step(done, steps)
        return [
            Sensitivity(name, width, (s.loss - baseline.loss) / self.total, s.changed * 100 / self.total)
            for (name, width), s in sums.items()
        ]

    @contextlib.contextmanager
    def _float(self, *, inputs: bool = False) -> Iterator[None]:
        """Evaluation with all weights float, and with `inputs` all inputs too."""
        kept = [(layer, layer.weight_quantizer, layer.input_quantizer) for layer in quant_layers(self.model).values()]
        try:
            for layer, _, _ in kept:
                layer.weight_quantizer = None
                if inputs:
                    layer.input_quantizer = None
            with torch.no_grad(), evaluating(self.model):
                yield
        finally:
            for layer, w, a in kept:
                layer.weight_quantizer, layer.input_quantizer = w, a


def log_probabilities(logits: Tensor) -> Tensor:
    """float64 [B, classes]."""
    return logits.double().log_softmax(1)


@contextlib.contextmanager
def exchanged(layer: QuantLayer, weight: Tensor) -> Iterator[None]:
    """The layer with another weight of the same shape."""
    kept = layer.weight.data
    layer.weight.data = weight
    try:
        yield
    finally:
        layer.weight.data = kept


def _trace(model: nn.Module) -> fx.GraphModule | None:
    try:
        return trace(model, lambda m: isinstance(m, QuantLayer))
    except Unreadable:  # attach has warned
        return None


def _forks(
    model: nn.Module, graph: fx.GraphModule | None, x: Tensor, names: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(layer, function from nothing to logits) in the order of execution; what lies in front of the layer is kept."""
    if graph is None:
        yield from ((name, lambda: model(x)) for name in names)
        return
    front = fx.Interpreter(graph)
    front.env, front.args_iter = {}, iter((x,))
    waiting = set(names)
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.target in waiting:
            waiting.remove(node.target)
            yield node.target, lambda: _rest(graph, front.env)
        if not waiting:
            return
        front.env[node] = front.run_node(node)
        for dead in front.user_to_last_uses.get(node, []):
            front.env[dead] = None


def _rest(graph: fx.GraphModule, env: dict[fx.Node, object]) -> Tensor:
    """Run the nodes that `env` lacks, on copies: some of them may work in place."""
    copies = {node: v.clone() if isinstance(v, Tensor) else v for node, v in env.items()}
    logits: Tensor = fx.Interpreter(graph).run(initial_env=copies)
    return logits
