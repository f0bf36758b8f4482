"""The time and the client of one request: who waits for it, and for how long."""

import asyncio
from typing import Any

from starlette.types import Receive

from trine.errors import RequestTimeoutError, TrineError, UnavailableError

_MOMENT_SECONDS = 0.05  # what takes longer costs more: a second timer, or a task that listens


class Watch:
    """Cancels a request whose body does not arrive in time, or whose client hangs up.

    One timer, for the first moment: nearly every request is over by then.
    """

    __slots__ = (
        "_calling",
        "_loop",
        "_receive",
        "_seconds",
        "_task",
        "_ticked",
        "_timer",
        "_watcher",
        "_why",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, receive: Receive, body_seconds: float
    ) -> None:
        self._loop = loop  # given: before Python 3.12 finding it costs a system call
        self._receive = receive
        self._seconds = body_seconds
        self._task: asyncio.Task[Any] | None = asyncio.current_task(loop)
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(_MOMENT_SECONDS, self._tick)
        self._watcher: asyncio.Task[None] | None = None
        self._calling = self._ticked = False
        self._why = ""

    def call(self) -> None:
        """Say that the body is read: from now on nobody else receives, and hanging up counts."""
        self._calling = True
        if self._ticked:
            self._tick()
        elif self._timer is None:  # it was closed while a form was read
            self._timer = self._loop.call_later(_MOMENT_SECONDS, self._tick)

    def close(self) -> None:
        """End: there is an answer, or somebody else watches."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def reason(self) -> TrineError | None:
        """Return what to answer after a cancellation; None when nobody is there any more."""
        if self._why == "hung up":
            return None
        if self._why == "late":
            return RequestTimeoutError(f"the body did not arrive within {self._seconds:g} s")
        return UnavailableError("the gateway stops")

    def _tick(self) -> None:
        self._ticked = True
        if self._timer is not None:
            self._timer.cancel()
        if self._calling:
            self._watcher = self._loop.create_task(self._listen())
        else:
            self._timer = self._loop.call_later(self._seconds, self._cancel, "late")

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel("hung up")

    def _cancel(self, why: str) -> None:
        self._why = why
        if self._task is not None:
            self._task.cancel()
