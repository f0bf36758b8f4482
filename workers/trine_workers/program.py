"""Running one program under limits, in a process group of its own."""

import asyncio
import contextlib
import ctypes
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio

from trine.errors import BadRequestError

Ended = Literal["exit", "timeout"]
_TERM_SECONDS = 2.0
_LOG_LIMIT = 16 * 2**20  # bytes of a log that are kept from its start
_LOG_TAIL = 256 * 1024  # and from its end
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "USER")
_PASSED_PREFIXES = ("NANOLM_", "CUDA_", "NVIDIA_", "TORCH", "TRITON_", "XDG_CACHE")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program ended; ``code`` is negative when a signal ended it."""

    ended: Ended
    code: int
    seconds: float


class Log:
    """A log file that keeps the start and the end of what was printed, however much that is."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._left = _LOG_LIMIT
        self._tail = bytearray()
        self._dropped = 0

    def write(self, chunk: bytes) -> None:
        head, rest = chunk[: self._left], chunk[self._left :]
        self._file.write(head)
        self._left -= len(head)
        if rest:
            self._tail += rest
            excess = len(self._tail) - _LOG_TAIL
            if excess > 0:
                self._dropped += excess
                del self._tail[:excess]

    def close(self) -> None:
        if self._dropped:
            self._file.write(f"\n[... {self._dropped} bytes left out ...]\n".encode())
        self._file.write(bytes(self._tail))
        self._file.close()


def environment(extra: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return what the program sees: an allow-list, so that no credential of ours leaks into it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_PREFIXES)
    }
    return {**kept, "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch), **extra}


def arguments(command: str) -> list[str]:
    """Split *command*; ``python`` is the Python that runs this worker."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadRequestError(f"command {command!r}: {error}") from error
    if not words:
        raise BadRequestError("the command is empty")
    if words[0] in ("python", "python3"):
        words[0] = sys.executable
    return words


def _before_exec() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed worker leaves nothing training
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


async def run(
    command: str,
    *,
    cwd: Path,
    extra: Mapping[str, str],
    log: Log,
    on_output: Callable[[bytes], None],
    limit_seconds: float,
) -> Exit:
    """Run *command* until it ends or its time is over; no process of its group is left.

    Cancelling this ends the program too.
    """
    scratch = cwd / ".tmp"
    scratch.mkdir(exist_ok=True)
    started = time.monotonic()
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments(command),
            cwd=cwd,
            env=environment(extra, scratch),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_before_exec,
        )
    except OSError as error:
        raise BadRequestError(f"command {command!r}: {error.strerror}") from error
    ended: Ended = "timeout"
    try:
        with anyio.move_on_after(limit_seconds):
            await _read(process, log, on_output)
            await process.wait()
            ended = "exit"
    finally:
        with anyio.CancelScope(shield=True):
            await _end_group(process)
    code = process.returncode if process.returncode is not None else -signal.SIGKILL
    return Exit(ended, code, time.monotonic() - started)


async def _read(
    process: asyncio.subprocess.Process, log: Log, on_output: Callable[[bytes], None]
) -> None:
    """Read until the program itself has ended: a child of its own may hold the pipe open."""
    assert process.stdout is not None
    waiting = asyncio.ensure_future(process.wait())
    try:
        while True:
            reading = asyncio.ensure_future(process.stdout.read(65_536))
            try:
                await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    await asyncio.wait({reading}, timeout=0.5)
                if not reading.done():
                    return
                chunk = reading.result()
            finally:
                reading.cancel()
            if not chunk:
                return
            log.write(chunk)
            on_output(chunk)
    finally:
        waiting.cancel()


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Ask the group to end, then kill what is left of it."""
    if process.returncode is None:
        _signal(process.pid, signal.SIGTERM)
        with anyio.move_on_after(_TERM_SECONDS):
            await process.wait()
    _signal(process.pid, signal.SIGKILL)  # also what the program has left behind
    await process.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
