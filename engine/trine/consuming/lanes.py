"""Lanes: several durable consumers that share one set of places, the first of them served first.

While there is work the lanes are asked in their order for what waits. When all are empty a standing
pull of one message is left on each; once the places are taken the others are withdrawn, and what
still arrives over the places is handed back at once, without counting as an attempt.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import TaskStatus

from trine import wire
from trine.bus import Bus
from trine.consuming.delivery import Delivery, Handler, OnDead
from trine.consuming.durable import Durable
from trine.consuming.settlement import Settlement
from trine.errors import TrineError
from trine.retry import Retry
from trine.transport.connection import Listener, Msg

_STAND_SECONDS = 20.0  # then all are asked anew: a pull that the server lost does no harm for long
_HEARTBEAT_SECONDS = 5.0  # not listened to: it makes the server look again
_SILENT_SECONDS = 0.03  # a lane that is held up elsewhere keeps the pull and says nothing
_AGAIN_SECONDS = 0.5


class Lanes:
    """Consumers of one stream in the order of their rank, with *concurrency* places together.

    *fair*: they have no rank; each time another one is asked first.
    """

    def __init__(
        self,
        bus: Bus,
        durables: Sequence[Durable],
        handle: Handler,
        *,
        concurrency: int,
        retry: Retry,
        on_dead: OnDead | None,
        source: str,
        owns_payload: bool,
        prepare: Callable[[Durable], Awaitable[None]],
        fair: bool = False,
    ) -> None:
        self._bus = bus
        self._durables = list(durables)
        self._prepare = prepare
        self._concurrency = concurrency
        self._fair = fair
        self._settlement = Settlement(
            bus,
            durables[0].stream,
            source,
            handle,
            retry=retry,
            ack_wait=durables[0].ack_wait,
            on_dead=on_dead,
            ended=self._wake_up,
            owns_payload=owns_payload,
        )
        self._asked = [0] * len(self._durables)  # messages that a lane was asked for at once
        self._standing: set[int] = set()  # lanes with a standing pull
        self._since = 0.0  # when the standing pulls were left
        self._turn = 0
        self._wake = anyio.Event()
        self._heard = anyio.Event()
        self._listener: Listener | None = None
        self._inbox = ""
        self._lost = False

    def stop(self, concerned: Callable[[Delivery], bool]) -> None:
        """Stop what runs for the deliveries that are *concerned*, and run them no more."""
        self._settlement.stop(concerned)

    async def run(
        self,
        stopping: anyio.Event,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Consume until *stopping* is set, then end what runs; cancelled: hand it back."""
        for durable in self._durables:
            await self._prepare(durable)
        self._bus.connection.on_reconnect.add(self._reset)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._settlement.keep_alive)
                tasks.start_soon(self._wake_on, stopping)
                await self._open()
                task_status.started()
                while not stopping.is_set():
                    self._wake = anyio.Event()
                    try:
                        await self._fill(stopping)
                    except TrineError:
                        self._lost = True  # away: the next turn tries again
                    with anyio.move_on_after(_AGAIN_SECONDS if self._lost else _STAND_SECONDS):
                        await self._wake.wait()
                await self._close()
                while len(self._settlement):
                    self._wake = anyio.Event()
                    await self._wake.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._bus.connection.on_reconnect.discard(self._reset)
            if self._listener is not None:
                self._listener.drop()
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self._settlement.close()
                await self._close()

    # --- asking --------------------------------------------------------------------------------

    @property
    def _free(self) -> int:
        return self._concurrency - len(self._settlement)

    async def _fill(self, stopping: anyio.Event) -> None:
        """Take what waits, as much as there are places; where nothing does, leave a pull."""
        if self._lost:
            await self._close()
            for durable in self._durables:
                await self._prepare(durable)
            self._lost = False
        if self._free <= 0:
            if self._standing:
                await self._close()  # the server forgets the pulls of this inbox
            return
        stale = self._standing and time.monotonic() - self._since > _STAND_SECONDS - 1
        order = self._order()
        if stale or (not self._standing.issuperset(order) and self._spare <= 0):
            await self._close()
        if self._listener is None:
            await self._open()
        if not (self._fair and self._spare >= len(order)):  # else a standing pull each is enough
            for lane in order:
                if lane not in self._standing and self._spare > 0 and not stopping.is_set():
                    await self._ask(lane)
        if self._free > 0 and not stopping.is_set():
            for lane in order:
                if lane not in self._standing:
                    self._stand(lane)

    @property
    def _spare(self) -> int:
        """Places that no standing pull may take."""
        return self._free - len(self._standing)

    def _order(self) -> list[int]:
        held = self._settlement.consumers()
        lanes = [
            lane
            for lane, durable in enumerate(self._durables)
            if held.count(durable.name) < durable.max_ack_pending  # else it is held up by us
        ]
        if self._fair and lanes:
            self._turn += 1
            first = self._turn % len(lanes)
            return lanes[first:] + lanes[:first]
        return lanes

    async def _ask(self, lane: int) -> None:
        durable = self._durables[lane]
        batch = min(self._spare, durable.max_ack_pending)
        self._asked[lane] = batch
        durable.pull(f"{self._inbox}.{lane}", batch)
        with anyio.move_on_after(_SILENT_SECONDS):
            while self._asked[lane] and not self._lost:
                self._heard = anyio.Event()
                await self._heard.wait()
        if self._asked[lane]:  # it waits at the server: as good as a standing pull
            self._asked[lane] = 0
            self._mark(lane)

    def _stand(self, lane: int) -> None:
        with contextlib.suppress(TrineError):
            self._durables[lane].pull(
                f"{self._inbox}.{lane}",
                1,
                seconds=_STAND_SECONDS + 10,
                heartbeat=_HEARTBEAT_SECONDS,
            )
            self._mark(lane)

    def _mark(self, lane: int) -> None:
        if not self._standing:
            self._since = time.monotonic()
        self._standing.add(lane)

    def _receive(self, message: Msg) -> None:
        status = (message.headers or {}).get(wire.STATUS)
        if status == "100":
            return
        if status is not None:
            lane = int(message.subject.rsplit(".", 1)[1])
            self._asked[lane] = 0
            self._standing.discard(lane)
            self._lost |= "Deleted" in (message.headers or {}).get(wire.DESCRIPTION, "")
        else:
            delivery = Delivery.of(message)
            lane = next(i for i, d in enumerate(self._durables) if d.name == delivery.consumer)
            if self._asked[lane]:
                self._asked[lane] -= 1
            else:
                self._standing.discard(lane)
            if self._free > 0:
                self._settlement.start(delivery)
            else:
                self._settlement.hand_back(delivery)
        self._heard.set()
        if status is not None or not any(self._asked):
            self._wake_up()

    async def _open(self) -> None:
        self._asked = [0] * len(self._durables)
        self._standing.clear()
        inbox = self._bus.connection.new_inbox()
        self._listener = await self._bus.connection.listen(f"{inbox}.*", self._receive)
        self._inbox = inbox

    async def _close(self) -> None:
        self._standing.clear()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.close()  # until it returns, what still comes has its place or goes back

    def _wake_up(self) -> None:
        self._wake.set()

    def _reset(self) -> None:
        self._lost = True
        self._heard.set()
        self._wake_up()

    async def _wake_on(self, stopping: anyio.Event) -> None:
        await stopping.wait()
        self._wake_up()
