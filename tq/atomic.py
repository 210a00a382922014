"""Write a file whole or not at all: a temporary name beside it, fsync, rename. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic(path: Path, *, otherwise: str = "what was there before is kept") -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends; an error leaves neither a part nor a change.

    Raises OSError with a sentence that names the file, the reason and `otherwise`, what is not lost.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; {otherwise}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
