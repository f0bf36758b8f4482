"""Settlement: running the handler for what is in hands, and telling the server how it ended.

What ends well is acknowledged, what fails is handed back with its delay, and what cannot succeed
goes to the dead letters; meanwhile it is kept alive. One settlement may serve several consumers.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import anyio
import structlog

from trine import payload, wire
from trine.bus import Bus
from trine.consuming.delivery import Delivery, Handler, NotOursError, OnDead
from trine.errors import JobFailedError, RetryLater, TrineError, WriteConflictError
from trine.retry import Retry

log = structlog.get_logger("trine")

_NS = 1_000_000_000
_EXCUSE_SECONDS = 14 * 24 * 3600
_AGAIN = b'-NAK {"delay": 5000000000}'
_OURS = (wire.REDRIVE, wire.ORIGIN, wire.ORIGIN_SEQUENCE, wire.ORIGIN_STREAM, wire.CONSUMER)


@dataclass(slots=True)
class _Held:
    """One delivery in hands."""

    delivery: Delivery
    task: asyncio.Task[None] | None = None
    stopped: bool = False


class Settlement:
    """The deliveries that run in this process for one handler."""

    def __init__(
        self,
        bus: Bus,
        stream: str,
        source: str,
        handle: Handler,
        *,
        retry: Retry,
        ack_wait: float,
        on_dead: OnDead | None,
        ended: Callable[[], None],
        owns_payload: bool = False,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._source = source  # under which its dead letters are listed
        self._handle = handle
        self._retry = retry
        self._ack_wait = ack_wait
        self._on_dead = on_dead
        self._ended = ended
        self._owns_payload = owns_payload  # a large payload goes when its message has ended
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: dict[str, _Held] = {}
        self._returning: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._held)

    def consumers(self) -> list[str]:
        """Return of which consumer each delivery in hands is."""
        return [held.delivery.consumer for held in self._held.values()]

    def start(self, delivery: Delivery) -> None:
        """Run the handler in a task of its own."""
        # A plain task: a task group and a scope for each cost more than a short handler does.
        held = self._held[delivery.reply] = _Held(delivery)
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        held.task = self._loop.create_task(self._one(held))

    def hand_back(self, delivery: Delivery) -> None:
        """Give back what there is no place for; it does not count as an attempt."""
        task = asyncio.get_running_loop().create_task(self._return(delivery))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    def stop(self, concerned: Callable[[Delivery], bool]) -> None:
        """Stop what runs for the deliveries that are *concerned*, and run them no more."""
        for held in tuple(self._held.values()):
            if held.task is not None and concerned(held.delivery):
                held.stopped = True
                held.task.cancel()

    async def keep_alive(self) -> None:
        """Tell the server, until cancelled, that what is in hands is being worked on."""
        while True:
            await anyio.sleep(self._ack_wait / 3)
            for held in tuple(self._held.values()):
                self._answer(held.delivery, b"+WPI")

    async def close(self) -> None:
        """Cancel what runs, hand it back and wait for its end."""
        tasks = [held.task for held in self._held.values() if held.task is not None]
        for task in tasks:
            task.cancel()
        tasks += self._returning
        if tasks:
            await asyncio.wait(tasks)

    # --- one delivery --------------------------------------------------------------------------

    async def _one(self, held: _Held) -> None:
        delivery = held.delivery
        try:
            headers = delivery.headers
            if delivery.attempt > self._retry.attempts:
                await self._check_lost(delivery)
            if headers and (
                wire.OBJECT in headers or wire.REDRIVE in headers or wire.MARKER_REASON in headers
            ):
                prepared = await self._prepared(delivery)
                if prepared is not None:
                    await self._handle(prepared)
            else:
                await self._handle(delivery)
            self._answer(delivery, b"+ACK")
            await self._discard(delivery)
        except asyncio.CancelledError:
            if held.stopped:
                self._answer(delivery, b"+ACK")
                return
            with contextlib.suppress(TimeoutError):  # the process ends
                async with asyncio.timeout(1):
                    await self._return(delivery)
            raise
        except NotOursError as error:
            log.warning("delivery_abandoned", consumer=delivery.consumer, why=str(error))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises has a consequence
            await self._failed(delivery, error)
        finally:
            self._held.pop(delivery.reply, None)
            self._ended()

    async def _prepared(self, delivery: Delivery) -> Delivery | None:
        """Return what the handler is to see; None: nothing."""
        headers = dict(delivery.headers)
        if wire.MARKER_REASON in headers and ".redrive." in delivery.subject:
            return None  # a dead letter that nobody took in time has expired
        content = await payload.unpack(self._bus, headers, delivery.payload)
        headers.pop(wire.OBJECT, None)
        subject, sequence = delivery.subject, delivery.sequence
        if wire.ORIGIN in headers:
            subject, sequence = headers[wire.ORIGIN], int(headers[wire.ORIGIN_SEQUENCE])
        for name in _OURS:
            headers.pop(name, None)
        for name in [one for one in headers if one.startswith(wire.WAS)]:
            headers[name.removeprefix(wire.WAS)] = headers.pop(name)
        return replace(
            delivery, subject=subject, sequence=sequence, payload=content, headers=headers
        )

    async def _check_lost(self, delivery: Delivery) -> None:
        """Raise when all attempts ended with the death of their worker, or without an answer."""
        tried = delivery.attempt - 1 - await self._excused(delivery)
        if tried >= self._retry.attempts:
            raise _LostError(f"given to {tried} workers, and none of them came to an end with it")

    async def _failed(self, delivery: Delivery, error: Exception) -> None:
        facts = {
            "consumer": delivery.consumer,
            "attempt": delivery.attempt,
            "error": f"{type(error).__name__}: {error}",
        }
        try:
            delay = await self._delay(delivery, error)
            if delay is not None:
                log.warning("delivery_failed", retry_in=round(delay, 3), **facts)
                self._answer(delivery, b"-NAK " + wire.dumps({"delay": int(delay * _NS)}))
                return
            log.error("delivery_dead", **facts)
            await self._bury(delivery, error)
            if self._on_dead is not None:
                await self._on_dead(delivery, error)
            self._answer(delivery, b"+TERM")
        except TrineError as fault:  # not buried: it comes again
            log.warning("dead_letter_failed", consumer=delivery.consumer, error=str(fault))
            self._answer(delivery, _AGAIN)

    async def _delay(self, delivery: Delivery, error: Exception) -> float | None:
        if isinstance(error, _LostError):
            return None
        delay = self._retry.delay(delivery.attempt, error)
        if isinstance(error, RetryLater):
            await self._excuse(delivery)
        elif delay is None and delivery.attempt > 1:
            excused = await self._excused(delivery)
            if excused:
                delay = self._retry.delay(max(1, delivery.attempt - excused), error)
        return delay

    async def _bury(self, delivery: Delivery, error: Exception) -> None:
        kept = {
            wire.WAS + name if name.startswith("Nats-") else name: text
            for name, text in delivery.headers.items()
            if name != wire.REDRIVE
        }
        headers = {
            wire.ORIGIN: delivery.subject,
            wire.ORIGIN_SEQUENCE: str(delivery.sequence),
            **kept,  # those of a letter that dies again say where it was at first
            wire.ORIGIN_STREAM: self._stream,
            wire.CONSUMER: delivery.consumer,
            wire.REASON: f"{getattr(error, 'code', 'internal')}: {error}"[:500],
            wire.ATTEMPT: str(delivery.attempt),
            wire.EXPECTED_SEQUENCE: "0",
        }
        letter = f"{self._stream}-{headers[wire.ORIGIN_SEQUENCE]}"
        if again := delivery.headers.get(wire.REDRIVE):  # the letter before may not be deleted yet
            letter += f"-{again}"
        subject = self._bus.names.dead_letter(wire.token(self._source), letter)
        with contextlib.suppress(WriteConflictError):  # buried already, and not answered
            await self._bus.store(subject, delivery.payload, headers)

    async def _discard(self, delivery: Delivery) -> None:
        if self._owns_payload and wire.OBJECT in delivery.headers:
            try:
                await payload.discard(self._bus, delivery.headers)
            except TrineError as error:
                log.warning("payload_not_discarded", error=str(error))

    # --- what does not count -------------------------------------------------------------------

    async def _return(self, delivery: Delivery) -> None:
        with contextlib.suppress(TrineError):
            await self._excuse(delivery)
        self._answer(delivery, b"-NAK")

    async def _excused(self, delivery: Delivery) -> int:
        """Return how many deliveries of this message do not count as attempts."""
        names = self._bus.names
        subject = names.excused(delivery.consumer, delivery.sequence)
        found = await self._bus.last(names.results, subject)
        return 0 if found is None or found.gone else int(found.payload)

    async def _excuse(self, delivery: Delivery) -> None:
        excused = await self._excused(delivery) + 1
        subject = self._bus.names.excused(delivery.consumer, delivery.sequence)
        headers = {wire.TTL: f"{_EXCUSE_SECONDS}s"}
        await self._bus.store(subject, b"%d" % excused, headers)

    def _answer(self, delivery: Delivery, verdict: bytes) -> None:
        with contextlib.suppress(TrineError):  # away: the server hands it out again
            self._bus.connection.send(delivery.reply, verdict)


class _LostError(JobFailedError):
    """All attempts are over, and none of them said how it ended."""
