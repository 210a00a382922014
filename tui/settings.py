"""What the dashboard remembers: $XDG_CONFIG_HOME/tq/tui.json (~/.config/tq/tui.json). No Textual here."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tq.atomic import atomic


@dataclass(frozen=True)
class Settings:
    """The choices that outlive the dashboard."""

    theme: str = "tq"


def path() -> Path:
    """Where they are kept (XDG Base Directory Specification 0.8)."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "tq" / "tui.json"


def load() -> Settings:
    """The remembered choices; the defaults where there is no file. Raises ValueError for a damaged one."""
    file = path()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Settings(theme=str(found.get("theme", Settings.theme)))
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}): the defaults are used; delete it to be rid of this"
        ) from None


def save(settings: Settings) -> None:
    """Keep them. Raises OSError."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as out:
        out.write(json.dumps(asdict(settings), indent=1).encode() + b"\n")
