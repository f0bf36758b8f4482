"""Queues that have never had a job: each costs one subscription, and no consumer at the server.

A durable consumer costs the server some milliseconds and files, and this process several tasks. A
worker with a thousand functions, few of which are ever sent a job, starts at once without them.
"""

from collections.abc import Awaitable, Callable, Mapping

import anyio
from anyio.abc import TaskStatus

from trine.bus import Bus
from trine.errors import TrineError
from trine.transport.connection import Listener

_AGAIN_SECONDS = 1.0

Start = Callable[[], Awaitable[None]]


class Dormant:
    """Calls the *start* of a queue once, when the first job for it is stored, or is there."""

    def __init__(self, bus: Bus, queues: Mapping[str, Start]) -> None:
        self._bus = bus
        self._queues = dict(queues)
        self._listeners: dict[str, Listener] = {}
        self._woken: set[str] = set()
        self._wake = anyio.Event()
        self._missed = False

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Wake queues until cancelled; ready when no job is missed any more."""
        connection = self._bus.connection
        try:
            for queue in self._queues:
                await self._listen(queue)
            await connection.flush()
            connection.on_reconnect.add(self._recheck)
            await self._look()
            await self._start_woken()
            task_status.started()
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                try:
                    if self._missed:
                        await self._look()
                        self._missed = False
                    await self._start_woken()
                except* TrineError:  # away
                    await anyio.sleep(_AGAIN_SECONDS)
                    self._recheck()
        finally:
            connection.on_reconnect.discard(self._recheck)
            for listener in self._listeners.values():
                listener.drop()

    async def _listen(self, queue: str) -> None:
        def knock(_: object) -> None:
            self._woken.add(queue)
            self._wake.set()

        subject = self._bus.names.stored_job(queue)
        self._listeners[queue] = await self._bus.connection.listen(subject, knock, confirm=False)

    async def _look(self) -> None:
        """Wake the queues that have jobs, and those that had: their consumers exist."""
        names = self._bus.names
        for consumer in await self._bus.consumers(names.jobs):
            self._woken.add(consumer.partition("--")[0])
        for subject in await self._bus.subjects(names.jobs, names.job("*", "*", "*", "*")):
            self._woken.add(subject.removeprefix(f"{names.namespace}.job.").partition(".")[0])

    async def _start_woken(self) -> None:
        async with anyio.create_task_group() as starting:
            for queue in self._woken & self._queues.keys():
                starting.start_soon(self._start, queue)
            self._woken.clear()

    async def _start(self, queue: str) -> None:
        await self._queues[queue]()
        del self._queues[queue]
        await self._listeners.pop(queue).close()

    def _recheck(self) -> None:
        self._missed = True
        self._wake.set()
