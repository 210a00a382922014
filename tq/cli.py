"""The command line: the flags (tq/flags) are parsed by tyro, the work is in tq/commands, imported when a command runs.

Results go to standard output (`--json`: one object), logs and progress to standard error. Exit codes: 0 done, 1 a
check failed, 2 bad input (one sentence), 130 interrupted (tq train: twice). `tq --help` loads neither torch nor
textual.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any

import tyro

from tq.config import BenchConfig, QuantizeConfig, TrainConfig, from_json
from tq.flags.base import Output
from tq.flags.files import Bench, Eval, Export, Inspect, Kernels, Predict, Quantize, Verify
from tq.flags.runs import Plot, Queue, Reproduce, Runs, Train, Tui

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
    argv = split_commas(argv)
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


def split_commas(argv: list[str]) -> list[str]:
    """Lists of numbers may be written with commas: --portions 0.5,0.75,1 becomes --portions 0.5 0.75 1."""
    return [part for before, word in pairwise(["", *argv]) for part in ([word] if before == "--only" else _parts(word))]


def _parts(word: str) -> list[str]:
    """0.5,1 -> 0.5 1, --portions=0.5,1 -> --portions 0.5 1, anything else as it is."""
    if not (match := _NUMBERS.fullmatch(word)):
        return [word]
    return [*([match[1]] if match[1] else []), *match[2].split(",")]


def _check_out(flags: Output) -> None:
    # The directory of the runs need not be there yet.
    if (out := flags.out) and (out.is_dir() or out == getattr(flags, "runs", None) or not out.parent.is_dir()):
        raise ValueError(f"cannot write --out {out}: expected a file name in a directory that exists")


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
