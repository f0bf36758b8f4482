"""Completions of functions, told to whoever observes them, and to nobody else."""

import contextlib
import time
from typing import Any

import anyio
from anyio.abc import TaskStatus
from pydantic import BaseModel, ConfigDict

from trine import leases, wire
from trine.bus import Bus, Stored
from trine.errors import TrineError
from trine.invocation import Invocation
from trine.transport.connection import Msg

_FORGET_SECONDS = 30.0  # after its last renewal: an observer renews three times in its TTL
_LIMIT_BYTES = 256 * 1024  # a larger payload is left out


class Completion(BaseModel):
    """How one run of a function ended. *input* and *output* are as JSON has them."""

    model_config = ConfigDict(frozen=True)

    function: str
    invocation: str
    worker: str
    attempt: int
    trigger: str | None
    ok: bool
    input: Any = None
    output: Any = None
    error: dict[str, Any] | None = None  # code and message
    started_at: float  # unix seconds
    milliseconds: float


class Observed:
    """Which functions somebody observes now, as the keys ``observe.<function>.<observer>`` say."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._observers: dict[str, tuple[str, float]] = {}  # key: function, seen at
        self.functions: frozenset[str] = frozenset()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the keys until cancelled; ready when those that exist are known."""
        names = self._bus.names
        listener = await self._bus.connection.listen(names.lease("observe.>"), self._receive)
        try:
            for stored in await leases.held(self._bus, "observe.>"):
                self._note(stored)
            self._refresh()
            task_status.started()
            while True:
                await anyio.sleep(_FORGET_SECONDS / 3)
                self._refresh()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await listener.close()

    def _receive(self, message: Msg) -> None:
        self._note(Stored.of(message))
        self._refresh()

    def _note(self, stored: Stored) -> None:
        key = self._bus.names.key_of(stored.subject)
        if stored.gone:
            self._observers.pop(key, None)
        else:
            function = key.removeprefix("observe.").rpartition(".")[0]
            self._observers[key] = (function, time.monotonic())

    def _refresh(self) -> None:
        limit = time.monotonic() - _FORGET_SECONDS
        self._observers = {key: one for key, one in self._observers.items() if one[1] > limit}
        self.functions = frozenset(function for function, _ in self._observers.values())

    def tell(
        self,
        invocation: Invocation,
        seconds: float,
        sent: bytes,
        output: bytes,
        error: BaseException | None,
    ) -> None:
        """Publish the completion of *invocation*: at most once, and nothing waits for it."""
        failed = None
        if error is not None:
            body = wire.loads(wire.encode_error(error)[1])
            failed = {"code": body["code"], "message": body["message"]}
        completion = Completion(
            function=invocation.function,
            invocation=invocation.id,
            worker=invocation.worker,
            attempt=invocation.attempt,
            trigger=invocation.trigger,
            ok=error is None,
            input=_shown(sent),
            output=_shown(output) if error is None else None,
            error=failed,
            started_at=time.time() - seconds,
            milliseconds=round(seconds * 1000, 3),
        )
        with contextlib.suppress(TrineError):
            subject = self._bus.names.done(invocation.function)
            self._bus.connection.send(
                subject, completion.model_dump_json().encode(), headers=invocation.headers()
            )


def _shown(payload: bytes) -> Any:
    if not payload or len(payload) > _LIMIT_BYTES:
        return None
    with contextlib.suppress(ValueError):
        return wire.loads(payload)
    return None
