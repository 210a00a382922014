"""What a form may name as its file: a model file, or a run that has one. Looks at the snapshot and one file at most."""

from __future__ import annotations

from pathlib import Path

from tui.state import Snapshot

MODEL_FILES = (".safetensors", ".pt", ".pth", ".th")


def known(snapshot: Snapshot) -> tuple[str, ...]:
    """What can be suggested."""
    return ("last", *(run.path.name for run in snapshot.runs if run.status.state == "done"))


def why_not(text: str, snapshot: Snapshot) -> str:
    """What is wrong with a file or run; "" if it can be used."""
    if not text:
        return "a file is needed: a model file, or a run such as last"
    path = Path(text)
    if path.is_file():
        return ""
    if path.suffix in MODEL_FILES:
        return f"{text} does not exist"
    found = [run for run in snapshot.runs if text in (run.path.name, "last") or path.absolute() == run.path]
    found = found or [run for run in snapshot.runs if text in run.path.name]
    if text == "last":
        found = [run for run in found if run.status.state == "done"][:1]
    if len(found) != 1:
        some = f"{text} fits {len(found)} runs; give more of the id"
        return some if found else f"there is no file or run {text!r}"
    run = found[0]
    return "" if run.status.state == "done" else f"{run.path.name} has no file yet ({run.word})"


def run_of(text: str, snapshot: Snapshot) -> str:
    """The id of the run whose file it is; "" for any other file."""
    path = Path(text).absolute()
    names = [run.path.name for run in snapshot.runs if run.path in (path, path.parent)]
    return names[0] if names else ""
