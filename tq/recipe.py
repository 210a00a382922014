"""Recipes: the tables that `tq reproduce` can make, as JSON in tq/recipes or in a file of the user's.

    {"title": ..., "datasets": ["cifar10", "imagefolder"], "reference": "float", "notes": [...], "settings": {...},
     "quick": {"seeds": [0], "settings": {...}, "epoch_minutes": 5, "timed_on": "one CPU core"}, "full": {...},
     "rows": [{"label": "w4a4", "from": "float", "settings": {...}, "quick": {...}, "full": {...},
               "published": 92.71, "source": "LLT", "note": "..."}]}

Settings are keys of TrainConfig; the later win: the table's, the version's, the row's, the row's of the version
(null: the row is not in that version). A list of `lr` is a search: the rate of the best mean is reported. `from` is
the row whose network of the same seed is the start, or such a row per version; `against` the row to compare with, if
it is not the reference. "_comment" keys are ignored; null is as good as no key, except in settings and for a row's
version. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from tq.config import DATASETS, TrainConfig, from_dict
from tq.scheme import did_you_mean

# The kind of every key's value: a type, [a list of it], or (several to choose from).
_COMMON: dict[str, Any] = {"settings": dict, "quick": dict, "full": dict}
_TABLE = _COMMON | {"title": str, "datasets": [str], "reference": str, "notes": [str], "rows": [dict]}
_VERSION = {"seeds": [int], "settings": dict, "epoch_minutes": float, "timed_on": str}
_ROW = _COMMON | {"label": str, "from": (str, dict), "against": str, "published": float, "source": str, "note": str}
_NEEDED = {"datasets", "rows", "label"}
_WORDS = {str: "one-line text", int: "whole number", float: "number", dict: "JSON object"}
# What the command line says, not the recipe.
_GIVEN = {"dataset", "data", "download", "device", "seed", "init"}


@dataclass(frozen=True)
class Row:
    """One line of a table: a training."""

    label: str
    settings: dict[str, Any] = field(hash=False)
    """keys of TrainConfig without `lr` where there is a search"""
    start: str | None = None
    """label of the row that it starts from"""
    against: str | None = None
    """label of the row that its drop is measured against"""
    rates: tuple[float, ...] = ()
    """learning rates to choose from"""
    published: float | None = None
    """accuracy in percent"""
    source: str = ""
    note: str = ""

    @property
    def epochs(self) -> int:
        """Epochs of one run."""
        config = self.config(init="start.safetensors" if self.start else None)
        stages = [int(stage.rpartition(":")[2]) for stage in getattr(config, "progressive", ())]
        return config.float_epochs + sum(stages) + config.epochs

    def config(self, *, rate: float | None = None, **given: Any) -> TrainConfig:
        """The settings of one run. Raises ValueError."""
        rate = next(iter(self.rates), None) if rate is None else rate
        settings = {**self.settings, **({"lr": rate} if rate is not None else {}), **given}
        return from_dict(TrainConfig, settings, where=f"row {self.label}")


@dataclass(frozen=True)
class Table:
    """A set of trainings whose results belong together, in its quick or its full version."""

    name: str
    """as `tq reproduce` takes it, a file's without its directory: digits, mine.json"""
    quick: bool
    title: str
    datasets: tuple[str, ...]
    """the first is the table's own, the others may stand in for it"""
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    reference: str | None = None
    """label of the row that a drop is measured against, unless the row names another"""
    notes: tuple[str, ...] = ()
    epoch_minutes: float | None = None
    """of one epoch, where it was measured"""
    timed_on: str = ""
    picked: tuple[str, ...] = ()
    """labels that `only` was asked for"""

    @property
    def version(self) -> str:
        """quick or full."""
        return "quick" if self.quick else "full"

    @property
    def minutes(self) -> float | None:
        """Of all runs of one seed, as far as that is known."""
        epochs = sum(row.epochs * max(1, len(row.rates)) for row in self.rows)
        return None if self.epoch_minutes is None else epochs * self.epoch_minutes

    def only(self, labels: tuple[str, ...]) -> Table:
        """The rows of these labels and those that they start from. Raises ValueError for an unknown one."""
        known = {row.label: row for row in self.rows}
        wanted: set[str] = set()
        for label in labels:
            if label not in known:
                hint = did_you_mean(label, known)
                raise ValueError(f"table {self.name} has no row {label!r}: expected {', '.join(known)}{hint}")
            at: str | None = label
            while at is not None:
                wanted.add(at)
                at = known[at].start
        rows = tuple(row for row in self.rows if row.label in wanted)
        return dataclasses.replace(self, rows=rows, picked=labels)


def names() -> list[str]:
    """The tables that come with the package."""
    return sorted(p.name.removesuffix(".json") for p in _folder().iterdir() if p.name.endswith(".json"))


def load(name: str, *, quick: bool) -> Table:
    """A table by name or from a JSON file. Raises ValueError: unknown (with the nearest name), or a bad recipe."""
    if name in names():
        text = (_folder() / f"{name}.json").read_text(encoding="utf-8")
    elif name.endswith(".json"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe {name} cannot be read: {error}") from None
    else:
        known = names()
        raise ValueError(
            f"unknown table {name!r}: expected one of {', '.join(known)}, or a recipe.json{did_you_mean(name, known)}"
        )
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"recipe {name} is not valid JSON: {error}") from None
    return parse(raw, name=Path(name).name, quick=quick)


def parse(raw: Any, *, name: str, quick: bool) -> Table:
    """Build a table from a recipe's JSON, everything checked. Raises ValueError."""
    where, version = f"recipe {name}", "quick" if quick else "full"
    raw = _object(raw, _TABLE, where)
    if raw.get(version) is None:
        raise ValueError(f"{where} has no {version} version; {'drop' if quick else 'give'} --quick")
    own = _object(raw[version], _VERSION, f"{where}, {version}")
    common = {**_settings(raw, where), **_settings(own, f"{where}, {version}")}
    rows: list[Row] = []
    for number, entry in enumerate(raw["rows"], 1):
        entry = _object(entry, _ROW, f"{where}, row {number}")
        if (row := _row(entry, common, version, where, {r.label: r for r in rows})) is not None:
            rows.append(row)
    if not rows:
        raise ValueError(f"{where} has no row in its {version} version")
    if unknown := [d for d in raw["datasets"] if d not in DATASETS]:
        raise ValueError(f"{where}: unknown data set {unknown[0]!r}: expected one of {', '.join(DATASETS)}")
    reference = raw.get("reference")
    if reference is not None and reference not in {row.label for row in rows}:
        raise ValueError(f"{where}: the reference must be a row, got {reference!r}")
    seeds = [0] if own.get("seeds") is None else own["seeds"]
    if not seeds or min(seeds) < 0:
        raise ValueError(f"{where}: seeds must be whole numbers from 0 on, got {seeds}")
    return Table(
        name=name,
        quick=quick,
        title=raw.get("title") or name,
        datasets=tuple(raw["datasets"]),
        seeds=tuple(seeds),
        rows=tuple(rows),
        reference=reference,
        notes=tuple(raw.get("notes") or []),
        epoch_minutes=own.get("epoch_minutes"),
        timed_on=own.get("timed_on") or "",
    )


def _row(entry: dict[str, Any], common: dict[str, Any], version: str, recipe: str, above: dict[str, Row]) -> Row | None:
    where = f"{recipe}, row {(label := entry['label'])}"
    if label in above:
        raise ValueError(f"{where}: every row needs a label of its own")
    if version in entry and entry[version] is None:
        return None
    own = _settings({"settings": entry.get(version)}, where)
    settings = {**common, **_settings(entry, where), **own}
    start = entry.get("from")
    if isinstance(start, dict):
        start = _object(start, {"quick": str, "full": str}, f"{where}, from").get(version)
    if start is not None and (start not in above or above[start].rates):
        raise ValueError(f"{where}: from must name a row above it that searches no lr, got {start!r}")
    # an empty list is no search, and no rate either: from_dict says so
    searches = isinstance(settings.get("lr"), list) and settings["lr"]
    rates = tuple(settings.pop("lr")) if searches else ()
    if (against := entry.get("against")) is not None and against not in above:
        raise ValueError(f"{where}: against must name a row above it, got {against!r}")
    row = Row(
        label=label,
        settings=settings,
        start=start,
        against=against,
        rates=rates,
        published=entry.get("published"),
        source=entry.get("source") or "",
        note=entry.get("note") or "",
    )
    for rate in rates or (None,):
        try:
            row.config(rate=rate, init="start.safetensors" if start else None)
        except ValueError as error:
            raise ValueError(f"{recipe}, {error}") from None
    return row


def _settings(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings in `raw`, whose values from_dict checks."""
    found = _known(raw.get("settings") or {}, {f.name for f in dataclasses.fields(TrainConfig)}, where)
    if given := _GIVEN & found.keys():
        raise ValueError(f"{where}: {min(given)} is given on the command line, not in a recipe; drop it")
    return found


def _object(raw: Any, kinds: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An object's keys, each with a value of its kind or, where it is not needed, null."""
    found = _known(raw, kinds.keys(), where)
    for key, kind in kinds.items():
        value, needed = found.get(key), key in _NEEDED
        if (needed and not value) or (value is not None and not _fits(value, kind)):
            words = f"{_words(kind)}{' that is not empty' if needed else ''}"
            raise ValueError(f"{where}: {key} must be {words}, got {reprlib.repr(value)}")
    return found


def _known(raw: Any, keys: Collection[str], where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be a JSON object, got {reprlib.repr(raw)}")
    found = {k: v for k, v in raw.items() if not k.startswith("_comment")}
    for key in found:
        if key not in keys:
            raise ValueError(f"{where}: unknown key {key!r}{did_you_mean(key, keys)}")
    return found


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return any(_fits(value, one) for one in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(item, kind[0]) for item in value)
    if kind is str:
        return isinstance(value, str) and len(value.splitlines()) < 2
    if kind is float:
        # neither NaN and infinity, which JSON lacks and Python reads, nor a whole number beyond all floats
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    # not isinstance: true and false are no numbers
    return type(value) is kind


def _words(kind: Any) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_words, kind))
    return f"a list of {_WORDS[kind[0]]}s" if isinstance(kind, list) else f"a {_WORDS[kind]}"


def _folder() -> Any:
    return resources.files("tq") / "recipes"
