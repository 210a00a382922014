"""Recipes: the tables that `tq reproduce` can make, as JSON in tq/recipes or in a file of the user's.

    {"title": ..., "datasets": ["cifar10", "imagefolder"], "reference": "float", "notes": [...], "settings": {...},
     "quick": {"seeds": [0], "settings": {...}, "epoch_minutes": 5, "timed_on": "one CPU core"}, "full": {...},
     "rows": [{"label": "w4a4", "from": "float", "settings": {...}, "quick": {...}, "full": {...},
               "published": 92.71, "source": "LLT", "note": "..."}]}

Settings are keys of TrainConfig; the later win: the table's, the version's, the row's, the row's of the version (null:
the row is not in that version). A list of `lr` is a search: the rate of the best mean is reported. `from` is the row
whose network of the same seed is the start, or such a row per version; `against` the row to compare with, if it is not
the reference. "_comment" keys are ignored. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from tq.config import DATASETS, TrainConfig, from_dict
from tq.scheme import did_you_mean

_TABLE = {"title", "datasets", "reference", "notes", "settings", "quick", "full", "rows"}
_VERSION = {"seeds", "settings", "epoch_minutes", "timed_on"}
_ROW = {"label", "from", "against", "settings", "quick", "full", "published", "source", "note"}
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
        rate = rate or next(iter(self.rates), None)
        settings = {**self.settings, **({"lr": rate} if rate is not None else {}), **given}
        return from_dict(TrainConfig, settings, where=f"row {self.label}")


@dataclass(frozen=True)
class Table:
    """A set of trainings whose results belong together, in its quick or its full version."""

    name: str
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
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if row.label in wanted))


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
    except json.JSONDecodeError as error:
        raise ValueError(f"recipe {name} is not valid JSON: {error}") from None
    return parse(raw, name=Path(name).name.removesuffix(".json"), quick=quick)


def parse(raw: Any, *, name: str, quick: bool) -> Table:
    """Build a table from a recipe's JSON, everything checked. Raises ValueError."""
    where, version = f"recipe {name}", "quick" if quick else "full"
    raw = _object(raw, _TABLE, where)
    if version not in raw:
        raise ValueError(f"{where} has no {version} version; {'drop' if quick else 'give'} --quick")
    own = _object(raw[version], _VERSION, f"{where}, {version}")
    common = {**_settings(raw, where), **_settings(own, f"{where}, {version}")}
    rows: list[Row] = []
    for entry in _list(raw.get("rows"), f"{where}: rows"):
        if (row := _row(entry, common, version, where, {r.label: r for r in rows})) is not None:
            rows.append(row)
    datasets = tuple(_list(raw.get("datasets"), f"{where}: datasets"))
    if unknown := [d for d in datasets if d not in DATASETS]:
        raise ValueError(f"{where}: unknown data set {unknown[0]!r}: expected one of {', '.join(DATASETS)}")
    reference = raw.get("reference")
    if reference is not None and reference not in {row.label for row in rows}:
        raise ValueError(f"{where}: the reference must be a row, got {reference!r}")
    seeds = tuple(_list(own.get("seeds", [0]), f"{where}: seeds"))
    if not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ValueError(f"{where}: seeds must be whole numbers from 0 on, got {list(seeds)}")
    return Table(
        name=name,
        quick=quick,
        title=str(raw.get("title", name)),
        datasets=datasets,
        seeds=seeds,
        rows=tuple(rows),
        reference=reference,
        notes=tuple(str(note) for note in raw.get("notes", [])),
        epoch_minutes=own.get("epoch_minutes"),
        timed_on=str(own.get("timed_on", "")),
    )


def _row(entry: Any, common: dict[str, Any], version: str, where: str, above: dict[str, Row]) -> Row | None:
    entry = _object(entry, _ROW, f"{where}: a row")
    label = str(entry.get("label") or "")
    where = f"{where}, row {label}"
    if not label or label in above:
        raise ValueError(f"{where}: every row needs a label of its own")
    if version in entry and entry[version] is None:
        return None
    own = entry.get(version, {})
    settings = {**common, **_settings(entry, where), **_settings({"settings": own}, where)}
    start = entry.get("from")
    start = start.get(version) if isinstance(start, dict) else start
    if start is not None and (start not in above or above[start].rates):
        raise ValueError(f"{where}: from must name a row above it that searches no lr, got {start!r}")
    rates = tuple(settings.pop("lr")) if isinstance(settings.get("lr"), list) else ()
    if (against := entry.get("against")) is not None and against not in above:
        raise ValueError(f"{where}: against must name a row above it, got {against!r}")
    row = Row(
        label=label,
        settings=settings,
        start=start,
        against=against,
        rates=rates,
        published=entry.get("published"),
        source=str(entry.get("source", "")),
        note=str(entry.get("note", "")),
    )
    for rate in rates or (None,):
        try:
            row.config(rate=rate, init="start.safetensors" if start else None)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return row


def _settings(raw: dict[str, Any], where: str) -> dict[str, Any]:
    found = _object(raw.get("settings", {}), {f.name for f in dataclasses.fields(TrainConfig)}, where)
    if given := _GIVEN & found.keys():
        raise ValueError(f"{where}: {min(given)} is given on the command line, not in a recipe; drop it")
    return found


def _object(raw: Any, keys: set[str], where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be a JSON object, got {raw!r}")
    found = {k: v for k, v in raw.items() if not k.startswith("_comment")}
    for key in found:
        if key not in keys:
            raise ValueError(f"{where}: unknown key {key!r}{did_you_mean(key, keys)}")
    return found


def _list(raw: Any, where: str) -> list[Any]:
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{where} must be a list that is not empty, got {raw!r}")
    return raw


def _folder() -> Any:
    return resources.files("tq") / "recipes"
