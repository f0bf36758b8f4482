"""What every test may use: a real server for the session, an app served on it, and programs."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from anyio.from_thread import start_blocking_portal
from anyio.streams.buffered import BufferedByteReceiveStream

from trine import App, Client
from trine.embedded import server_program
from trine.testing import server, serving

Serve = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no setting of the person who runs the tests reach them."""
    for variable in list(os.environ):
        if variable.startswith("TRINE_"):
            monkeypatch.delenv(variable)


@pytest.fixture(scope="session")
def nats() -> Iterator[str]:
    """Give the URL of a server that all tests share; each has a namespace of its own."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server()) as url:
        yield url


@pytest.fixture
def space() -> str:
    """Give a namespace that no other test has."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def serve(nats: str, space: str) -> Serve:
    """``async with serve(app) as client``; twice for two replicas."""

    def start(*apps: App) -> AbstractAsyncContextManager[Client]:
        return serving(*apps, url=nats, namespace=space)

    return start


class Program:
    """A ``trine`` program that runs beside the test."""

    def __init__(self, process: Process) -> None:
        self.process = process
        assert process.stdout is not None
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def line(self, seconds: float = 15) -> Any:
        """Return the next line of its output, which is JSON."""
        with anyio.fail_after(seconds):
            return json.loads(await self._lines.receive_until(b"\n", 1_000_000))

    def signal(self, number: int) -> None:
        self.process.send_signal(signal.Signals(number))

    async def wait(self, seconds: float = 10) -> int:
        with anyio.fail_after(seconds):
            return await self.process.wait()


class Trine:
    """Runs ``python -m trine`` against the shared server, in a namespace of the test."""

    def __init__(self, nats: str, space: str, directory: Path) -> None:
        self.environment = {**os.environ, "TRINE_NATS": nats, "TRINE_NAMESPACE": space}
        self.directory = directory

    async def run(self, *arguments: str, stdin: bytes = b"", **env: str) -> tuple[int, str, str]:
        """Return its exit code, stdout and stderr."""
        with anyio.fail_after(30):
            ended = await anyio.run_process(
                [sys.executable, "-m", "trine", *arguments],
                input=stdin,
                check=False,
                cwd=self.directory,
                env={**self.environment, **env},
            )
        return ended.returncode, ended.stdout.decode(), ended.stderr.decode()

    @asynccontextmanager
    async def start(self, *arguments: str, **env: str) -> AsyncIterator[Program]:
        process = await anyio.open_process(
            [sys.executable, "-m", "trine", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            env={**self.environment, **env},
        )
        async with process:
            try:
                yield Program(process)
            finally:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)

    @asynccontextmanager
    async def serve(self, source: str) -> AsyncIterator[Program]:
        """Run ``trine serve`` on a file with *source*; it serves when this gives the program."""
        file = self.directory / f"app_{secrets.token_hex(3)}.py"
        await anyio.Path(file).write_text(source)
        async with self.start("serve", f"{file}:app", "--json") as program:
            assert "worker" in await program.line()
            yield program


@pytest.fixture
def trine(nats: str, space: str, tmp_path: Path) -> Trine:
    return Trine(nats, space, tmp_path)


class OwnServer:
    """A server on a fixed port and store, for tests that kill it."""

    def __init__(self, store: Path) -> None:
        self.store = store
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [server_program(), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", self.store],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.01)
        raise AssertionError("nats-server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[OwnServer]:
    one = OwnServer(tmp_path / "store")
    one.start()
    yield one
    one.kill()
