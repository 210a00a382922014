"""Configs as JSON and as command lines, with every key and type checked. Standard library only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from tq.scheme import did_you_mean

C = TypeVar("C")


def from_json(kind: type[C], path: Path | str) -> C:
    """Read a config file. "_comment..." keys are ignored; an unknown one raises ValueError with the nearest name."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"config file {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"config file {path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config file {path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"config file {path} must hold one JSON object, got {type(raw).__name__}")
    return from_dict(kind, {k: v for k, v in raw.items() if not k.startswith("_comment")}, where=f"config file {path}")


def from_dict(kind: type[C], raw: dict[str, Any], *, where: str = "config") -> C:
    """Build a config from plain JSON values, with every key and type checked. Raises ValueError."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in raw.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}{did_you_mean(key, fields)}")
        _check_type(f"{where}: {key}", value, str(fields[key].type))
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """The plain JSON values of a config (tuples as lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def to_argv(config: Any) -> list[str]:
    """The flags of a config's values that differ from the defaults, as the command line takes them."""
    default, argv = to_dict(type(config)()), []
    for name, value in to_dict(config).items():
        if value == default[name]:
            continue
        word = name.replace("_", "-")
        if isinstance(value, bool):
            argv.append(f"--{word}" if value else f"--no-{word}")
        else:
            argv += [f"--{word}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def choices(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The allowed words of a `Literal[...]` field, else ()."""
    text = str(field.type)
    if not text.startswith("Literal["):
        return ()
    return tuple(word.strip().strip("\"'") for word in text[len("Literal[") : -1].split(","))


def _check_type(what: str, value: Any, annotation: str) -> None:
    """JSON value against the annotation's text: bool, int, float, str, `X | None`, tuple[X, ...], Literal[...]."""
    if annotation.startswith("tuple["):
        inner = annotation[len("tuple[") :].split(",")[0]
        if not isinstance(value, list | tuple):
            raise ValueError(f"{what} must be a list, got {value!r}")
        for item in value:
            _check_type(what, item, inner)
        return
    if annotation.startswith("Literal["):
        annotation = "str"
    names = [name.strip() for name in annotation.split("|")]
    actual = "None" if value is None else type(value).__name__
    if actual not in names and not (actual == "int" and "float" in names):
        raise ValueError(f"{what} must be {annotation.replace(' | None', ' or null')}, got {value!r}")
