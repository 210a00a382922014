"""One training run from start to end: signals, the run log's last word, the verified file."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tq.config import TrainConfig
from tq.runs import Run

if TYPE_CHECKING:
    from tq.distributed import World


class StopFlag:
    """True after SIGTERM or Ctrl-C. A second Ctrl-C raises KeyboardInterrupt at once; the last checkpoint stays."""

    def __init__(self) -> None:
        self.raised = False
        self._old: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.raised

    def __enter__(self) -> StopFlag:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = True
        os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again to quit at once\n")


def execute(
    config: TrainConfig, run: Run, *, resume: bool, out: Path | None = None, world: World | None = None
) -> dict[str, Any]:
    """Train, pack, save and verify. Returns the summary that the `end` event carries too.

    world: the processes of torchrun; all but the first return an empty summary.

    `summary["status"]` is "ok" or "stopped" (after SIGTERM or Ctrl-C: checkpoint written, resume later). Errors are
    logged as `end error` and raised again.
    """
    with StopFlag() as stop:
        try:
            # inside, so that a broken installation of torch ends the run with a reason
            from tq.train import Stopped, Trainer

            try:
                trainer = Trainer(config, run, resume=resume, should_stop=stop, world=world)
                trainer.run()
                if not trainer.world.main:
                    return {}
                with _tuning_logged(run):
                    summary = _finish(trainer, out)
            except Stopped:
                summary = {"status": "stopped", "step": trainer.at.step, "run": str(run.path)}
                run.log.emit("end", status="stopped", summary=summary)
                return summary
        except KeyboardInterrupt:
            run.log.emit("end", status="stopped", error="interrupted twice; the last checkpoint stands")
            raise
        except Exception as error:
            if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                first = next(iter(str(error).splitlines()), type(error).__name__)
                error = ValueError(f"torch.compile failed ({first}); it needs a C++ compiler, or pass --no-compile")
            tail = traceback.format_exc().splitlines()[-20:]
            run.log.emit("end", status="error", error=str(error) or type(error).__name__, traceback="\n".join(tail))
            raise error from error.__cause__
    run.log.emit("end", status="ok", summary=summary)
    return summary


@contextlib.contextmanager
def _tuning_logged(run: Run) -> Iterator[None]:
    """A kernel that tries its tile choices (TQ_TUNE=on, on a GPU) is a phase of the run, not a silent wait."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    from triton_kernels import tuning

    def note(op: str, key: Any, seconds: float | None) -> None:
        run.log.emit("phase", name="autotune" if seconds is None else "pack", kernel=op)

    with tuning.listening(note):
        yield


def _finish(trainer: Any, out: Path | None) -> dict[str, Any]:
    """Pack, write, reload and compare; the files are the run's model.safetensors and, if asked for, `out`."""
    from tq.atomic import atomic
    from tq.attach import coverage, quant_layers
    from tq.describe import model_args
    from tq.models import build
    from tq.verify import save_verified

    config, at, log = trainer.config, trainer.at, trainer.log
    log.emit("phase", name="pack")
    own = build(config.model, **model_args(trainer.data)) if ":" in config.model else None
    info = trainer.info(float_bytes=trainer.float_bytes)
    path = trainer.path / "model.safetensors"
    proof = save_verified(trainer.model, path, info, trainer.test_batches, own_model=own)
    if out is not None:
        with atomic(out, otherwise=f"the network is safe in {path}") as file:
            file.write(path.read_bytes())
    layers = {line.name: line.weight_bits for line in coverage(trainer.model)}
    log.emit("size", float_bytes=info.metrics["float_bytes"], packed_bytes=proof.bytes, layers=layers)
    exact = {n: m.accumulator_bound() for n, m in quant_layers(trainer.model.eval()).items()}
    return {
        "status": "ok",
        "run": str(trainer.path),
        "file": str(out or path),
        "scheme": config.scheme,
        "float_accuracy": at.float_accuracy,
        "trained_accuracy": proof.simulated.accuracy,
        "packed_accuracy": proof.packed.accuracy,
        "best_accuracy": at.best,
        "best_epoch": at.best_epoch,
        "largest_logit_difference": proof.largest_difference,
        "test_images": proof.packed.total,
        "float_bytes": info.metrics["float_bytes"],
        "bytes": proof.bytes,
        "not_quantized": [n for n, bits in layers.items() if bits == 16],
        "in_float64": [n for n, bound in exact.items() if bound >= 2**24],
    }
