"""Cron: run a function by the clock. The NATS server keeps the schedule; nobody is elected."""

import contextlib
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import anyio
from pydantic import Field, ValidationInfo, field_validator

from trine import Client, Trigger, TriggerContext, wire
from trine.errors import WriteConflictError
from trine.trigger import Placement
from trine_triggers.cron_expression import parse
from trine_triggers.cron_ticks import MENDS, CronTick, Ticks, place

__all__ = ["Cron", "CronTick"]

_ACK_SECONDS = 10.0  # until a tick in the hands of a killed replica goes to another


class Cron(Trigger):
    """``Cron("*/30 * * * * *")``: 6 fields with seconds, 5 without, ``@every 90s``, ``@daily``.

    Each tick runs the function in one replica, at least once, and no restart of a replica loses or
    doubles one. Ticks that nobody was there to take: the latest of them runs late
    (``catch_up="last"``), or none (``"none"``). Ticks that fall due while a run goes on, in
    whichever replica: they wait (``overlap="queue"``), are left out (``"skip"``), or run beside it
    (``"parallel"``, up to *concurrency* in each replica). *jitter* spreads the start over that many
    seconds. *zone* is an IANA name; the default is UTC. *payload* is given to the function in
    place of the `CronTick`.
    """

    placement: ClassVar[Placement] = "shared"

    expression: str
    zone: str | None = None
    catch_up: Literal["none", "last"] = "last"
    overlap: Literal["skip", "queue", "parallel"] = "queue"
    jitter: float = Field(default=0.0, ge=0, le=3600)
    payload: dict[str, Any] | None = None
    concurrency: int = Field(default=16, ge=1, le=1000)

    def __init__(self, expression: str, **data: Any) -> None:
        super().__init__(expression=expression, **data)

    @field_validator("expression")
    @classmethod
    def _valid(cls, value: str) -> str:
        parse(value)
        return value

    @field_validator("zone")
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"no time zone {value!r}") from error
        if str(info.data.get("expression", "")).split()[:1] == ["@every"]:
            raise ValueError("@every counts seconds: it has no zone")
        return value

    async def run(self, ctx: TriggerContext) -> None:
        ticks = Ticks(self, ctx)
        await self._arm(ctx, ticks)
        alone = self.overlap != "parallel"
        connection = ctx.client.bus.connection
        connection.on_reconnect.add(ticks.reconnected)
        try:
            async with anyio.create_task_group() as tasks:
                if self.catch_up == "last":
                    tasks.start_soon(ticks.catch_up)
                await ctx.consume(
                    ctx.client.bus.names.events,
                    [ticks.subject],
                    ticks.handle,
                    concurrency=1 if alone else self.concurrency,
                    max_ack_pending=1 if alone else 10_000,
                    ack_wait=_ACK_SECONDS,
                )
                tasks.cancel_scope.cancel()
        finally:
            connection.on_reconnect.discard(ticks.reconnected)

    @classmethod
    async def retire(cls, client: Client, kept: Mapping[str, Collection[str]]) -> None:
        """Remove the schedules of bindings that are gone; *kept* has those of each function."""
        names = client.bus.names
        for function, bindings in kept.items():
            own = [id for id in bindings if not id.endswith(MENDS)]
            ids = [id + end for id in own for end in ("", MENDS)]
            keep = {names.schedule(place(function, id)) for id in ids}
            pattern = names.schedule(place(function, "*"))
            for subject in await client.bus.subjects(names.record, pattern):
                if subject not in keep:
                    await client.bus.api(f"STREAM.PURGE.{names.record}", {"filter": subject})

    async def _arm(self, ctx: TriggerContext, ticks: Ticks) -> None:
        """Put the schedule into the record.

        An unchanged one is left alone: writing it again would shift the phase of ``@every``.
        """
        bus = ctx.client.bus
        headers = {
            wire.SCHEDULE: parse(self.expression).text,
            wire.SCHEDULE_TARGET: bus.names.relayed(ticks.subject),
        }
        if self.zone:
            headers[wire.SCHEDULE_ZONE] = self.zone
        stored = await bus.last(bus.names.record, ticks.schedule)
        names = (wire.SCHEDULE, wire.SCHEDULE_TARGET, wire.SCHEDULE_ZONE)
        if stored and all(stored.headers.get(one) == headers.get(one) for one in names):
            return
        headers[wire.EXPECTED_SEQUENCE] = str(stored.sequence if stored else 0)
        with contextlib.suppress(WriteConflictError):  # another replica was faster
            await bus.store(ticks.schedule, b"{}", headers)
