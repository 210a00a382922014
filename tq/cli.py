"""The command line: one dataclass a command, parsed by tyro; the work is in tq/commands, imported when a command runs.

Results go to standard output (`--json`: one object), logs and progress to standard error. Exit codes: 0 done, 1 a
check failed, 2 bad input (one sentence), 130 interrupted (tq train: twice). `tq --help` loads neither torch nor
textual.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional

from tq.config import BenchConfig, KernelBenchConfig, QuantizeConfig, TrainConfig, from_json
from tq.plot import Kind

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a command's result goes."""

    json: bool = False
    """print one JSON object on standard output"""
    out: Path | None = None
    """write the result to this file"""


class Unchecked:
    """Lets the parser fill in flags first; `settings` then checks them, so that an error is one sentence."""

    def __post_init__(self) -> None:
        pass

    def settings(self, kind: type[C]) -> C:
        """The config among the flags. Raises ValueError."""
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: getattr(self, name) for name in names})


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


@dataclass(frozen=True, kw_only=True)
class OnData(Output):
    """A file or run and the images to use with it."""

    target: Positional[str]
    """a packed or float model.safetensors, or a run"""
    dataset: str | None = None
    """data set; default: the one named in the file"""
    data: str | None = None
    """directory that holds the data set"""
    model: str | None = None
    """package.module:factory, for a file made from your own model"""
    batch_size: int = 500
    """images per forward"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    impl: Literal["auto", "cpu", "reference"] = "auto"
    """implementation of the integer arithmetic"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Eval(OnData):
    """Accuracy of a file or a run's file on the test images.

    $ tq eval runs/ID/model.safetensors
    $ tq eval last --json
    """


@dataclass(frozen=True, kw_only=True)
class Predict(Output):
    """Top-5 classes of images.

    $ tq predict model.safetensors cat.png dog.jpg
    """

    file: Positional[str]
    """a packed or float model.safetensors, or a run"""
    images: Positional[tuple[Path, ...]]
    """image files"""
    model: str | None = None
    """package.module:factory, for a file made from your own model"""
    top: int = 5
    """number of classes shown"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Inspect(Output):
    """Where the bytes of a file go: layer, bits, shape, bytes, share; predicted against actual size.

    $ tq inspect model.safetensors
    """

    file: Positional[str]
    """model.safetensors or a run"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Quantize(Unchecked, QuantizeConfig, Output):
    """Quantize a trained float network without training, and prove the file.

    $ tq quantize float.safetensors --scheme w8a8
    $ tq quantize resnet20.th --model resnet20-a --dataset cifar10 --data DIR --scheme w4a8 --effort best
    $ tq quantize float.safetensors --target-size 60KB --plot front.svg
    $ tq quantize float.safetensors --max-drop 0.5
    """

    file: Positional[str]
    """float weights (.safetensors, .pt, .pth, .th) or a float run"""
    config: Path | None = None
    """read settings from this JSON file; flags given beside it win"""
    plot: Path | None = None
    """with --target-size or --max-drop: predicted loss against size, and the file written, as PNG, SVG or PDF"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class OnTestImages(Output):
    """A file or run, and the test images that a result is checked on."""

    file: Positional[str]
    """a packed model.safetensors or a run"""
    dataset: str | None = None
    """data set; default: the one named in the file"""
    data: str | None = None
    """directory that holds the data set"""
    model: str | None = None
    """package.module:factory, for a file made from your own model"""
    images: int = 1000
    """number of test images, evenly chosen"""
    batch_size: int = 100
    """images per forward"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Export(OnTestImages):
    """A packed file for other programs: ONNX with integer weights (QDQ), torch.export, a model hub's folder.

    $ tq export model.safetensors --onnx model.onnx
    $ tq export last --onnx model.onnx --data DIR --images 10000
    $ tq export model.safetensors --pt2 model.pt2 --hub resnet20-w4a4
    """

    onnx: Path | None = None
    """write ONNX; then ONNX Runtime and OpenVINO are compared with the packed file (0 images: not)"""
    weights: Literal["auto", "int8", "int4"] = "auto"
    """ONNX type that holds weights of 4 bits and less; auto: 4 bits int4, the others int8; int4: smaller, but slower"""
    pt2: Path | None = None
    """write a torch.export archive; it must predict bit for bit what the file predicts"""
    hub: Path | None = None
    """write model.safetensors, config.json and README.md into this folder"""


@dataclass(frozen=True, kw_only=True)
class Verify(OnTestImages):
    """A packed file layer by layer: all implementations must give the same numbers; how far it is from float.

    $ tq verify model.safetensors
    $ tq verify last --data DIR --float-file float.safetensors
    $ tq verify model.safetensors --onnx model.onnx --json
    """

    float_file: str | None = None
    """the float network that it was made of: signal-to-noise ratio of every layer"""
    onnx: Path | None = None
    """an exported ONNX file: its logits in ONNX Runtime and OpenVINO"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


@dataclass(frozen=True, kw_only=True)
class Bench(Unchecked, BenchConfig, Output):
    """Latency and throughput: float eager, float compiled, packed; predictions are checked first.

    $ tq bench model.safetensors
    $ tq bench last --batch 1 32 256 --json
    $ tq bench kernels --help
    """

    file: Positional[str]
    """a packed model.safetensors or a run; the word kernels: the operators alone, with flags of their own"""
    config: Path | None = None
    """read settings from this JSON file; flags given beside it win"""
    runs: Path = Path("runs")
    """directory of the runs"""


@dataclass(frozen=True, kw_only=True)
class Kernels(Unchecked, KernelBenchConfig, Output):
    """The operators on matrices and convolutions beside their peers: checked, timed, and against the device's ceilings.

    $ tq bench kernels
    $ tq bench kernels --only "square.*m=(1|16) w1" --json
    $ tq bench kernels --only resnet50 --out benchmarks/results/kernels-resnet50.json
    """


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


COMMANDS: dict[str, type[Output]] = {
    "train": Train,
    "eval": Eval,
    "predict": Predict,
    "inspect": Inspect,
    "quantize": Quantize,
    "verify": Verify,
    "export": Export,
    "bench": Bench,
    "runs": Runs,
    "queue": Queue,
    "reproduce": Reproduce,
    "plot": Plot,
    "tui": Tui,
}
_NUMBERS = re.compile(r"(?:(--[\w-]+)=)?([\d.]+(?:,[\d.]+)+)")
_MODULES = {"eval": "evaluate", "predict": "evaluate", "inspect": "evaluate", "plot": "runs", "kernels": "bench"}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        flags = parse(argv)
        _check_out(flags)
        name = next(n for n, kind in {**COMMANDS, "kernels": Kernels}.items() if kind is type(flags))
        module = import_module(f"tq.commands.{_MODULES.get(name, name)}")
        return int(getattr(module, name)(flags, argv) or 0)
    except (ValueError, OSError) as error:
        print(f"tq: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tq: interrupted", file=sys.stderr)
        return 130


def parse(argv: list[str]) -> Output:
    """The chosen command with its flags; help and syntax errors end the program (codes 0 and 2). Raises ValueError."""
    # lists of numbers may be written with commas: --portions 0.5,0.75,1
    argv = [part for before, word in pairwise(["", *argv]) for part in ([word] if before == "--only" else _parts(word))]
    if argv[:2] == ["bench", "kernels"]:
        return tyro.cli(Kernels, prog="tq bench kernels", args=argv[2:])
    if argv[:1] == ["tui"]:
        # alone: the flags of all other commands take a fifth of the time to the first frame
        return tyro.cli(Tui, prog="tq tui", args=argv[1:])
    union: Any = None
    for name, kind in COMMANDS.items():
        # the overview shows a line a command, `tq COMMAND --help` the examples too
        summary = None if argv[:1] == [name] else (kind.__doc__ or "").splitlines()[0]
        entry = tyro.conf.subcommand(name, default=_default(name, argv), description=summary)
        choice = Annotated[kind, entry]  # type: ignore[valid-type]
        union = choice if union is None else union | choice
    return tyro.cli(
        union,
        prog="tq",
        description="Low-bit convolutional networks: train, pack, prove, run.",
        args=argv,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )


def _parts(word: str) -> list[str]:
    """0.5,1 -> 0.5 1, --portions=0.5,1 -> --portions 0.5 1, anything else as it is."""
    if not (match := _NUMBERS.fullmatch(word)):
        return [word]
    return [*([match[1]] if match[1] else []), *match[2].split(",")]


def _check_out(flags: Output) -> None:
    # The directory of the runs need not be there yet.
    if (out := flags.out) and (out.is_dir() or out == getattr(flags, "runs", None) or not out.parent.is_dir()):
        raise ValueError(f"cannot write --out {out}: expected a file name in a directory that exists")


def explicit(flags: TrainConfig) -> list[str]:
    """Names of the settings that differ from the defaults."""
    # The fields' own defaults: TrainConfig() has already settled what "auto" means.
    return [f.name for f in dataclasses.fields(TrainConfig) if getattr(flags, f.name) != f.default]


def _default(name: str, argv: list[str]) -> Any:
    """With --config the file's values stand in for the flags' defaults."""
    kinds: dict[str, Any] = {"train": TrainConfig, "quantize": QuantizeConfig, "bench": BenchConfig}
    if argv[:1] != [name] or name not in kinds:
        return tyro.MISSING_NONPROP
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", nargs="?")
    path = files.parse_known_args(argv)[0].config
    if path is None:
        return tyro.MISSING_NONPROP
    positional = {} if name == "train" else {"file": tyro.MISSING}
    return COMMANDS[name](**dataclasses.asdict(from_json(kinds[name], path)), **positional)


def _sentence(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__
