"""Flags of the commands that work on runs: train, list, queue, reproduce, plot and watch them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from tq.config import TrainConfig
from tq.flags.base import Output, Unchecked
from tq.plot import Kind


@dataclass(frozen=True, kw_only=True)
class Train(Unchecked, TrainConfig, Output):
    """Train a network to low bits and pack it.

    $ tq train --float-epochs 4
    $ tq train --dataset mnist --data DIR --model lenet --float-epochs 5 --epochs 10
    $ tq train --dataset imagefolder --data DIR --scheme w4a4 --init runs/ID/model.safetensors
    $ tq train --resume last
    """

    config: Path | None = None
    """read settings from this JSON file; flags given beside it win"""
    resume: str | None = None
    """go on with this run (id, path, a piece of the id, or "last"); its own settings apply"""
    detach: bool = False
    """start in the background and return; watch it with `tq tui`"""
    queue: bool = False
    """add to the queue of its device instead, which works on one run at a time; see `tq queue`"""
    show: Literal["auto", "dashboard", "progress", "nothing"] = "progress"
    """dashboard: train in the background and open the dashboard on it; auto: that on a terminal, else progress"""
    runs: Path = Path("runs")
    """directory of the runs"""
    run_dir: Path | None = None
    """use this directory for the run (made by a launcher)"""


def explicit(flags: TrainConfig) -> list[str]:
    """Names of the settings that differ from the defaults."""
    # The fields' own defaults: TrainConfig() has already settled what "auto" means.
    return [f.name for f in dataclasses.fields(TrainConfig) if getattr(flags, f.name) != f.default]


@dataclass(frozen=True, kw_only=True)
class Runs(Output):
    """List, show, compare, stop and resume runs.

    $ tq runs
    $ tq runs --filter 'w<=4 acc>90 -state:live' --sort size
    $ tq runs show last
    $ tq runs compare RUN RUN
    $ tq runs stop RUN
    """

    action: Positional[Literal["list", "show", "compare", "stop", "resume"]] = "list"
    """what to do"""
    names: Positional[tuple[str, ...]] = ()
    """runs: id, path, a piece of the id, or "last\""""
    filter: str = ""
    """list only these: w<=4 acc>90 size<100kb age<2h name:resnet state:live; a minus before a term negates it"""
    sort: str = ""
    """order of the list: age, acc, best, size, epoch, loss, w, a, name, state, ...; --sort=-acc turns it around"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Queue(Output):
    """Runs that are started one after the other, one at a time per device: list, add, cancel, move, start, stop.

    $ tq train --scheme w4a4 --queue
    $ tq queue
    $ tq queue add RUN
    $ tq queue move ENTRY 1
    $ tq queue stop
    """

    action: Positional[Literal["list", "add", "cancel", "move", "start", "stop", "work"]] = "list"
    """add: stopped, failed or crashed runs, to be resumed; cancel: take entries out; move: an entry to a place (1 is
    next); start: a runner in the background; stop: pause it, the current run with a checkpoint; work: be the runner"""
    names: Positional[tuple[str, ...]] = ()
    """entries or runs: id, or a piece of it"""
    device: str | None = None
    """auto, cpu, cuda or cuda:N; default: auto, in a list all"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Reproduce(Output):
    """A published comparison: run its recipe with several seeds, resumable, and write the table.

    $ tq reproduce --list
    $ tq reproduce digits --quick
    $ tq reproduce qat --quick --dataset imagefolder --data DIR --rows w8a8 w4a4 --out qat.md
    $ tq reproduce one-bit --data DIR --download --device cuda
    $ tq reproduce qat --only-report
    """

    table: Positional[str] = ""
    """a table of --list, or a recipe of your own, as FILE.json"""
    quick: bool = False
    """the version for two CPU cores; else the full schedule, for a GPU"""
    list: bool = False
    """show the tables and what each needs"""
    rows: tuple[str, ...] = ()
    """only these rows and those that they start from"""
    seeds: tuple[int, ...] = ()
    """default: the recipe's"""
    dataset: str | None = None
    """in the place of the table's own, e.g. imagefolder"""
    data: str | None = None
    """directory that holds the data set"""
    download: bool = False
    """fetch the data set into --data when it is not there"""
    init: Path | None = None
    """a trained float network that stands in for the float row"""
    only_report: bool = False
    """start nothing: the table of the runs that there are"""
    device: str | None = None
    """auto, cpu, cuda or cuda:N; default: auto, and finished runs of any device count"""
    runs: Path = Path("runs")
    """directory of the runs"""
    out: Path | None = None
    """write the table to this file as Markdown, and beside it as JSON; default: into the directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Plot(Output):
    """Curves of runs as PNG, SVG or PDF, their error trend as CSV.

    $ tq plot --out accuracy-against-size.png
    $ tq plot last --out curve.svg
    $ tq plot --errors RUN RUN --out errors.png
    $ tq plot --errors RUN RUN --out errors.csv
    """

    names: Positional[tuple[str, ...]] = ()
    """runs: id, path, a piece of the id, or "last"; default: all"""
    out: Path | None = None
    """write to this file, in the format of its end: .png, .svg, .pdf, or .csv: a row for each epoch of each run, with
    errors, losses, learning rate, resolution and portion; default: runs.png"""
    kind: Kind = "all"
    """curves: loss and accuracy; errors: test error of every epoch, train error dim, best marked; resolution: of
    quantized updates; portion: of the weights quantized for good; size: accuracy against packed bytes; all: what the
    runs have of these, without errors"""
    errors: bool = False
    """the same as --kind errors"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Tui(Output):
    """The dashboard: watch, start, stop and resume runs.

    $ tq tui
    $ tq tui --run last
    $ tq tui --demo
    $ tq tui --web 8000 --readonly
    """

    run: str | None = None
    """open on this run"""
    once: bool = False
    """print one frame of it, at the terminal's size, and leave; with --json: the list of runs"""
    demo: bool = False
    """replay recorded runs, so that it can be tried at once"""
    readonly: bool = False
    """nothing can be started, stopped or resumed"""
    ascii: bool = False
    """draw with ASCII only, for terminals and fonts without line and dot characters"""
    web: int | None = None
    """serve it in browsers on this machine at this port; whoever opens it acts as you, unless --readonly is given"""
    runs: Path = Path("runs")
    """directory of the runs"""
