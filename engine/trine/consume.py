"""Durable consumers: the one loop behind jobs, events, ticks and changed keys.

A standing pull asks for no more than there are free places, so that work waits at the server,
where another worker can take it. What is being handled is kept alive, what fails is handed back
after its delay, and what cannot succeed goes to the dead letters, all at least once.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import structlog
from anyio.abc import TaskStatus

from trine import wire
from trine.bus import Bus
from trine.connection import Listener, Msg
from trine.errors import TrineError
from trine.retry import Retry

log = structlog.get_logger("trine")

_HEARTBEAT_SECONDS = 5.0
_EXPIRES_SECONDS = 30.0
_AGAIN_SECONDS = 0.5
_FORGET_SECONDS = 14 * 24 * 3600  # an abandoned consumer goes after this time
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message, in the hands of one handler."""

    subject: str
    payload: bytes
    headers: Mapping[str, str]
    attempt: int  # 1 for the first delivery
    sequence: int  # in its stream
    timestamp: float  # unix seconds by the server's clock
    reply: str

    @classmethod
    def of(cls, message: Msg) -> "Delivery":
        parts = message.reply.split(".")
        if len(parts) > 9:  # newer servers: $JS.ACK.<domain>.<account>.<stream>...
            parts = parts[2:]
        return cls(
            message.subject,
            message.data,
            message.headers or {},
            int(parts[4]),
            int(parts[5]),
            int(parts[7]) / _NS,
            message.reply,
        )


class NotOursError(Exception):
    """Raised by a handler whose message is in other hands by now: it is not answered at all.

    An acknowledgement from here would end the work of whoever has it.
    """


Handler = Callable[[Delivery], Awaitable[None]]
OnDead = Callable[[Delivery, Exception], Awaitable[None]]


@dataclass(slots=True)
class Consumer:
    """A durable consumer called *name* on *stream*, shared by every process that runs it."""

    bus: Bus
    stream: str
    name: str
    filters: list[str]
    handle: Handler
    concurrency: int = 16
    ack_wait: float = 30.0
    deliver: Literal["all", "new", "last_per_subject"] = "all"
    retry: Retry = field(default_factory=Retry)
    on_dead: OnDead | None = None
    forget: bool = True  # False: the consumer stays though nobody runs it

    _running: dict[str, Delivery] = field(default_factory=dict, init=False)
    _asked: int = field(default=0, init=False)
    _heard: float = field(default=0.0, init=False)
    _wake: anyio.Event = field(default_factory=anyio.Event, init=False)
    _inbox: str = field(default="", init=False)
    _listener: Listener | None = field(default=None, init=False)
    _tasks: Any = field(default=None, init=False)
    _lost: bool = field(default=False, init=False)

    async def run(
        self,
        stopping: anyio.Event,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Consume until *stopping* is set, then end what runs; cancelled: hand it back."""
        await self.ensure()
        self.bus.connection.on_reconnect.add(self._reset)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._keep_alive)
                tasks.start_soon(self._wake_on, stopping)
                await self._open()
                task_status.started()
                while not stopping.is_set():
                    self._wake = anyio.Event()
                    await self._pull()
                    with anyio.move_on_after(_AGAIN_SECONDS if self._lost else _HEARTBEAT_SECONDS):
                        await self._wake.wait()
                await self._close()
                while self._running:
                    self._wake = anyio.Event()
                    await self._wake.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.bus.connection.on_reconnect.discard(self._reset)
            if self._listener is not None:
                self._listener.drop()  # nobody is left to handle what comes now
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self._close()

    async def ensure(self) -> None:
        """Create the consumer, or change it to what is asked for now."""
        config: dict[str, Any] = {
            "durable_name": self.name,
            "name": self.name,
            "deliver_policy": self.deliver,
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait * _NS),
            "max_deliver": -1,  # the retry policy counts, so that nothing stays stuck in a queue
            "max_ack_pending": 10_000,
            "replay_policy": "instant",
        }
        if self.forget:
            config["inactive_threshold"] = _FORGET_SECONDS * _NS
        if len(self.filters) == 1:
            config["filter_subject"] = self.filters[0]
        else:
            config["filter_subjects"] = self.filters
        await self.bus.api(
            f"CONSUMER.CREATE.{self.stream}.{self.name}",
            {"stream_name": self.stream, "config": config},
        )

    # --- asking --------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._asked = 0
        self._lost = False
        self._heard = time.monotonic()
        inbox = self.bus.connection.new_inbox()
        self._listener = await self.bus.connection.listen(inbox, self._receive)
        self._inbox = inbox

    async def _close(self) -> None:
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.close()  # the server forgets the pulls of this inbox

    async def _pull(self) -> None:
        silent = time.monotonic() - self._heard > 2.5 * _HEARTBEAT_SECONDS
        if self._lost or (self._asked and silent):
            self._lost = True
            try:
                await self._close()
                await self.ensure()
                await self._open()
            except TrineError:
                return  # away: the next turn tries again
        free = self.concurrency - len(self._running) - self._asked
        if free <= 0 or (self._asked and free < self.concurrency / 2):
            return
        body = {
            "batch": free,
            "expires": int(_EXPIRES_SECONDS * _NS),
            "idle_heartbeat": int(_HEARTBEAT_SECONDS * _NS),
        }
        if not self._asked:
            self._heard = time.monotonic()  # nothing was to be heard meanwhile
        with contextlib.suppress(TrineError):
            self.bus.connection.send(
                f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.name}",
                wire.dumps(body),
                self._inbox,
            )
            self._asked += free

    def _receive(self, message: Msg) -> None:
        self._heard = time.monotonic()
        status = (message.headers or {}).get(wire.STATUS)
        if status is None:
            self._asked = max(0, self._asked - 1)
            delivery = Delivery.of(message)
            self._running[delivery.reply] = delivery
            self._tasks.start_soon(self._one, delivery)
        elif status != "100":  # 100: heartbeat; the others end a pull
            left = (message.headers or {}).get("Nats-Pending-Messages")
            self._asked = max(0, self._asked - int(left)) if left else 0
            # A deleted consumer is made again; anything else asks again.
            self._lost |= "Deleted" in (message.headers or {}).get(wire.DESCRIPTION, "")
            self._wake.set()

    def _reset(self) -> None:
        self._lost = True
        self._wake.set()

    async def _wake_on(self, stopping: anyio.Event) -> None:
        await stopping.wait()
        self._wake.set()

    # --- handling ------------------------------------------------------------------------------

    async def _one(self, delivery: Delivery) -> None:
        try:
            await self.handle(delivery)
            self._answer(delivery, b"+ACK")
        except anyio.get_cancelled_exc_class():
            self._answer(delivery, b"-NAK")
            raise
        except NotOursError as error:
            log.warning("delivery_abandoned", consumer=self.name, why=str(error))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises has a consequence
            await self._failed(delivery, error)
        finally:
            self._running.pop(delivery.reply, None)
            self._wake.set()

    async def _failed(self, delivery: Delivery, error: Exception) -> None:
        delay = self.retry.delay(delivery.attempt, error)
        facts = {
            "consumer": self.name,
            "attempt": delivery.attempt,
            "error": f"{type(error).__name__}: {error}",
        }
        if delay is not None:
            log.warning("delivery_failed", retry_in=round(delay, 3), **facts)
            self._answer(delivery, b"-NAK " + wire.dumps({"delay": int(delay * _NS)}))
            return
        log.error("delivery_dead", **facts)
        try:
            if self.on_dead is not None:
                await self.on_dead(delivery, error)
            await self._bury(delivery, error)
            self._answer(delivery, b"+TERM")
        except TrineError as fault:  # not buried: it comes again
            log.warning("dead_letter_failed", consumer=self.name, error=str(fault))
            self._answer(delivery, b'-NAK {"delay": 5000000000}')

    async def _bury(self, delivery: Delivery, error: Exception) -> None:
        headers = {k: v for k, v in delivery.headers.items() if not k.startswith("Nats-")}
        headers[wire.REASON] = f"{getattr(error, 'code', 'internal')}: {error}"[:500]
        headers[wire.ATTEMPT] = str(delivery.attempt)
        headers["Trine-Subject"] = delivery.subject
        headers[wire.MSG_ID] = f"{self.name}-{delivery.sequence}"
        letter = f"{self.stream}-{delivery.sequence}"
        await self.bus.store(
            self.bus.names.dead_letter(wire.token(self.name), letter), delivery.payload, headers
        )

    def _answer(self, delivery: Delivery, verdict: bytes) -> None:
        with contextlib.suppress(TrineError):  # away: the server hands it out again
            self.bus.connection.send(delivery.reply, verdict)

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(self.ack_wait / 3)
            for delivery in tuple(self._running.values()):
                self._answer(delivery, b"+WPI")
