"""The handle on one job: its result, its progress, its state, and its end before time."""

import math
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Literal, Self, TypeVar

import anyio

from trine import payload, wire
from trine.bus import Bus, Message, Stored
from trine.errors import (
    CancelledByCallerError,
    DeadlineError,
    NotFoundError,
    TrineError,
    UnavailableError,
    WriteConflictError,
)
from trine.jobs import results, unique
from trine.jobs.message import KEEP_SECONDS, Ref
from trine.transport.connection import Msg

O = TypeVar("O")  # noqa: E741 - output, as I is input
Status = Literal["scheduled", "queued", "running", "done", "failed", "cancelled"]
_CHECK_SECONDS = 5.0  # what is told while the connection is away is not heard
_FENCE_SECONDS = 3600.0  # a cancelled job keeps at least so long that it was


class Job(Generic[O]):
    """The handle on a job, from any process: ``client.job("queue/id")``."""

    def __init__(self, bus: Bus, ref: Ref, decode: Callable[[bytes], O] | None = None) -> None:
        self._bus = bus
        self._ref = ref
        self._decode = decode

    @property
    def queue(self) -> str:
        """The queue in which it is; a function has one of its own."""
        return self._ref.queue

    @property
    def id(self) -> str:
        """The id, unique in its queue."""
        return self._ref.id

    @property
    def ref(self) -> str:
        """The name of the job in the whole system: ``queue/id``."""
        return str(self._ref)

    def __repr__(self) -> str:
        return f"Job({self.ref!r})"

    # --- what it gave --------------------------------------------------------------------------

    async def result(self, timeout: float = 60.0) -> O:
        """Wait for the result; raises what the function raised when it will not be retried.

        `DeadlineError` after *timeout* seconds; the job goes on, and may be asked again.
        `CancelledByCallerError` when it was cancelled.
        """
        names = self._bus.names
        end = time.monotonic() + timeout
        async with _Heard(self._bus, names.result(*self._ref)) as heard:
            found = await self._look()
            while found is None:
                left = end - time.monotonic()
                if left <= 0:
                    text = f"job {self.ref} has no result after {timeout:g} s"
                    raise DeadlineError(text, job=self.ref)
                found = await heard.next(min(left, _CHECK_SECONDS))
                if found is None and end > time.monotonic():
                    found = await self._look()
        if wire.ERROR in found.headers:
            raise wire.decode_error(found.headers, found.payload)
        content = await payload.unpack(self._bus, found.headers, found.payload)
        return self._decode(content) if self._decode else wire.loads(content)

    async def progress(self) -> Any:
        """Return what the job said last of its progress, or None."""
        subject = self._bus.names.progress(*self._ref)
        found = await self._bus.last(self._bus.names.results, subject)
        return None if found is None or found.gone else await self._value(found)

    async def follow(self) -> AsyncGenerator[Any, None]:
        """Give the progress as it comes, the latest if it comes too fast, until the job ends.

        How it ended, `result` says.
        """
        names = self._bus.names
        said, ended = names.progress(*self._ref), names.result(*self._ref)
        last = 0
        async with _Heard(self._bus, said, ended) as heard:
            while True:
                try:
                    found = await self._bus.latest(names.results, [said, ended])
                except UnavailableError:
                    if not last:
                        raise
                    found = []
                for one in found:
                    if one.subject == said and one.sequence > last:
                        last = one.sequence
                        yield await self._value(one)
                if any(one.subject == ended for one in found):
                    return
                await heard.next(_CHECK_SECONDS)

    async def _value(self, stored: Stored) -> Any:
        return wire.loads(await payload.unpack(self._bus, stored.headers, stored.payload))

    async def _look(self) -> Stored | None:
        try:
            return await results.find(self._bus, self._ref)
        except UnavailableError:
            if self._bus.connection.is_closed:
                raise
            return None  # away: it comes back within the time of who waits, or not

    # --- where it is ---------------------------------------------------------------------------

    async def status(self) -> Status:
        """Return where the job is; ``running`` also between two attempts.

        `NotFoundError` when nothing is known of it: it never was, or its result is kept no longer.
        """
        bus, names = self._bus, self._bus.names
        pattern = names.job(self.queue, "*", "*", self.id)
        for _ in range(2):  # again: it may move on while it is looked for
            if await bus.latest(names.record, [names.delayed(self.queue, "*", "*", self.id)]):
                return "scheduled"
            stored = await bus.latest(names.jobs, [pattern])
            found = await results.find(bus, self._ref)
            if found is not None:
                return ended_as(found)
            if stored:
                taken = await taken_up_to(bus, stored[0].subject)
                return "running" if stored[0].sequence <= taken else "queued"
        if await bus.latest(names.record, [names.relayed(pattern)]):
            return "queued"  # on its way, or ended with a result that is not kept
        raise NotFoundError(f"no job {self.ref}", job=self.ref)

    async def cancel(self) -> bool:
        """End the job now: one that waits is removed, one that runs is stopped wherever it runs.

        Its result is a `CancelledByCallerError`. False when it had ended before, or never was.
        """
        bus, names = self._bus, self._bus.names
        if await results.find(bus, self._ref) is not None:
            return False
        found = await bus.latest(names.jobs, [names.job(self.queue, "*", "*", self.id)])
        found += await bus.latest(names.record, [names.job_guard(*self._ref)])
        if not found:
            return False
        headers = found[0].headers
        if not await self._fence(headers):
            return False
        record = names.delayed(self.queue, "*", "*", self.id)
        await bus.api(f"STREAM.PURGE.{names.record}", {"filter": record})
        waiting = names.job(self.queue, "*", "*", self.id)
        await bus.api(f"STREAM.PURGE.{names.jobs}", {"filter": waiting})
        bus.connection.send(names.stop(self.queue, self.id))
        await unique.release(bus, self._ref, headers)
        await payload.discard(bus, headers)
        return True

    async def _fence(self, headers: Any) -> bool:
        """Make the end known before anything else: whoever runs it now has lost."""
        said = headers.get(wire.KEEP)
        seconds = max(_FENCE_SECONDS, KEEP_SECONDS if said is None else float(said))
        failed, body = wire.encode_error(CancelledByCallerError(f"job {self.ref} was cancelled"))
        head = {**failed, wire.TTL: f"{round(seconds)}s", wire.EXPECTED_SEQUENCE: "0"}
        try:
            await self._bus.store(*Message(self._bus.names.result(*self._ref), body, head))
        except WriteConflictError:
            return False
        return True


class _Heard:
    """What is told of one job while somebody waits for it."""

    def __init__(self, bus: Bus, *subjects: str) -> None:
        self._bus = bus
        self._subjects = subjects
        self._listeners: list[Any] = []
        self._send, self._receive = anyio.create_memory_object_stream[Stored | None](math.inf)

    async def __aenter__(self) -> Self:
        connection = self._bus.connection
        try:
            for subject in self._subjects:
                told = self._bus.names.told(subject)
                # Not confirmed: the read that follows reaches the server after it.
                self._listeners.append(await connection.listen(told, self._hear, confirm=False))
        except BaseException:
            await self.__aexit__()
            raise
        connection.on_reconnect.add(self._again)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._bus.connection.on_reconnect.discard(self._again)
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            for listener in self._listeners:
                await listener.close()
        self._send.close()
        self._receive.close()

    def _hear(self, message: Msg) -> None:
        self._send.send_nowait(Stored.of(message))

    def _again(self) -> None:
        self._send.send_nowait(None)

    async def next(self, seconds: float) -> Stored | None:
        """Return what is told next; None when it is time to look for oneself."""
        with anyio.move_on_after(seconds):
            return await self._receive.receive()
        return None


def ended_as(result: Stored) -> Status:
    """Return how a job ended whose result this is."""
    error = result.headers.get(wire.ERROR)
    if error is None:
        return "done"
    return "cancelled" if error.startswith(f"{CancelledByCallerError.code}:") else "failed"


async def taken_up_to(bus: Bus, subject: str) -> int:
    """Return up to which sequence the jobs beside *subject* were given to workers."""
    queue, requirement, lane = subject.split(".")[-4:-1]
    base = f"{queue}--{requirement}"
    names = [base, f"{base}--{lane}", f"{base}--normal", f"{base}--none"]
    taken = 0
    for name in dict.fromkeys(names):
        try:
            found = await bus.api(f"CONSUMER.INFO.{bus.names.jobs}.{name}")
        except TrineError:
            continue
        taken = max(taken, int(found["delivered"]["stream_seq"]))
        break
    return taken
