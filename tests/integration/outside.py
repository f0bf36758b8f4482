"""Workers that know nothing of Trine, and engines beside them, for tests."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from trine import Client
from trine.catalogue import FunctionInfo
from trine.catalogue.directory import Directory

LANGUAGES = Path(__file__).parents[1] / "languages"
PYTHON = [sys.executable, str(LANGUAGES / "python" / "plain_worker.py")]


@asynccontextmanager
async def program(
    command: list[str], nats: str, space: str, directory: Path | None = None
) -> AsyncIterator[Process]:
    """Run a worker; it serves when this gives its process."""
    process = await anyio.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stderr=None,
        cwd=directory,
        env={**os.environ, "TRINE_NATS": nats, "TRINE_NAMESPACE": space},
    )
    async with process:
        try:
            assert process.stdout is not None
            with anyio.fail_after(30):
                line = await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 10_000)
            assert line.startswith(b"serving")
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)


@asynccontextmanager
async def following(client: Client) -> AsyncIterator[Directory]:
    """Give a directory that is kept up to date."""
    async with anyio.create_task_group() as tasks:
        directory = Directory(client.bus)
        await tasks.start(directory.run)
        yield directory
        tasks.cancel_scope.cancel()


async def until(
    directory: Directory,
    reached: Callable[[dict[str, FunctionInfo]], bool],
    seconds: float = 10,
) -> None:
    """Wait until the functions of *directory* are as wanted."""
    with anyio.fail_after(seconds):
        while not reached(directory.functions):
            await directory.changed()
