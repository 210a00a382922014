"""`tq tui --web`: served to a browser, which is played by a client that speaks as textual-serve's page does."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tq.cli import main


def sentence_of(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What is said of bad input."""
    assert main(["tui", "--web", *flags]) == 2
    return capsys.readouterr().err


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as free:
        return int(free.getsockname()[1])


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1 to 65535" in sentence_of(capsys, "70000")
    assert "choose one" in sentence_of(capsys, "8000", "--once")
    monkeypatch.setitem(sys.modules, "textual_serve.server", None)
    assert "tq[web]" in sentence_of(capsys, "8000")


def test_the_dashboard_comes_to_a_browser_and_a_taken_port_is_told(make_run: Callable[..., Path], root: Path) -> None:
    make_run()
    port = free_port()
    command = [sys.executable, "-m", "tq", "tui", "--web", str(port), "--readonly", "--runs", str(root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            asyncio.run(asyncio.wait_for(until_drawn(f"http://localhost:{port}", b"READ-ONLY"), 60))
            second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert second.returncode == 2
            assert f"port {port}" in second.stderr
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


async def until_drawn(url: str, text: bytes) -> None:
    """Open the page, and return when the dashboard has drawn `text`."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                assert "textual.js" in await (await session.get(url)).text()
                break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)
        async with session.ws_connect(f"{url}/ws?width=120&height=36") as channel:
            drawn = b""
            while text not in drawn:
                message = await channel.receive()
                assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), drawn[-500:]
                drawn += message.data if isinstance(message.data, bytes) else message.data.encode()
