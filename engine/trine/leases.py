"""Leases: keys that expire unless their holder renews them."""

import time
from dataclasses import dataclass

import anyio
import structlog
from anyio.abc import TaskStatus

from trine import wire
from trine.bus import Bus, Stored
from trine.errors import TrineError, WriteConflictError

log = structlog.get_logger("trine")


@dataclass(slots=True)
class Lease:
    """One key in the bucket of leases. Its revision is a fencing token: it only grows."""

    bus: Bus
    key: str
    payload: bytes
    ttl_seconds: float
    revision: int = 0
    renewed: float = 0.0  # monotonic

    @property
    def held(self) -> bool:
        """Whether the last renewal is recent enough for the key to exist still."""
        return self.revision > 0 and time.monotonic() - self.renewed < self.ttl_seconds

    async def take(self) -> bool:
        """Take the lease if nobody holds it."""
        found = await self.bus.last(self.bus.names.leases, self.bus.names.lease(self.key))
        if found is not None and not found.gone:
            return False
        try:
            await self._write(0 if found is None else found.sequence)
        except WriteConflictError:
            return False
        return True

    async def renew(self) -> None:
        """Extend the lease; `WriteConflictError` when somebody else has it by now."""
        await self._write(self.revision)

    async def _write(self, expected: int | None) -> None:
        headers = {wire.TTL: f"{max(1, round(self.ttl_seconds))}s"}
        if expected is not None:
            headers[wire.EXPECTED_SEQUENCE] = str(expected)
        before = time.monotonic()
        subject = self.bus.names.lease(self.key)
        self.revision = await self.bus.store(subject, self.payload, headers)
        self.renewed = before

    async def keep(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Announce *payload* under a key that is ours alone, until cancelled; then delete it.

        While the server is away the key expires; it comes back with the next renewal.
        """
        await self._write(None)
        task_status.started()
        try:
            while True:
                await anyio.sleep(self.ttl_seconds / 3)
                try:
                    await self._write(None)
                except TrineError as error:
                    log.warning("lease_not_renewed", key=self.key, error=str(error))
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self.release()

    async def release(self) -> None:
        """Give the lease back; nothing happens when somebody else has it by now."""
        headers = {wire.KV_OPERATION: "DEL", wire.EXPECTED_SEQUENCE: str(self.revision)}
        try:
            await self.bus.store(self.bus.names.lease(self.key), b"", headers)
        except TrineError as error:
            log.debug("lease_not_released", key=self.key, error=str(error))
        self.revision = 0


async def held(bus: Bus, pattern: str) -> list[Stored]:
    """Return the leases that match *pattern* and have not expired."""
    found = await bus.latest(bus.names.leases, [bus.names.lease(pattern)])
    return [stored for stored in found if not stored.gone]
