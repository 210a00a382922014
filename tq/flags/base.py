"""What the flags of all commands have, and how a config is taken out of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
