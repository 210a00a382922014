"""Make a recipe's table come true: find the runs that exist already, start what is missing through the queue.

A job is one run of a row: a seed, and a learning rate where the row searches for one. A run is a job's if its settings
are equal, so nothing is noted anywhere: a table that was interrupted goes on, and one is assembled from runs that were
made by hand. What the caller leaves open (device, data) is not compared. Standard library only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tq import queue, runs
from tq.config import TrainConfig, from_dict, to_argv, to_dict
from tq.liveness import State
from tq.recipe import Row, Table

POLL_S = 1.0
# missing: there is no run, and one can be started; blocked: the row that it starts from has no network (yet)
JobState = Literal["missing", "blocked", "queued"] | State


@dataclass(frozen=True)
class Job:
    """One run of a table."""

    row: Row
    seed: int
    rate: float | None = None

    @property
    def label(self) -> str:
        """Row, seed and rate, for people and for the name of the run."""
        return f"{self.row.label}{'' if self.rate is None else f'-lr{self.rate:.4g}'}-seed{self.seed}"


@dataclass(frozen=True)
class Standing:
    """How a job stands at one moment."""

    job: Job
    state: JobState
    run: Path | None = None
    entry: queue.Entry | None = None
    """its place in the queue"""
    error: str = ""
    """why it could not be started"""

    @property
    def under_way(self) -> bool:
        """Whether it waits in the queue, trains, or has ended so lately that its entry still stands."""
        return self.state in ("queued", "starting", "live") or (self.entry is not None and not self.error)

    @property
    def cut_off(self) -> bool:
        """Whether it ended without a runner to see it, if there is no runner now."""
        return self.entry is not None and self.entry.started is not None and self.state not in ("starting", "live")


class Reproduction:
    """One table on one directory of runs. `step()` once a second until `over()`; `leave()` to stop in between."""

    def __init__(
        self,
        table: Table,
        root: Path,
        *,
        seeds: Sequence[int] = (),
        dataset: str | None = None,
        data: str | None = None,
        download: bool = False,
        device: str | None = None,
        init: Path | None = None,
        command: Sequence[str] = queue.TQ,
    ) -> None:
        """init: a float network that stands in for the reference row. Raises ValueError for bad input."""
        dataset = dataset or table.datasets[0]
        if dataset not in table.datasets:
            raise ValueError(
                f"table {table.name} is of {' or '.join(table.datasets)}, got {dataset}; choose one of them"
            )
        if init is not None and not init.is_file():
            raise ValueError(f"the float network {init} does not exist")
        if init is not None and table.reference not in {row.start for row in table.rows}:
            raise ValueError(f"no row of table {table.name} starts from a float network; drop --init")
        self.table, self.root, self.command, self.device = table, Path(root).absolute(), command, device
        self.init = str(init.resolve()) if init else None
        self._given: dict[str, Any] = {
            "dataset": dataset,
            "data": str(Path(data).resolve()) if data else None,
            "download": download,
            "device": device or "auto",
        }
        queue.device_name(self._given["device"])
        seeds = tuple(dict.fromkeys(seeds or table.seeds))
        rows = [row for row in table.rows if not (self.init and row.label == table.reference)]
        self.jobs = [Job(row, seed, rate) for row in rows for seed in seeds for rate in row.rates or (None,)]
        for job in self.jobs:  # a mistake is said now, not when the row's turn comes
            self.config(job, "start.safetensors" if job.row.start else None)
        self._configs: dict[Path, TrainConfig | None] = {}
        self._done: dict[Job, Path] = {}
        self._tried: set[Job] = set()
        self._errors: dict[Job, str] = {}

    @property
    def dataset(self) -> str:
        """The data set that the table is made on."""
        return str(self._given["dataset"])

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(dict.fromkeys(job.seed for job in self.jobs))

    def config(self, job: Job, init: str | None) -> TrainConfig:
        """The settings of a job's run. Raises ValueError."""
        return job.row.config(rate=job.rate, seed=job.seed, init=init, **self._given)

    def look(self) -> list[Standing]:
        """How every job stands now."""
        # In this order: an entry that goes away between the two leaves a run to be found.
        waiting = queue.entries(self.root)
        known = self._known_runs()
        return [self._standing(job, waiting, known) for job in self.jobs]

    def step(self) -> list[Standing]:
        """Start what can be started, as entries of the queue; what failed in this process is not tried again."""
        standings = self.look()
        added = False
        for s in standings:
            if s.under_way:
                # Of an earlier process, maybe with nobody at work on it.
                added |= s.entry is not None and (s.job not in self._tried or s.cut_off)
                self._tried.add(s.job)
            elif s.entry is not None and s.error:
                queue.cancel(self.root, s.entry.id)
                if s.job in self._tried:
                    self._errors[s.job] = s.error
            elif s.state not in ("done", "blocked") and s.job not in self._tried:
                self._tried.add(s.job)
                self._add(s)
                added = True
        if added:
            queue.start_runner(self.root, self._given["device"], command=self.command)
            standings = self.look()
        return standings

    def over(self, standings: Sequence[Standing]) -> bool:
        """Whether nothing is left to wait for."""
        return not any(s.under_way for s in standings) and not any(
            s.state not in ("done", "blocked") and s.job not in self._tried for s in standings
        )

    def leave(self, *, poll_s: float = 0.2) -> None:
        """Take what waits out of the queue and stop the run at work, with a checkpoint; returns when it has ended."""
        for s in self.look():
            if s.entry is not None and s.entry.waiting:
                with contextlib.suppress(ValueError):
                    queue.cancel(self.root, s.entry.id)
        stopped: set[Path] = set()
        while at_work := [s for s in self.look() if s.entry is not None and s.state in ("live", "starting")]:
            for s in at_work:
                if s.run is not None and s.run not in stopped:
                    with contextlib.suppress(ValueError):  # too early: it does not listen yet
                        runs.stop(s.run)
                        stopped.add(s.run)
            time.sleep(poll_s)

    def _add(self, standing: Standing) -> None:
        job = standing.job
        if standing.run is not None and runs.status(standing.run).resumable and runs.manifest(standing.run):
            argv = ["train", "--resume", standing.run.name]
        else:
            argv = self._argv(job, self._start(job))
        name = f"{self.table.name.removesuffix('.json')}-{job.label}"
        queue.add(self.root, argv, name=name, device=self._given["device"], twice=False)

    def _argv(self, job: Job, init: str | None) -> list[str]:
        return ["train", "--show", "progress", *to_argv(self.config(job, init))]

    def _start(self, job: Job) -> str | None:
        """The file that a job starts from; None where it starts from nothing, or that is not there yet."""
        if job.row.start is None:
            return None
        if self.init and job.row.start == self.table.reference:
            return self.init
        done = self._done.get(next(j for j in self.jobs if (j.row.label, j.seed) == (job.row.start, job.seed)))
        return str(done / "model.safetensors") if done else None

    def _standing(
        self,
        job: Job,
        waiting: Sequence[queue.Entry],
        known: dict[Path, TrainConfig],
    ) -> Standing:
        if job in self._done:
            return Standing(job, "done", self._done[job])
        init = self._start(job)
        if init is None and job.row.start is not None:
            return Standing(job, "blocked")
        wanted = self._comparable(self.config(job, init))
        mine = [path for path, config in known.items() if self._comparable(config) == wanted]
        argv = tuple(self._argv(job, init))
        entry = next((e for e in waiting if e.argv == argv or (e.run and self.root / e.run in mine)), None)
        standing = self._of_runs(job, mine)
        if standing.state == "done" or entry is None:
            if standing.state == "missing" and job in self._errors:
                return Standing(job, "failed", error=self._errors[job])
            return standing
        run = self.root / entry.run if entry.run else standing.run
        return Standing(job, entry.state, run, entry, entry.error)

    def _of_runs(self, job: Job, mine: Sequence[Path]) -> Standing:
        """By the runs with a job's settings, oldest first: one that is done, else one at work, else the newest."""
        states = {path: runs.status(path).state for path in mine}
        for path, state in states.items():
            if state == "done":
                self._done[job] = path
                return Standing(job, "done", path)
        for path, state in reversed(states.items()):
            if state in ("live", "starting"):
                return Standing(job, state, path)
        if not states:
            return Standing(job, "missing")
        path, state = list(states.items())[-1]
        return Standing(job, state, path)

    def _known_runs(self) -> dict[Path, TrainConfig]:
        """The settings of every run, oldest first. A manifest never changes, so each is read once."""
        paths = runs.list_runs(self.root)
        for path in paths:
            if path not in self._configs and (record := runs.manifest(path)):
                try:
                    self._configs[path] = from_dict(TrainConfig, record.get("config", {}))
                except ValueError:
                    self._configs[path] = None  # of another version of this program
        return {path: config for path in reversed(paths) if (config := self._configs.get(path)) is not None}

    def _comparable(self, config: TrainConfig) -> dict[str, Any]:
        """A config without what does not matter; networks by run and name, so that a directory can be moved."""
        values = to_dict(config)
        del values["download"]
        if config.dataset != "imagefolder" or self._given["data"] is None:
            del values["data"]
        if self.device is None:
            del values["device"]
        for name in ("init", "teacher"):
            if values.get(name):
                values[name] = Path(values[name]).parts[-2:]
        return values
