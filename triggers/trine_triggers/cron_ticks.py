"""The ticks of a cron schedule: what each means, and whether it is one to run."""

import contextlib
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import structlog
from pydantic import BaseModel

from trine import RetryLater, TriggerContext, wire
from trine.bus import Stored
from trine.consuming.consumer import Delivery
from trine.errors import TrineError, WriteConflictError
from trine_triggers.cron_expression import Every, last_fire, next_fire, parse

if TYPE_CHECKING:
    from trine_triggers.cron import Cron

log = structlog.get_logger("trine")

MENDS = "-mended"  # ends the name of what is put beside a schedule
_LATE_SECONDS = 5.0
_LOOK_SECONDS = (
    10.0  # after a start or a reconnection: a server, or a new leader, has fired by then
)
_ENDED_TTL = f"{8 * 24 * 3600}s"  # ticks themselves are kept for a week


class CronTick(BaseModel):
    """The payload of a tick, in UTC: the instant that was meant, and when the server fired."""

    scheduled_at: datetime
    fired_at: datetime


class Ticks:
    """The ticks of one binding, in the hands of one replica."""

    def __init__(self, trigger: "Cron", ctx: TriggerContext) -> None:
        self._trigger = trigger
        self._ctx = ctx
        self._bus = ctx.client.bus
        self._before: int | None = None  # ticks up to this one fell due while we were not there
        self.subject = self._bus.names.event("schedule", wire.token(ctx.binding.id), "tick")
        self.schedule = self._bus.names.schedule(place(ctx.binding.function.id, ctx.binding.id))
        self._ended = self._bus.names.state("cron", wire.token(ctx.binding.id))
        self._meaning = parse(trigger.expression)
        self._reconnected = anyio.Event()

    def reconnected(self) -> None:
        """What was stored meanwhile fell due while we were away."""
        self._before = None
        self._reconnected.set()

    def tick(self, fired: float, headers: Mapping[str, str]) -> CronTick:
        """Return the tick that the server made at *fired*, with the instant that was meant."""
        at = datetime.fromtimestamp(fired, UTC)
        said, following = headers.get(wire.SCHEDULED), headers.get(wire.SCHEDULE_NEXT)
        if said is not None:
            meant = datetime.fromisoformat(said)
        elif not isinstance(self._meaning, Every):
            meant = last_fire(self._meaning, self._trigger.zone, at, repeats=True)
        elif following is not None:  # the server says when the next one is due
            meant = datetime.fromisoformat(following) - timedelta(seconds=self._meaning.seconds)
        else:
            meant = at
        return CronTick(scheduled_at=min(meant.astimezone(UTC), at), fired_at=at)

    async def handle(self, delivery: Delivery) -> None:
        trigger, ctx = self._trigger, self._ctx
        if self._before is None:
            latest = await self._latest()
            self._before = latest.sequence if latest else 0
        tick = self.tick(delivery.timestamp, delivery.headers)
        await self._mend(tick, delivery.headers)
        if delivery.attempt == 1 and not await self._runs(delivery, tick):
            return
        if trigger.jitter and delivery.attempt == 1:
            await self._wait(random.uniform(0, trigger.jitter))  # noqa: S311 - no secret
        try:
            payload = tick if trigger.payload is None else trigger.payload
            await ctx.deliver(payload, delivery.attempt, delivery.headers, tick=delivery.sequence)
        finally:
            if trigger.overlap != "parallel":
                with (
                    anyio.CancelScope(shield=True),
                    anyio.move_on_after(2),
                    contextlib.suppress(TrineError),  # away: at worst a tick runs that overlapped
                ):
                    await self._bus.store(self._ended, b"{}", {wire.TTL: _ENDED_TTL})

    async def _mend(self, tick: CronTick, headers: Mapping[str, str]) -> None:
        """Fire what the server will not: it passes over a day whose midnight does not exist.

        Clocks that go forward at midnight: Cairo, Santiago, Beirut. The server says when it fires
        next; what is due before that is put beside its schedule, as a single one.
        """
        zone, said = self._trigger.zone, headers.get(wire.MENDED, headers.get(wire.SCHEDULE_NEXT))
        if isinstance(self._meaning, Every) or zone is None or said is None:
            return
        due = next_fire(self._meaning, zone, tick.scheduled_at)
        if datetime.now(UTC) < due < datetime.fromisoformat(said):
            mended = {
                wire.SCHEDULE: f"@at {due.isoformat()}",
                wire.SCHEDULE_TARGET: self._bus.names.relayed(self.subject),
                wire.MENDED: said,
            }
            await self._bus.store(self.schedule + MENDS, b"{}", mended)

    async def _runs(self, delivery: Delivery, tick: CronTick) -> bool:
        """Whether this tick is one to run: not repeated, not skipped, not missed."""
        trigger = self._trigger
        if self._repeated(tick):
            return False
        overlapped = trigger.overlap != "parallel" and await self._ended_after(delivery.timestamp)
        if overlapped:
            return trigger.overlap == "queue"
        if _late(tick) and trigger.catch_up == "none":
            return False  # the server was down when it was due
        missed = delivery.sequence <= (self._before or 0)
        if not missed or await self._age(delivery.timestamp) < _LATE_SECONDS:
            return True
        latest = await self._latest()
        return trigger.catch_up == "last" and (
            latest is None or latest.sequence <= delivery.sequence
        )

    def _repeated(self, tick: CronTick) -> bool:
        """Whether the server fired a second time because the clocks were put back."""
        if isinstance(self._meaning, Every) or _late(tick):
            return False
        return last_fire(self._meaning, self._trigger.zone, tick.fired_at) != tick.scheduled_at

    # --- the server was down -------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Fire, once over all replicas, what fell due while the server was down.

        After a clean stop the server does that by itself, before we look; after a crash it does
        not.
        """
        while True:
            self._reconnected = anyio.Event()
            await anyio.sleep(_LOOK_SECONDS)
            try:
                await self._fire_missed()
            except TrineError as error:
                log.warning("cron_catch_up_failed", error=error.message)
            await self._reconnected.wait()

    async def _fire_missed(self) -> None:
        bus = self._bus
        target = bus.names.relayed(self.subject)  # the record keeps the last tick for ever
        last, armed = [await bus.last(bus.names.record, one) for one in (target, self.schedule)]
        if armed is None:
            return
        known = max(_stored_at(one) for one in (last, armed) if one is not None)
        until = await self._now() - timedelta(seconds=_LOOK_SECONDS)
        if isinstance(self._meaning, Every):
            periods = (until - known).total_seconds() // self._meaning.seconds
            due = known + timedelta(seconds=periods * self._meaning.seconds)
        else:
            due = last_fire(self._meaning, self._trigger.zone, until)
        if due <= known:
            return
        headers = {
            wire.SCHEDULED: due.isoformat(),
            wire.EXPECTED_SEQUENCE: str(last.sequence if last else 0),
        }
        with contextlib.suppress(WriteConflictError):  # another replica was faster
            await bus.store(target, b"{}", headers)

    # --- what the server knows -----------------------------------------------------------------

    async def _ended_after(self, moment: float) -> bool:
        """Whether the run before ended after *moment*: the tick fell due while it went on."""
        ended = await self._bus.last(self._bus.names.record, self._ended)
        return ended is not None and _stored_at(ended).timestamp() > moment

    async def _age(self, moment: float) -> float:
        """Seconds since *moment*, by the server's clock: ours may differ."""
        return (await self._now()).timestamp() - moment

    async def _now(self) -> datetime:
        info = await self._bus.api(f"STREAM.INFO.{self._bus.names.events}")
        return datetime.fromisoformat(info["ts"])

    async def _latest(self) -> Stored | None:
        return await self._bus.last(self._bus.names.events, self.subject)

    async def _wait(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._ctx.stopping.wait()
            raise RetryLater("this replica stops", after=0)


def _late(tick: CronTick) -> bool:
    """Whether the server fired so late that it cannot have been up when the tick was due."""
    return (tick.fired_at - tick.scheduled_at).total_seconds() >= _LATE_SECONDS


def _stored_at(stored: Stored) -> datetime:
    return datetime.fromisoformat(stored.headers[wire.TIMESTAMP])


def place(function: str, binding: str) -> str:
    """The name of a binding's schedule; ``*`` for all of a function."""
    return f"cron.{function.replace('.', '-')}.{binding}"
