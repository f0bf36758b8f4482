"""Durable consumers: the one loop behind events, ticks, changed keys and most queues.

A standing pull asks for no more than there are free places, so that work waits at the server,
where another worker can take it. How what was taken ends is `trine.consuming.settlement`'s.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskStatus

from trine import wire
from trine.bus import Bus
from trine.consuming.delivery import Delivery, Handler, NotOursError, OnDead
from trine.consuming.durable import FORGET_SECONDS, Deliver, Durable
from trine.consuming.settlement import Settlement
from trine.errors import TrineError
from trine.retry import Retry
from trine.transport.connection import Listener, Msg

_HEARTBEAT_SECONDS = 5.0
_EXPIRES_SECONDS = 30.0
_AGAIN_SECONDS = 0.5


async def make(durable: Durable) -> None:
    """Create the consumer, or change it to what is asked for now."""
    await durable.ensure()


@dataclass(slots=True)
class Consumer:
    """A durable consumer called *name* on *stream*, shared by every process that runs it.

    *deliver* is heeded when the server makes the consumer; later it goes on where it was. What a
    dead letter of it held, and only that, comes again on a subject of its own.
    """

    bus: Bus
    stream: str
    name: str
    filters: list[str]
    handle: Handler
    concurrency: int = 16
    ack_wait: float = 30.0
    deliver: Deliver = "all"
    retry: Retry = field(default_factory=Retry)
    on_dead: OnDead | None = None
    max_ack_pending: int = 10_000  # in the hands of all processes together
    inactive_seconds: float | None = FORGET_SECONDS  # kept though nobody runs it; None: for ever
    source: str = ""  # under which its dead letters are listed; default: its name
    owns_payload: bool = False  # a large payload is deleted when its message has ended
    prepare: Callable[[Durable], Awaitable[None]] = make  # how the server gets to know it

    _durable: Durable = field(init=False)
    _settlement: Settlement = field(init=False)
    _asked: int = field(default=0, init=False)
    _heard: float = field(default=0.0, init=False)
    _wake: anyio.Event = field(default_factory=anyio.Event, init=False)
    _inbox: str = field(default="", init=False)
    _listener: Listener | None = field(default=None, init=False)
    _lost: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        names = self.bus.names
        again = [] if self.stream == names.jobs else [names.redrive(self.stream, self.name, "*")]
        self._durable = Durable(
            self.bus,
            self.stream,
            self.name,
            (*self.filters, *again),
            self.ack_wait,
            self.deliver,
            self.max_ack_pending,
            self.inactive_seconds,
        )
        self._settlement = Settlement(
            self.bus,
            self.stream,
            self.source or self.name,
            self.handle,
            retry=self.retry,
            ack_wait=self.ack_wait,
            on_dead=self.on_dead,
            ended=self._wake_up,
            owns_payload=self.owns_payload,
        )

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
                tasks.start_soon(self._settlement.keep_alive)
                tasks.start_soon(self._wake_on, stopping)
                await self._open()
                task_status.started()
                while not stopping.is_set():
                    self._wake = anyio.Event()
                    await self._pull()
                    with anyio.move_on_after(_AGAIN_SECONDS if self._lost else _HEARTBEAT_SECONDS):
                        await self._wake.wait()
                await self._close()
                while len(self._settlement):
                    self._wake = anyio.Event()
                    await self._wake.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.bus.connection.on_reconnect.discard(self._reset)
            if self._listener is not None:
                self._listener.drop()  # nobody is left to handle what comes now
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self._settlement.close()
                await self._close()

    async def ensure(self) -> None:
        """Create the consumer, or change it to what is asked for now, but for where it starts."""
        await self.prepare(self._durable)

    def stop(self, concerned: Callable[[Delivery], bool]) -> None:
        """Stop what runs for the deliveries that are *concerned*, and run them no more."""
        self._settlement.stop(concerned)

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
            # After a restart of the server the old pull is gone, and perhaps the consumer is.
            self._lost = True
            try:
                await self._close()
                await self.ensure()
                await self._open()
            except TrineError:
                return  # away: the next turn tries again
        free = self.concurrency - len(self._settlement) - self._asked
        if free <= 0 or (self._asked and free < self.concurrency / 2):
            return
        if not self._asked:
            self._heard = time.monotonic()  # nothing was to be heard meanwhile
        with contextlib.suppress(TrineError):
            self._durable.pull(
                self._inbox, free, seconds=_EXPIRES_SECONDS, heartbeat=_HEARTBEAT_SECONDS
            )
            self._asked += free

    def _receive(self, message: Msg) -> None:
        self._heard = time.monotonic()
        status = (message.headers or {}).get(wire.STATUS)
        if status is None:
            self._asked = max(0, self._asked - 1)
            self._settlement.start(Delivery.of(message))
        elif status != "100":  # 100: heartbeat; the others end a pull
            left = (message.headers or {}).get("Nats-Pending-Messages")
            self._asked = max(0, self._asked - int(left)) if left else 0
            # A deleted consumer is made again; anything else asks again.
            self._lost |= "Deleted" in (message.headers or {}).get(wire.DESCRIPTION, "")
            self._wake_up()

    def _wake_up(self) -> None:
        self._wake.set()

    def _reset(self) -> None:
        self._lost = True
        self._wake_up()

    async def _wake_on(self, stopping: anyio.Event) -> None:
        await stopping.wait()
        self._wake_up()


__all__ = [
    "FORGET_SECONDS",
    "Consumer",
    "Deliver",
    "Delivery",
    "Handler",
    "NotOursError",
    "OnDead",
]
