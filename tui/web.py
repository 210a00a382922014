"""The dashboard in a browser, by textual-serve: every open page is a `tq tui` of its own on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence


def serve(flags: Sequence[str], port: int) -> None:
    """Serve `tq tui` with these flags at http://localhost:`port` until Ctrl-C. Other machines cannot reach it.

    ValueError: textual-serve is not installed, or the port is taken.
    """
    try:
        from textual_serve.server import Server
    except ModuleNotFoundError:
        raise ValueError("--web needs the package textual-serve: pip install 'tq[web]'") from None
    server = Server(shlex.join([sys.executable, "-m", "tq", "tui", *flags]), port=port, title="tq")
    try:
        server.serve()
    except OSError as error:
        raise ValueError(f"cannot serve at port {port} ({error.strerror}); choose another one") from error
