"""`tq train`: here, in the background, or in the background with the dashboard in front."""

from __future__ import annotations

import dataclasses
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from tq import history, queue, runs
from tq.byte_size import size_text
from tq.commands.output import print_result
from tq.config import TrainConfig, from_dict, to_argv, to_dict
from tq.flags.runs import Train, explicit

if TYPE_CHECKING:
    from tq.distributed import World

_VERSIONS = ("torch", "torchvision", "triton", "safetensors", "textual", "rich")


def train(flags: Train, argv: list[str]) -> int:
    """Run the command. Raises ValueError and OSError for bad input."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    dashboard = flags.show == "dashboard" or (flags.show == "auto" and interactive)
    if dashboard and not interactive:
        raise ValueError("the dashboard needs a terminal; use --show progress or --detach")
    if (flags.detach or flags.queue or dashboard) and started_by_torchrun():
        raise ValueError("torchrun holds its processes itself; drop --detach and --queue, and use --show progress")
    if flags.queue:
        return _enqueue(flags)
    if flags.detach or dashboard:
        path = _launch(flags)
        if dashboard:
            from tui.start import main as open_dashboard

            open_dashboard(flags.runs, path)
        return _report_launched(path, flags)
    if not started_by_torchrun():
        return _work(flags, argv, None)
    from tq.distributed import World

    world = World.join(flags.device)
    try:
        return _work(flags, argv, world) if world.main else _work_along(flags, world)
    finally:
        world.leave()


def _work(flags: Train, argv: list[str], world: World | None) -> int:
    try:
        config, run = _open(flags, argv)
    except (ValueError, OSError):
        if world is not None:
            world.tell(None)
        raise
    if world is not None:
        world.tell((to_dict(config), run.path))
    with run:
        from tq.progress import Progress, Tee

        quiet = flags.show == "nothing"
        with Progress(quiet=quiet) as progress:
            run.log = Tee(run.log, progress)  # type: ignore[assignment]
            from tq.session import execute

            summary = execute(config, run, resume=flags.resume is not None, out=_copy_to(flags, run), world=world)
    print_result(summary, flags, _render)
    return 0


def _work_along(flags: Train, world: World) -> int:
    """A process of torchrun that is not the first: it trains, and leaves the run's files and the screen alone."""
    from tq.session import execute

    if (told := world.tell(None)) is None:
        return 2  # the first process says why
    settings, path = told
    config = from_dict(TrainConfig, settings)
    execute(config, runs.Bystander(path), resume=flags.resume is not None, world=world)
    return 0


def started_by_torchrun() -> bool:
    """Whether this process is one of several; asked before torch is loaded."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _open(flags: Train, argv: list[str]) -> tuple[TrainConfig, runs.Run]:
    """The run's lock and its settings."""
    if flags.resume is not None:
        if given := explicit(flags):
            raise ValueError(f"--resume goes on with the run's own settings; drop --{given[0].replace('_', '-')}")
        path = _resumable(flags)
        settings = runs.manifest(path).get("config")
        if not settings:
            raise ValueError(f"{path / 'run.json'} is missing or damaged, so the run's settings are lost; start anew")
        return from_dict(TrainConfig, settings, where=f"{path / 'run.json'}"), runs.reopen(path)
    # absolute, so that the run can be resumed from anywhere
    config = flags.settings(TrainConfig)
    places: dict[str, Any] = {
        n: str(Path(p).resolve()) for n in ("data", "init", "teacher") if (p := getattr(config, n)) is not None
    }
    config = dataclasses.replace(config, **places)
    run = runs.create(
        flags.runs,
        name=_name(config),
        argv=["tq", *argv],
        config=to_dict(config),
        seed=config.seed,
        versions=_versions(),
        device=config.device,
        parent=config.init,
        out=flags.out,
        path=flags.run_dir,
    )
    return config, run


def _copy_to(flags: Train, run: runs.Run) -> Path | None:
    """--out, or what the run that is resumed was started with."""
    told = flags.out or runs.manifest(run.path).get("out")
    return Path(told) if told else None


def _resumable(flags: Train) -> Path:
    path = runs.find(flags.runs, flags.resume or "")
    if runs.status(path).state == "done":
        raise ValueError(f"run {path.name} is done; start a new one from its weights with --init")
    return path


def _launch(flags: Train) -> Path:
    if flags.resume is not None:
        if flags.out is not None:
            raise ValueError("a detached --resume puts the file where the run was told to at its start; drop --out")
        return runs.resume(_resumable(flags))
    config = flags.settings(TrainConfig)
    return runs.launch(_argv(config, flags.out), root=flags.runs, name=_name(config))


def _enqueue(flags: Train) -> int:
    """--queue: append to the queue of the run's device and see to it that somebody works it off."""
    if flags.detach or flags.run_dir:
        raise ValueError(f"--queue starts the run later; drop --{'detach' if flags.detach else 'run-dir'}")
    if flags.resume is not None:
        if given := explicit(flags):
            raise ValueError(f"--resume goes on with the run's own settings; drop --{given[0].replace('_', '-')}")
        path = _resumable(flags)
        config = runs.manifest(path).get("config", {})
        name, device = runs.manifest(path).get("name", path.name), config.get("device", "auto")
        argv = ["train", "--resume", path.name]
    else:
        settings = flags.settings(TrainConfig)
        name, device, argv = _name(settings), settings.device, _argv(settings, flags.out)
    entry = queue.add(flags.runs, argv, name=name, device=device, start=True)
    result = {"entry": entry.id, "name": entry.name, "device": entry.device}
    print_result(result, flags, lambda r: f"{entry.id}: {entry.name} waits for {entry.device}; see: tq queue")
    return 0


def _argv(config: TrainConfig, out: Path | None) -> list[str]:
    """The command line of a run in the background."""
    return ["train", "--show", "progress", *to_argv(config)] + (["--out", str(out)] if out is not None else [])


def _name(config: TrainConfig) -> str:
    return f"{config.model.rpartition(':')[2]}-{config.scheme}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _report_launched(path: Path, flags: Train) -> int:
    state, status = history.read(path), runs.status(path)
    if state.summary:
        print_result(dict(state.summary), flags, _render)
        return 0
    result = {"run": str(path), "status": status.state}
    print_result(result, flags, lambda r: f"run {path.name} is {status.word}; watch it: tq tui --run {path.name}")
    return 0


def _render(summary: dict[str, Any]) -> Any:
    if summary.get("status") == "stopped":
        run = Path(summary["run"]).name
        return f"stopped at step {summary['step']}, checkpoint written; go on: tq train --resume {run}"
    table = Table(title=f"{Path(summary['run']).name}", title_justify="left")
    for column, justify in (("network", "left"), ("accuracy %", "right"), ("bytes", "right"), ("of float", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    floats, packed = summary["float_bytes"], summary["bytes"]
    accuracy = summary["float_accuracy"]
    table.add_row("float", "not trained" if accuracy is None else f"{accuracy:.2f}", f"{floats:,}", "1")
    if summary["scheme"] != "float":
        table.add_row(f"trained {summary['scheme']}, simulated", f"{summary['trained_accuracy']:.2f}", "", "")
        table.add_row(
            "packed file, read back", f"{summary['packed_accuracy']:.2f}", f"{packed:,}", f"1/{floats / packed:.1f}"
        )
    lines = [f"{summary['file']} ({size_text(packed)}), measured on {summary['test_images']:,} test images"]
    lines.append(f"largest difference of a logit between simulated and packed: {summary['largest_logit_difference']:g}")
    lines.append(
        f"best epoch {summary['best_epoch']}: {summary['best_accuracy']:.2f} %, "
        f"last: {summary['trained_accuracy']:.2f} %"
    )
    if summary["scheme"] != "float":
        lines.append(f"left float: {', '.join(summary['not_quantized']) or 'nothing'}")
    if summary["in_float64"]:
        lines.append(f"simulated in float64, accumulators may pass 2^24: {', '.join(summary['in_float64'])}")
    return Group(table, *lines)
