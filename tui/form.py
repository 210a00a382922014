"""The form's fields, derived from a config dataclass: its types, defaults, choices and the strings below its fields.

No Textual here. `fields(TrainConfig)` describes, `build(TrainConfig, texts)` parses and validates what was typed,
`argv(config)` gives the equivalent command line.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tq import config as tq_config

C = TypeVar("C")
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
    help_texts = docstrings(kind)
    return tuple(
        FormField(
            name=field.name,
            type=str(field.type),
            default=text(field.default),
            help=help_texts.get(field.name, ""),
            choices=tq_config.choices(field),
            suggestions=SUGGESTIONS.get(field.name, ()),
        )
        for field in dataclasses.fields(kind)
    )


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
    """The flags that give this config: only what differs from the defaults."""
    words: list[str] = []
    for field in fields(type(config)):
        value = getattr(config, field.name)
        if text(value) == field.default:
            continue
        if isinstance(value, bool):
            words.append(field.flag if value else "--no-" + field.flag[2:])
        elif isinstance(value, tuple):
            words += [field.flag, *map(str, value)]
        elif value is not None:
            words += [field.flag, str(value)]
    return words


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
