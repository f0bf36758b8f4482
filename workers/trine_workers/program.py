"""Running one program under limits, in a process group of its own."""

import contextlib
import ctypes
import os
import resource
import shlex
import signal
import subprocess
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
_DRAIN_SECONDS = 1.0
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
    words = arguments(command)
    started = time.monotonic()
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 - fork and exec take about a millisecond
            words,
            cwd=cwd,
            env=environment(extra, scratch),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_before_exec,  # noqa: PLW1509 - two system calls, no locks
        )
    except OSError as error:
        os.close(reading)
        raise BadRequestError(f"command {command!r}: {error.strerror}") from error
    finally:
        os.close(writing)
    ended: Ended = "timeout"
    try:
        async with anyio.create_task_group() as tasks:
            drained = anyio.Event()
            tasks.start_soon(_read, reading, log, on_output, drained)
            with anyio.move_on_after(limit_seconds):
                await _wait(process)
                ended = "exit"
            await _end_group(process, ended=ended == "exit")
            with anyio.move_on_after(_DRAIN_SECONDS):  # a process that left the group may hold it
                await drained.wait()
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _end_group(process, ended=False)
        os.close(reading)
    return Exit(ended, process.returncode, time.monotonic() - started)


async def _read(
    pipe: int, log: Log, on_output: Callable[[bytes], None], drained: anyio.Event
) -> None:
    os.set_blocking(pipe, False)
    while True:
        await anyio.wait_readable(pipe)
        chunk = os.read(pipe, 65_536)
        if not chunk:
            drained.set()
            return
        log.write(chunk)
        on_output(chunk)


async def _wait(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the program itself, whatever becomes of its children."""
    watched = os.pidfd_open(process.pid)
    try:
        await anyio.wait_readable(watched)
    finally:
        os.close(watched)


async def _end_group(process: "subprocess.Popen[bytes]", *, ended: bool) -> None:
    """Kill what is left of the group, after asking a program that has not *ended* by itself.

    The program is reaped last: until then its number can belong to nobody else.
    """
    if process.returncode is not None:
        return
    if not ended:
        _signal(process.pid, signal.SIGTERM)
        with anyio.move_on_after(_TERM_SECONDS):
            await _wait(process)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
