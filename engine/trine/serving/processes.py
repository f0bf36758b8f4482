"""Several processes that serve the same apps, for handlers that keep a processor busy.

The parent starts them, replaces one that dies, and ends them in order. It serves nothing itself.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog

from trine.embedded import die_with_parent
from trine.errors import TrineError, UnavailableError

log = structlog.get_logger("trine")

_START_SECONDS = 60.0  # for a process to serve
_KILL_SECONDS = 3.0  # beyond the drain time
_BACKOFF_SECONDS = (0.25, 30.0)  # first and longest wait before a process is started again
_STEADY_SECONDS = 30.0  # a process that served for so long starts again at once


class ChildFailedError(TrineError):
    """Raised when a process ended before it served; its own words are on stderr."""

    code = "process_failed"

    def __init__(self, status: int) -> None:
        super().__init__(f"a process that should serve ended with status {status}", status=status)
        self.exit_status = status


@dataclass(slots=True)
class _Child:
    """A process that serves, and what it said when it was ready."""

    process: asyncio.subprocess.Process
    facts: dict[str, Any]
    started: float = field(default_factory=anyio.current_time)


class Processes:
    """*count* processes of ``trine`` with the same *arguments*; made by `serving_processes`."""

    def __init__(self, arguments: Sequence[str], count: int) -> None:
        self._arguments = [*arguments]
        self._children: list[_Child | None] = [None] * count
        self._alive: set[asyncio.subprocess.Process] = set()

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What each process that serves now said when it was ready."""
        return [child.facts for child in self._children if child is not None]

    async def start(self) -> None:
        """Return when all serve. The first goes ahead: what is wrong is said once."""
        self._children[0] = await self._spawn()

        failed: list[TrineError] = []

        async def one(place: int) -> None:
            try:
                self._children[place] = await self._spawn()
            except TrineError as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            for place in range(1, len(self._children)):
                tasks.start_soon(one, place)
        if failed:
            raise failed[0]

    async def watch(self) -> None:
        """Start a process again when it dies, until cancelled."""
        async with anyio.create_task_group() as tasks:
            for place in range(len(self._children)):
                tasks.start_soon(self._keep, place)

    async def _keep(self, place: int) -> None:
        first, longest = _BACKOFF_SECONDS
        delay = first
        while True:
            child = self._children[place]
            if child is not None:
                status = await child.process.wait()
                self._children[place] = None
                steady = anyio.current_time() - child.started > _STEADY_SECONDS
                delay = first if steady else delay
                log.warning(
                    "process_ended",
                    worker=child.facts.get("worker"),
                    pid=child.process.pid,
                    status=status,
                    again_in=delay,
                )
            await anyio.sleep(delay)
            delay = min(delay * 2, longest)
            try:
                child = self._children[place] = await self._spawn()
            except (TrineError, OSError) as error:
                log.warning("process_not_started", error=str(error), again_in=delay)
            else:
                log.info("process_serving", worker=child.facts.get("worker"))

    async def _spawn(self) -> _Child:
        """Start one process and return when it serves."""
        ready, said = os.pipe()
        parent = os.getpid()

        def bound() -> None:
            die_with_parent()
            if os.getppid() != parent:  # it was killed before we asked
                os._exit(1)

        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "trine",
                *self._arguments,
                "--ready-fd",
                str(said),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(said,),
                start_new_session=True,  # Ctrl-C reaches us; we end the others
                preexec_fn=bound,
            )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(said)
        self._alive = {one for one in self._alive if one.returncode is None} | {process}
        try:
            with anyio.fail_after(_START_SECONDS):
                line = await _line(ready)
                if not line:
                    raise ChildFailedError(await process.wait())
            return _Child(process, json.loads(line))
        except TimeoutError as error:
            _kill(process)
            raise UnavailableError(f"a process did not serve in {_START_SECONDS:g} s") from error
        finally:
            os.close(ready)

    async def stop(self, drain_seconds: float) -> None:
        """Ask all to end, and kill what has not ended in time."""
        alive = [one for one in self._alive if one.returncode is None]
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(drain_seconds + _KILL_SECONDS):
            for process in alive:
                await process.wait()
        for process in alive:
            if process.returncode is None:
                log.warning("process_killed", pid=process.pid)
                _kill(process)
                await process.wait()


@asynccontextmanager
async def serving_processes(
    arguments: Sequence[str], count: int, drain_seconds: float
) -> AsyncIterator[Processes]:
    """Run *count* processes of ``trine`` with *arguments*; all serve when this gives them.

    One that dies is replaced, after a wait that doubles while it keeps dying. On leaving, all are
    asked to end and have *drain_seconds*; when this process is killed they end by themselves.
    `ChildFailedError` when one ends before it has served.
    """
    processes = Processes(arguments, count)
    try:
        await processes.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(processes.watch)
            try:
                yield processes
            finally:
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await processes.stop(drain_seconds)


async def _line(fd: int) -> bytes:
    """Return what is written to the pipe until it is closed."""
    found = b""
    while True:
        await anyio.wait_readable(fd)
        piece = os.read(fd, 65536)
        if not piece:
            return found
        found += piece


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
