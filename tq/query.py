"""The small language that picks and orders runs: `tq runs --filter 'w<=4 acc>90'` and the dashboard's filter bar.

    w<=4 acc>90 size<100kb age<2h        numbers: <, <=, >, >=, =, !=
    name:resnet state:live,crashed       text: a part of it (a comma: or); = and != the whole of it
    -state:done -name:"my net"           a minus: not
    resnet 3f2c                          anything else: a part of the run's id or name

All terms must hold. A number that a run does not have (yet) fits no comparison. It works on plain values: `facts` makes
them of a run, `parse(text).match(values, now)` judges them, `ordered(...)` sorts them. Standard library only.
"""

from __future__ import annotations

import math
import operator
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from tq.byte_size import parse_size
from tq.history import RunState
from tq.liveness import State, Status
from tq.scheme import Scheme, did_you_mean

T = TypeVar("T")
Facts = Mapping[str, Any]
STATES = (*get_args(State), "stalled")
# Name in the language: the name among the facts, and what one of its units counts.
NUMBERS = {
    "w": ("w", 1.0),
    "a": ("a", 1.0),
    "acc": ("accuracy", 1.0),
    "best": ("best", 1.0),
    "epoch": ("epoch", 1.0),
    "loss": ("loss", 1.0),
    "size": ("bytes", 1.0),
    "kb": ("bytes", 1e3),
    "mb": ("bytes", 1e6),
    "age": ("started", 1.0),
}
TEXTS = ("name", "state", "scheme", "model", "dataset", "method", "optimizer")
# What is best, newest or first in the alphabet comes first.
SORTS = {
    "age": ("started", True),
    "acc": ("accuracy", True),
    "best": ("best", True),
    "size": ("bytes", False),
    "epoch": ("epoch", True),
    "loss": ("loss", False),
    "w": ("w", False),
    "a": ("a", False),
    **{name: (name, False) for name in TEXTS},
}
ALLOWED = f"numbers {', '.join(NUMBERS)} (as acc>90), text {', '.join(TEXTS)} (as name:resnet), or a word of the name"
_TERM = re.compile(r"(?P<key>[A-Za-z_]+)(?P<op><=|>=|!=|<|>|=|:)(?P<value>.*)", re.DOTALL)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    ":": operator.eq,
    "!=": operator.ne,
}
_Test = Callable[[Facts, float], bool]


@dataclass(frozen=True)
class Query:
    """A parsed filter; without terms it fits every run."""

    text: str = ""
    terms: tuple[_Test, ...] = ()

    def match(self, facts: Facts, now: float) -> bool:
        """Whether all terms hold. `now`: unix seconds, for the age."""
        return all(term(facts, now) for term in self.terms)


def parse(text: str) -> Query:
    """The filter that `text` describes. Raises ValueError: one sentence that names the bad term and what is allowed."""
    try:
        words = shlex.split(text)
    except ValueError:
        raise ValueError(f"filter {text!r}: a quote is not closed") from None
    return Query(text, tuple(_term(word) for word in words))


def ordered(items: Iterable[T], sort: str, facts: Callable[[T], Facts]) -> list[T]:
    """`items` by SORTS[sort], in its natural order; "-acc" turns it around. Runs without the value come last.

    Raises ValueError for a key that is not in SORTS.
    """
    items, name = list(items), sort.removeprefix("-")
    if name not in SORTS:
        raise ValueError(f"cannot sort by {name!r}: expected one of {', '.join(SORTS)}{did_you_mean(name, SORTS)}")
    key, falling = SORTS[name]
    have = [item for item in items if _known(facts(item)[key])]
    have.sort(key=lambda item: facts(item)[key], reverse=falling != sort.startswith("-"))
    return have + [item for item in items if not _known(facts(item)[key])]


def facts(path: Path, manifest: Mapping[str, Any], state: RunState, status: Status) -> dict[str, Any]:
    """What can be asked of a run, as plain values; None where it is not known. No value changes by waiting."""
    found = manifest.get("config")
    config = found if isinstance(found, dict) else {}
    scheme = str(config.get("scheme") or "")
    bits = _bits(scheme)
    created = manifest.get("created")
    weights, acts = config.get("weight_quantizer"), config.get("act_quantizer")
    return {
        "run": path.name,
        "name": name(path, manifest),
        "state": status.state,
        "status": status.word,
        "scheme": scheme or None,
        "model": config.get("model"),
        "dataset": config.get("dataset"),
        "method": "float" if bits == (16, 16) else " ".join(str(one) for one in (weights, acts) if one) or None,
        "optimizer": config.get("optimizer"),
        "w": bits[0],
        "a": bits[1],
        "accuracy": _number(state.last_acc),
        "best": _number(state.best_acc),
        "loss": _number(state.loss),
        "epoch": state.epoch,
        "bytes": state.packed_bytes or None,
        "started": state.started or (created if isinstance(created, int | float) else None),
    }


def name(path: Path, manifest: Mapping[str, Any]) -> str:
    """resnet20-w1a2: the manifest's name, or what the directory's name says."""
    return str(manifest.get("name") or "-".join(path.name.split("-")[2:-1]) or path.name)


def _term(word: str) -> _Test:
    negated = len(word) > 1 and word.startswith("-")
    body = word[1:] if negated else word
    match = _TERM.fullmatch(body)
    if match is None:
        test = _free(body.lower())
    elif (key := match["key"].lower()) in NUMBERS:
        test = _numeric(word, key, match["op"], match["value"])
    elif key in TEXTS:
        test = _textual(word, key, match["op"], match["value"])
    else:
        near = did_you_mean(key, [*NUMBERS, *TEXTS])
        raise ValueError(f"unknown term {word!r}: expected {ALLOWED}{near}")
    return (lambda facts, now: not test(facts, now)) if negated else test


def _free(part: str) -> _Test:
    return lambda facts, now: part in f"{facts['name']}\n{facts['run']}".lower()


def _numeric(word: str, key: str, op: str, typed: str) -> _Test:
    fact, unit = NUMBERS[key]
    compare, bound = _COMPARE[op], _bound(word, key, typed) * unit

    def test(facts: Facts, now: float) -> bool:
        value = facts[fact]
        return value is not None and compare(now - value if key == "age" else value, bound)

    return test


def _bound(word: str, key: str, typed: str) -> float:
    if key == "size":
        try:
            return parse_size(typed)
        except ValueError as error:
            raise ValueError(f"term {word!r}: {error}") from None
    if key == "age":
        if match := re.fullmatch(r"(\d+(?:\.\d*)?)([smhdw])", typed):
            return float(match[1]) * _SECONDS[match[2]]
        raise ValueError(f"term {word!r}: expected an age with its unit, as age<90s, age<30m, age<2h, age>7d or age>2w")
    try:
        value = float(typed)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"term {word!r}: expected a number after {key}, got {typed!r}")
    return value


def _textual(word: str, key: str, op: str, typed: str) -> _Test:
    if op not in (":", "=", "!="):
        raise ValueError(f"term {word!r}: {key} is text and has no order; expected {key}:PART, {key}=ALL or {key}!=ALL")
    options = tuple(part for part in typed.lower().split(",") if part)
    if not options:
        raise ValueError(f"term {word!r}: expected a word after {key}{op}")
    if key == "state" and (wrong := [o for o in options if not any(s.startswith(o) for s in STATES)]):
        raise ValueError(f"term {word!r}: unknown state {wrong[0]!r}; expected {', '.join(STATES)}")

    def test(facts: Facts, now: float) -> bool:
        values = {str(facts[key] or "").lower()}
        if key == "state" and facts["status"].startswith("stalled"):
            # it is live too
            values.add("stalled")
        if op == ":":
            return any(option in value for option in options for value in values)
        return bool(values.intersection(options)) == (op == "=")

    return test


def _bits(scheme: str) -> tuple[int | None, int | None]:
    try:
        parsed = Scheme.parse(scheme)
    except ValueError:
        return None, None
    return parsed.weight_bits, parsed.act_bits


def _known(value: Any) -> bool:
    return value is not None and value == value


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
