"""Coalescing: at most one run for each key in a time, over all replicas, never without the last."""

from datetime import UTC, datetime

import anyio

from trine import wire
from trine.bus import Bus
from trine.consuming.consumer import Delivery
from trine.errors import RetryLater, WriteConflictError

_SHORTEST = 0.05


class Coalescer:
    """Lets one delivery of each subject through in *seconds*; an older one gives way to a newer.

    *stream* keeps the latest message of each subject, so that what gives way is delivered again as
    the newer one. Who runs holds a lease that no replica releases: it runs out.
    """

    def __init__(self, bus: Bus, stream: str, name: str, seconds: float) -> None:
        self._bus = bus
        self._stream = stream
        self._name = wire.token(name)
        self._seconds = seconds
        self._waiting: dict[str, anyio.Event] = {}  # who waits here, by subject
        self._stopped = False

    def stop(self) -> None:
        """Hand back what waits: another replica, or the next one, takes it."""
        self._stopped = True
        for one in self._waiting.values():
            one.set()

    async def turn(self, delivery: Delivery) -> bool:
        """Wait for the turn of this delivery; False when a newer one is there instead.

        `RetryLater` when this replica stops before.
        """
        subject = delivery.subject
        if (elder := self._waiting.get(subject)) is not None:
            elder.set()
        mine = self._waiting[subject] = anyio.Event()
        try:
            while True:
                latest = await self._bus.last(self._stream, subject)
                if latest is None or latest.sequence > delivery.sequence:
                    return False
                if self._stopped:
                    raise RetryLater("this replica stops", after=0)
                if mine.is_set():
                    return False
                left = await self._take(subject)
                if left <= 0:
                    return True
                with anyio.move_on_after(left):
                    await mine.wait()
        finally:
            if self._waiting.get(subject) is mine:
                del self._waiting[subject]

    async def _take(self, subject: str) -> float:
        """Take the turn of *subject* and return 0, or the seconds until it may be free."""
        bus = self._bus
        lease = bus.names.lease(f"coalesce.{self._name}.{bus.names.key_of(subject)}")
        held = await bus.last(bus.names.leases, lease)
        if held is None or held.gone:
            headers = {
                wire.TTL: f"{round(self._seconds * 1000)}ms",
                wire.EXPECTED_SEQUENCE: str(held.sequence if held else 0),
            }
            try:
                await bus.store(lease, b"{}", headers)
                return 0
            except WriteConflictError:
                return self._seconds
        taken = datetime.fromisoformat(held.headers[wire.TIMESTAMP])
        left = self._seconds - (datetime.now(UTC) - taken).total_seconds()
        return min(max(left, _SHORTEST), self._seconds)
