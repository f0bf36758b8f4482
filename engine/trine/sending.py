"""Sending: durable calls, jobs in named queues, and events; stored when it returns."""

from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, overload

from trine import payload, wire
from trine.bus import Bus
from trine.errors import TrineError, UsageError, WriteConflictError
from trine.events import EventModel
from trine.events import message as event_message
from trine.jobs import queues, unique
from trine.jobs.handle import Job
from trine.jobs.message import ANY, Order, Prepared, Priority, Ref, job_token, prepare

if TYPE_CHECKING:
    from trine.function import Function

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741
EVENT_SECONDS = 8 * 24 * 3600  # large payloads of events outlive the events, which live 7 days


class Sends:
    """The ways to cause work later; part of a client and of the context of a handler."""

    bus: Bus

    @overload
    async def send(
        self,
        function: "Function[I, O]",
        value: I | dict[str, Any] | None = None,
        *,
        id: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        priority: Priority = "normal",
        keep: float | None = None,
    ) -> Job[O]: ...
    @overload
    async def send(
        self,
        function: str,
        value: Any = None,
        *,
        id: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        priority: Priority = "normal",
        keep: float | None = None,
    ) -> Job[Any]: ...
    async def send(
        self,
        function: "Function[Any, Any] | str",
        value: Any = None,
        *,
        id: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        priority: Priority = "normal",
        keep: float | None = None,
    ) -> Job[Any]:
        """Enqueue a durable call and return its handle at once: it runs at least once.

        *id* makes repeated sends one job, for 24 hours and for as long as its result is kept.
        *delay* in seconds, or *at* a time with a zone: not before. *keep*: for how many seconds
        the result is kept (a day; 0: not at all).
        """
        name, sent, decode = callee(function, value)
        order = Order(id, delay, at, priority, None, keep, ANY, name)
        return Job(self.bus, await self._enqueue(wire.function_queue(name), sent, order), decode)

    async def enqueue(
        self,
        queue: str,
        value: Any = None,
        *,
        id: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        priority: Priority = "normal",
        keep: float | None = None,
        key: str | None = None,
        unique: str | None = None,
        requirement: str = ANY,
    ) -> Job[Any]:
        """Put *value* into a named queue, for whoever has a Queue trigger on it.

        As `send`; and *key*: jobs with one key run in order where the queue is ``fifo``. *unique*:
        while a job with that key waits or runs, none is stored and that one's handle is returned.
        *requirement*: what a worker must meet to take it.
        """
        order = Order(id, delay, at, priority, key, keep, requirement)
        ref = await self._enqueue(queue, payload.encode(value), order, unique)
        return Job(self.bus, ref)

    async def _enqueue(
        self, queue: str, content: bytes, order: Order, key: str | None = None
    ) -> Ref:
        bus = self.bus
        reference: dict[str, str] = {}
        if len(content) > payload.INLINE_BYTES:
            content, reference = await payload.pack(bus, content, None)
        job = prepare(bus.names, queue, content, order, unique=key)
        if reference:
            job.message.headers.update(reference)  # type: ignore[union-attr]
        try:
            ref, new = await self._store(job, once=order.id is not None, key=key)
        except TrineError:
            await payload.discard(bus, reference)
            raise
        if not new:
            await payload.discard(bus, reference)
        return ref

    async def _store(self, job: Prepared, *, once: bool, key: str | None) -> tuple[Ref, bool]:
        """Store the job, unless there is one; return the one that counts, and whether it is new."""
        bus = self.bus
        if key is not None:
            return await unique.enqueue(bus, job, key, once=once)
        if not once and job.due is None:
            await bus.store(*job.message)
            return job.ref, True
        try:
            await bus.store(*job.recorded(bus.names, once=once))
        except WriteConflictError:
            return job.ref, False
        return job.ref, True

    @overload
    def job(self, id: str, *, function: "Function[Any, O]") -> Job[O]: ...
    @overload
    def job(
        self, id: str, *, function: str | None = None, queue: str | None = None
    ) -> Job[Any]: ...
    def job(
        self,
        id: str,
        *,
        function: "Function[Any, Any] | str | None" = None,
        queue: str | None = None,
    ) -> Job[Any]:
        """Return the handle on a job that somebody else sent: ``job("queue/id")``.

        Or ``job(id, function=...)``, whose result is then typed, or ``job(id, queue=...)``.
        """
        if function is None and queue is None:
            return Job(self.bus, Ref.parse(id))
        if function is None:
            return Job(self.bus, Ref(wire.name(str(queue), "queue"), job_token(id)))
        if isinstance(function, str):
            place = wire.function_queue(wire.function_id(function))
            return Job(self.bus, Ref(place, job_token(id)))
        place = wire.function_queue(function.id)
        return Job(self.bus, Ref(place, job_token(id)), function.decode_output)

    async def jobs(
        self, queue: "str | Function[Any, Any]", *, limit: int = 1000
    ) -> list[queues.JobInfo]:
        """Return the jobs of a queue or a function: delayed, waiting, running, ended and kept."""
        return await queues.jobs(self, queue, limit)

    async def emit(self, event: EventModel, *, id: str | None = None) -> None:
        """Emit an event; stored when this returns. One *id* within two minutes is one event."""
        message = event_message(self.bus.names, event, id)
        if len(message.payload) > payload.INLINE_BYTES:
            content, reference = await payload.pack(self.bus, message.payload, EVENT_SECONDS)
            message = message._replace(
                payload=content, headers={**(message.headers or {}), **reference}
            )
        await self.bus.store(*message)


def callee(function: "Function[Any, Any] | str", value: Any) -> tuple[str, bytes, Any]:
    """Return id, payload and decoder of a durable call."""
    if isinstance(function, str):
        return wire.function_id(function), payload.encode(value), None
    if function.streams:
        raise UsageError(f"{function.id} streams: it cannot be sent")
    return function.id, function.encode_input(value), function.decode_output
