"""The calls that run in one process: each can be stopped, by its caller, a timer, or silence."""

import asyncio
import time
from dataclasses import dataclass, field

from trine.calling import SILENT_SECONDS, caller
from trine.errors import CancelledByCallerError, TrineError
from trine.invocation import PROCESS
from trine.transport.connection import Msg

_SWEEP_SECONDS = 1.0


@dataclass(slots=True)
class Call:
    """One call that runs: a plain task, since a task group and a scope cost more than the call."""

    started: float = field(default_factory=time.monotonic)
    task: "asyncio.Task[object] | None" = None
    timer: int = 0  # number in the deadlines of the connection; 0: none
    stopped: TrineError | None = None

    def stop(self, why: TrineError) -> None:
        """Cancel it; its caller is told *why*."""
        if self.stopped is None and self.task is not None:
            self.stopped = why
            self.task.cancel()


class InFlight(dict[str, Call]):
    """The running calls of a process by invocation."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: dict[str, float] = {}
        self._since = time.monotonic()

    def cancel(self, invocation: str) -> None:
        """Stop the call because its caller asks so, if it runs here."""
        if (call := self.get(invocation)) is not None:
            call.stop(CancelledByCallerError("the call was cancelled by its caller"))

    def hear(self, message: Msg) -> None:
        """Note that the process at the end of the subject lives."""
        self._heard[message.subject.rsplit(".", 1)[1]] = time.monotonic()

    def reconnected(self) -> None:
        """Give everybody time: nobody could be heard while the server was away."""
        self._since = time.monotonic()

    async def close(self) -> None:
        """Cancel the calls that still run and wait for their end."""
        tasks = {call.task for call in self.values() if call.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def watch(self) -> None:
        """Stop the calls whose caller has died, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Stop the calls whose caller has not been heard for too long."""
        limit = now - SILENT_SECONDS
        if self._since > limit:
            return
        for invocation, call in tuple(self.items()):
            process = caller(invocation) if call.started < limit else None
            if process in (None, PROCESS):
                continue
            if self._heard.get(process, 0.0) < limit:
                call.stop(CancelledByCallerError(f"the caller of {invocation} has died"))
        self._heard = {process: at for process, at in self._heard.items() if at > limit}
