"""The training loop: stage after stage (tq.stages); evaluates, checkpoints, resumes. Knows nothing of any UI.

Everything that a run does follows from its config: the weights from the seed, the images of batch i of epoch e from
(seed, e, i), the learning rate from the step. A checkpoint therefore holds tensors and a position, and a resumed run
is bit for bit the uninterrupted one.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from tq import data as datasets
from tq import events
from tq.attach import attach, coverage, quant_layers, requantize, sites, to_channels_last
from tq.checkpoint import predict_bytes
from tq.config import TrainConfig, to_dict
from tq.describe import describe, model_args
from tq.distributed import World
from tq.evaluate import Evaluation, evaluate
from tq.file_info import Info
from tq.layer_report import layer_report
from tq.layers import channels_last
from tq.machine import device_name, pick_device
from tq.meters import StepMeter, system_load
from tq.models import build
from tq.objective import Objective
from tq.ptq.calibrate import calibrate
from tq.quantizers import PACT
from tq.resume import Position, read_checkpoint, write_checkpoint
from tq.runs import Run
from tq.scheme import Scheme
from tq.stage_state import StageState
from tq.stages import Stage, plan
from tq.step import TrainStep, learning_rate, resolution_of
from tq.weights import load_into, weights_from

EVAL_BATCH = 500
CALIBRATION_BATCHES = 4
SYSTEM_EVERY_S = 5.0


class Stopped(Exception):
    """A graceful stop was asked for; the checkpoint is written."""


class Diverged(ValueError):
    """The loss is NaN or infinite."""


class Trainer:
    """Trains the network of one run. `run()` to the end, or raises Stopped or Diverged."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        *,
        resume: bool,
        should_stop: Callable[[], bool],
        world: World | None = None,
    ) -> None:
        """world: the processes that train together; default, this one alone."""
        self.config, self.log, self.path, self.should_stop = config, run.log, run.path, should_stop
        self.world = world or World()
        self.device = pick_device(config.device)
        self.stages = plan(config)
        self.at = Position()
        saved = (
            read_checkpoint(self.path / "checkpoint.pt") if resume and (self.path / "checkpoint.pt").exists() else None
        )
        self.log.emit("phase", name="data")
        if not self.world.main:
            self.world.tell(None)  # the first process may have to fetch the data set
        self.data = datasets.load(
            config.dataset, root=config.data, download=config.download, image_size=config.image_size
        )
        if self.world.main:
            self.world.tell(None)
        torch.manual_seed(config.seed)
        self.model = self._build(config.init if saved is None else None)
        # processes draw masks of their own from here on, the first one as if it were alone
        if self.world.rank:
            torch.manual_seed(config.seed + self.world.rank)
        if config.teacher and saved is None:
            weights_from(config.teacher)  # a teacher that cannot be read is known now, not after the float epochs
        self.layer_names = [site.name for site in sites(self.model)]
        self.teacher: nn.Module | None = None
        self._state: StageState | None = None
        self.diverged = ""
        self.float_bytes = predict_bytes(self.model, self.info())
        self.batches = datasets.Batches(
            self.data.train,
            batch_size=config.batch_size,
            device=self.device,
            mean=self.data.mean,
            std=self.data.std,
            seed=config.seed,
            augment=config.augment,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        self.saved = saved
        if saved is not None:
            self.at = Position(**saved["position"])
        self.log.emit(
            "start",
            v=events.VERSION,
            pid=os.getpid(),
            host=socket.gethostname(),
            device=device_name(self.device),
            epochs=sum(s.epochs for s in self.stages),
            steps_per_epoch=len(self.batches),
            metrics={"acc": {"goal": "max", "unit": "%"}, "loss": {"goal": "min", "unit": "nat"}},
            resumed_from=self.at.step if saved is not None else None,
        )
        self._announce_size()

    def run(self) -> nn.Module:
        """Train through every stage; returns the network in training form."""
        for number in range(self.at.stage, len(self.stages)):
            self._enter(number)
            self._fit(self.stages[number])
            self._leave(number)
        return self.model

    @property
    def state(self) -> StageState:
        """What the stage under way keeps beside the network."""
        assert self._state is not None
        return self._state

    def evaluate(self) -> Evaluation:
        """The test split, in evaluation form; of the averaged weights where there are some. Logits in rank 0 only."""
        self.log.emit("phase", name="eval")
        found = None
        if self.world.main:
            found = evaluate(self._state.evaluated if self._state else self.model, self.test_batches())
        loss, correct, total = self.world.tell((found.loss, found.correct, found.total) if found else None)
        return found or Evaluation(loss, correct, total, torch.empty(0))

    def test_batches(self) -> Any:
        """Normalised batches of the whole test split, in order."""
        return datasets.eval_batches(
            self.data.test, batch_size=EVAL_BATCH, device=self.device, mean=self.data.mean, std=self.data.std
        )

    def info(self, **metrics: Any) -> Info:
        """What the run's file says about itself."""
        return describe(self.config.model, self.data, self.data.mean, self.data.std, metrics)

    def _announce_size(self) -> None:
        """The packed size follows from the layers, but for the header's metrics; every setting is tried with it."""
        scheme = self.stages[-1].scheme
        final = self.model if scheme.is_float else self._attach(copy.deepcopy(self.model), scheme)
        layers = {line.name: line.weight_bits for line in coverage(final)}
        packed = predict_bytes(final, self.info())
        self.log.emit("size", float_bytes=self.float_bytes, packed_bytes=packed, layers=layers)

    def _build(self, weights: str | None) -> nn.Module:
        """The float network, with the weights of a file or freshly drawn ones."""
        model = build(self.config.model, **model_args(self.data)).to(self.device)
        if weights:
            load_into(model, weights_from(weights), where=weights)
        return to_channels_last(model)

    def _attach(self, model: nn.Module, scheme: Scheme) -> nn.Module:
        config = self.config
        choices: dict[str, Any] = {
            "first_last": config.first_last,
            "override": config.override,
            "stage_act_bits": config.stage_act_bits,
            "act_quantizer": config.act_quantizer,
            "weight_quantizer": config.weight_quantizer,
            "granularity": config.granularity,
            "group_size": config.group_size,
        }
        if quant_layers(model):
            return requantize(model, scheme, like=self.layer_names, **choices)
        return attach(model, scheme, **choices)

    def _enter(self, number: int) -> None:
        """Bring model, optimizer and step into the form of a stage, fresh or from the checkpoint."""
        stage, config, saved = self.stages[number], self.config, self.saved
        if number != self.at.stage:
            self.at = Position(stage=number, step=self.at.step, float_accuracy=self.at.float_accuracy)
        if self._state is not None and self._state.inq is not None:
            # the next portion: optimizer and compiled step go on, the schedule of the learning rate starts anew
            self._state.inq.step()
            return
        if not stage.scheme.is_float:
            if saved is None:
                if number == 0:
                    self._first_words(stage.scheme)
                self.world.same(self.model)
            self.teacher = self._teacher()
            self._attach(self.model, stage.scheme)
            if saved is None:
                self._calibrate(batch_statistics=number == 0 and config.init is None)
                self.world.same(self.model)
        self._state = StageState(self.model, config, stage, steps_per_epoch=len(self.batches))
        if saved is not None:
            self.state.load_state_dict(saved)
            self._draw_on(saved)
        elif self.state.inq is not None:
            self.state.inq.step()
        self.saved = None
        self.step = TrainStep(
            self.model, self.state.optimizer, compile=config.compile, amp=config.amp,
            objective=self._objective(stage), after=self.state.after_step, world=self.world,
        )  # fmt: skip

    def _draw_on(self, saved: dict[str, Any]) -> None:
        """Go on with the checkpoint's random numbers, which networks with dropout draw; the first process alone."""
        if self.world.main and "random" in saved:
            torch.set_rng_state(saved["random"])
            if self.device.type == "cuda" and "random_cuda" in saved:
                torch.cuda.set_rng_state(saved["random_cuda"], self.device)

    def _leave(self, number: int) -> None:
        """The averaged weights are what a stage gives; at the end the normalizations are estimated anew."""
        self.state.finish()
        if number + 1 < len(self.stages) or not self.config.norm_batches:
            return
        self.log.emit("phase", name="calibrate")
        batches = (channels_last(x) for x, _ in itertools.islice(self.batches.epoch(0), self.config.norm_batches))
        update_bn(batches, self.model, self.device)
        self.world.same(self.model)
        result = self.evaluate()
        self.at.last = result.accuracy
        epoch = self._epoch_key()
        if result.accuracy > self.at.best:
            self.at.best, self.at.best_epoch = result.accuracy, epoch
        self.log.emit("eval", step=self.at.step, epoch=epoch, split="test", loss=result.loss, acc=result.accuracy)

    def _objective(self, stage: Stage) -> Objective:
        config = self.config
        return Objective(
            teacher=None if stage.scheme.is_float else self.teacher,
            share=config.distill,
            temperature=config.distill_temperature,
            pulled=self.model,
            pull=config.weight_regularization,
            amp=config.amp,
        )

    def _teacher(self) -> nn.Module | None:
        """The float network that teaches: from its file, from --init, or what the float epochs gave."""
        if not self.config.distill or self.teacher is not None:
            return self.teacher
        if self.saved is not None:
            teacher = self._build(None)
            teacher.load_state_dict(self.saved["teacher"])
        elif file := self.config.teacher or self.config.init:
            teacher = self._build(file)
        else:
            teacher = copy.deepcopy(self.model)
        return teacher.eval().requires_grad_(False)

    def _first_words(self, scheme: Scheme) -> None:
        """Before the first quantized step: what the float weights are worth."""
        if self.config.init is not None:
            self.at.float_accuracy = self.evaluate().accuracy
        elif scheme.pow2:
            text = "INQ is for trained weights, but these are freshly drawn; give --init FILE or --float-epochs"
            self.log.emit("alert", level="warning", title="untrained network", text=text)

    def _calibrate(self, *, batch_statistics: bool) -> None:
        self.log.emit("phase", name="calibrate")
        images = self.batches.epoch(0)
        few = [channels_last(next(images)[0]) for _ in range(min(CALIBRATION_BATCHES, len(self.batches)))]
        calibrate(self.model, few, batch_statistics=batch_statistics)
        if self.config.pact_start == "published":
            for quantizer in (m for m in self.model.modules() if isinstance(m, PACT)):
                quantizer.start_as_published()

    def _fit(self, stage: Stage) -> None:
        state, steps = self.state, stage.epochs * len(self.batches)
        meter = StepMeter(self.device)
        compiling = self.step.compiles and self.at.epoch < stage.epochs
        self.log.emit("phase", name="compile" if compiling else stage.name, stage=stage.label)
        next_system = 0.0
        while self.at.epoch < stage.epochs:
            self.model.train()
            for x, y in self.batches.epoch(self._epoch_key(), start=self.at.batch):
                done = (self.at.epoch * len(self.batches) + self.at.batch) / steps
                lr = learning_rate(self.config, done, peak=state.peak, epochs=stage.epochs)
                loss, correct = self.step(channels_last(x), y, lr)
                self.at.batch += 1
                self.at.step += 1
                if compiling:
                    compiling = False
                    self.log.emit("phase", name=stage.name, stage=stage.label)
                if fields := meter.add(loss, correct, len(y), state.oscillation.flips, self._resolution):
                    self._report(fields if state.inq is None else {**fields, "portion": state.inq.portion}, lr)
                if time.monotonic() >= next_system:
                    next_system = time.monotonic() + SYSTEM_EVERY_S
                    self.log.emit("sys", **system_load(self.device))
                self._heed()
            self._end_of_epoch(stage)

    def _heed(self) -> None:
        """Divergence and the wish to stop, of any process: one agreement a step."""
        worst = self.world.worst(2 if self.diverged else int(self.should_stop()))
        if worst == 2:
            raise Diverged(self.diverged or "the loss is not finite in another process; lower --lr")
        if worst:
            self.checkpoint()
            raise Stopped

    def _resolution(self) -> torch.Tensor | None:
        return resolution_of(self.state.optimizer)

    def _epoch_key(self) -> int:
        """Epochs count on through the stages, so that no stage sees the other's order again."""
        return sum(s.epochs for s in self.stages[: self.at.stage]) + self.at.epoch

    def _report(self, fields: dict[str, float], lr: float) -> None:
        fields["img_s"] *= self.world.size
        self.log.step(step=self.at.step, epoch=self._epoch_key() + 1, lr=lr, **fields)
        if not math.isfinite(fields["loss"]):
            sentence = f"the loss is {fields['loss']} at step {self.at.step}; lower --lr (now {lr:.3g}) or add --warmup"
            self.log.emit("alert", level="error", title="loss is not finite", text=sentence)
            self.diverged = sentence

    def _end_of_epoch(self, stage: Stage) -> None:
        epoch = self._epoch_key() + 1
        result = self.evaluate()
        self.log.emit("eval", step=self.at.step, epoch=epoch, split="test", loss=result.loss, acc=result.accuracy)
        if not stage.scheme.is_float:
            self.log.emit(
                "layers", step=self.at.step, epoch=epoch, layers=layer_report(self.model, self.state.oscillation)
            )
        if result.accuracy < self.at.best / 2:
            text = f"accuracy fell to {result.accuracy:.2f} % from {self.at.best:.2f} %"
            self.log.emit("alert", level="warning", title="training diverges", text=text)
        self.at.last = result.accuracy
        if result.accuracy > self.at.best:
            self.at.best, self.at.best_epoch = result.accuracy, epoch
        if stage.scheme.is_float:
            self.at.float_accuracy = result.accuracy
        self.at.epoch, self.at.batch = self.at.epoch + 1, 0
        self.checkpoint()
        if self.at.epoch < stage.epochs:
            self.log.emit("phase", name=stage.name, stage=stage.label)

    def checkpoint(self) -> None:
        """Write checkpoint.pt (tmp + fsync + rename), never over a good one with NaN weights."""
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise Diverged(f"a weight is NaN or infinite at step {self.at.step}; the last good checkpoint is kept")
        if not self.world.main:
            return
        state = {
            "version": 1,
            "config": to_dict(self.config),
            "position": asdict(self.at),
            **self.state.state_dict(),
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        if self.teacher is not None:
            state["teacher"] = self.teacher.state_dict()
        target = self.path / "checkpoint.pt"
        write_checkpoint(target, state)
        self.log.emit("checkpoint", step=self.at.step, path=target.name, best=self.at.last >= self.at.best)
