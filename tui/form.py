"""The forms, derived from the config dataclasses: their types, defaults, choices and the strings below their fields.

No Textual here. `FORMS["train"].fields` describes, `FORMS["train"].judge(texts)` parses and validates what was typed
and gives the equivalent command line, or a sentence for every field that is wrong.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import shlex
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tq import config as tq_config

C = TypeVar("C")
# A section of a long form begins with this field and goes on, in the dataclass's order, to the next of them: a new
# field belongs to the section that it stands in.
SECTIONS = {
    "model": "network and data",
    "scheme": "quantization",
    "weight_range": "ranges",
    "effort": "accuracy and size",
    "optimizer": "optimizer",
    "lr": "learning rate",
    "epochs": "length",
    "distill": "recipe",
    "tolerance": "checks",
    "seed": "start and order",
    "compile": "machine",
    "device": "machine",
}
# What most runs set: never folded away. All others are, where a form is long.
COMMON = frozenset(
    {"file", "out", "model", "dataset", "data", "scheme", "optimizer", "lr", "epochs", "batch_size", "device"}
    | {"effort", "target_size", "max_drop"}
)
LONG = 12
# Fields that take any text, with known words to suggest.
SUGGESTIONS = {
    "model": tq_config.MODELS,
    "dataset": tq_config.DATASETS,
    "scheme": ("w1a2", "w1a1", "w1a4", "w1a8", "w2a2", "w2a4", "w4a4", "w4a8", "w8a8", "w4a16", "w8a16", "float"),
    "device": ("auto", "cpu", "cuda"),
}


@dataclass(frozen=True)
class FormField:
    """One row of the form."""

    name: str
    type: str
    """the annotation's text, e.g. "int | None" """
    default: str
    help: str
    choices: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    section: str = ""
    common: bool = True

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_bool(self) -> bool:
        return self.type == "bool"


def fields(kind: type[Any]) -> tuple[FormField, ...]:
    """The rows for a config dataclass, in its order."""
    return _fields(kind)  # type: ignore[arg-type]  # mypy does not see that classes are hashable


@functools.cache
def _fields(kind: type[Any]) -> tuple[FormField, ...]:
    help_texts, section, found = docstrings(kind), "", []
    long = len(dataclasses.fields(kind)) > LONG
    for field in dataclasses.fields(kind):
        section = SECTIONS.get(field.name, section)
        found.append(
            FormField(
                name=field.name,
                type=str(field.type),
                default=text(field.default),
                help=help_texts.get(field.name, ""),
                choices=tq_config.choices(field),
                suggestions=SUGGESTIONS.get(field.name, ()),
                section=section,
                common=not long or field.name in COMMON,
            )
        )
    return tuple(found)


def docstrings(kind: type[Any]) -> dict[str, str]:
    """The string below each field, read from the class's source (Python does not keep it)."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    except (OSError, SyntaxError):
        return {}
    assert isinstance(body, ast.ClassDef)
    found = {}
    for above, below in zip(body.body, body.body[1:], strict=False):
        match above, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = " ".join(words.split())
    return found


def text(value: Any) -> str:
    """A config value as it is typed: lists separated by spaces, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return shlex.join(map(str, value))
    return str(value)


def parse(field: FormField, typed: str) -> Any:
    """The value of what was typed, by the field's type. Raises ValueError with one sentence."""
    typed = typed.strip()
    if field.type.startswith("tuple["):
        inner = field.type[len("tuple[") :].split(",")[0]
        try:
            items = shlex.split(typed.replace(",", " "))
        except ValueError:
            raise ValueError(f"{field.label}: a quote is not closed") from None
        return [_scalar(field.label, inner, item) for item in items]
    if not typed and "None" in field.type:
        return None
    if not typed and field.type != "str":
        raise ValueError(f"{field.label} needs a value; the default is {field.default}")
    return _scalar(field.label, field.type.split(" |")[0], typed)


def build(kind: type[C], typed: Mapping[str, str]) -> C:
    """The config that the typed texts describe. Raises ValueError with one sentence."""
    values = {f.name: parse(f, typed[f.name]) for f in fields(kind) if f.name in typed}
    try:
        return tq_config.from_dict(kind, values, where="form")
    except ValueError as error:
        # That it is the form which is wrong goes without saying here.
        raise ValueError(str(error).removeprefix("form: ")) from None


def argv(config: Any) -> list[str]:
    """The flags that give this config: only what differs from the defaults, as typed or as a config resolves them."""
    words: list[str] = []
    default = type(config)()
    for field in fields(type(config)):
        value = getattr(config, field.name)
        if text(value) == field.default or value == getattr(default, field.name):
            continue
        if isinstance(value, bool):
            words.append(field.flag if value else "--no-" + field.flag[2:])
        elif isinstance(value, tuple):
            words += [field.flag, *map(str, value)]
        elif value is not None:
            words += [field.flag, str(value)]
    return words


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a form as it is filled in."""

    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """a sentence by field; under "" one that belongs to no single field"""
    words: tuple[str, ...] = ()
    """the command line without its leading tq, once there is no error"""
    config: Any = None


@dataclass(frozen=True)
class Form:
    """One command's form: what it takes beside its config, then the config's fields."""

    command: str
    config: type[Any]
    extra: tuple[FormField, ...] = ()
    """file and out: not settings, but arguments of the command"""

    @property
    def fields(self) -> tuple[FormField, ...]:
        return (*self.extra, *fields(self.config))

    def judge(
        self, typed: Mapping[str, str], *, last: str = "", exists: Callable[[str], str] = lambda _: ""
    ) -> Verdict:
        """Parse and validate. `last`: the field that was typed into last; `exists(file)` says what is wrong with it."""
        errors: dict[str, str] = {}
        for field in self.fields:
            try:
                parse(field, typed[field.name])
            except ValueError as error:
                errors[field.name] = str(error)
        if self.extra and "file" not in errors and (wrong := exists(typed["file"].strip())):
            errors["file"] = wrong
        known = {f.name: typed[f.name] for f in fields(self.config) if f.name not in errors}
        try:
            config = build(self.config, known)
        except ValueError as error:
            errors[self._blame(known, str(error), last)] = str(error)
        if errors:
            return Verdict(errors)
        return Verdict({}, (self.command, *self._arguments(typed), *argv(config)), config)

    def _blame(self, typed: Mapping[str, str], sentence: str, last: str) -> str:
        """The field that a sentence is shown at: one without which it would not be said; "" if there is no such one."""
        changed = {f.name: f for f in fields(self.config) if f.name in typed and typed[f.name] != f.default}
        culprits = []
        for name, field in changed.items():
            try:
                build(self.config, {**typed, name: field.default})
            except ValueError as error:
                if str(error) == sentence:
                    continue
            culprits.append(name)
        # Where several together are wrong, what was typed last is what the user looks at.
        return last if last in culprits else culprits[-1] if culprits else ""

    def _arguments(self, typed: Mapping[str, str]) -> list[str]:
        words = [typed["file"].strip()] if self.extra else []
        return [*words, "--out", out] if (out := typed.get("out", "").strip()) else words


_FILE = FormField("file", "str", "", "a model file, or a run: its id, or the last characters of it, or last")
_OUT = FormField("out", "str | None", "", "where the packed file goes; default: named after the file and the scheme")
FORMS = {
    "train": Form("train", tq_config.TrainConfig),
    "quantize": Form("quantize", tq_config.QuantizeConfig, (_FILE, _OUT)),
    "bench": Form("bench", tq_config.BenchConfig, (_FILE,)),
}


def _scalar(label: str, kind: str, typed: str) -> Any:
    if kind == "bool":
        return typed.lower() in ("true", "yes", "on", "1")
    if kind == "int":
        try:
            return int(typed.replace("_", ""))
        except ValueError:
            raise ValueError(f"{label} must be a whole number, got {typed!r}") from None
    if kind == "float":
        try:
            return float(typed)
        except ValueError:
            raise ValueError(f"{label} must be a number, got {typed!r}") from None
    return typed
