"""Cron: run a function by the clock. The NATS server keeps the schedule; nobody is elected."""

import re
import time
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, Field, field_validator

from trine import Trigger, TriggerContext, wire
from trine.bus import Stored
from trine.consume import Delivery
from trine.errors import WriteConflictError
from trine.trigger import Placement

_NAMED = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_EVERY = re.compile(r"@every ((\d+(\.\d+)?(ms|s|m|h))+)")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_FIELD = re.compile(r"[0-9a-zA-Z*?/,-]+")
_LATE_SECONDS = 5.0


class CronTick(BaseModel):
    """The payload of a tick; times are in UTC, by the server's clock."""

    scheduled_at: datetime
    fired_at: datetime


class Cron(Trigger):
    """``Cron("*/30 * * * * *")``: 6 fields with seconds, 5 without, ``@every 90s``, ``@daily``.

    Each tick runs the function in one replica, at least once, and no restart of a replica loses or
    doubles one. Ticks that nobody was there to take: the latest of them runs late
    (``catch_up="last"``), or none (``"none"``). *zone* is an IANA name; the default is UTC.
    *payload* is given to the function in place of the `CronTick`.
    """

    placement: ClassVar[Placement] = "shared"

    expression: str
    zone: str | None = None
    catch_up: Literal["none", "last"] = "last"
    payload: dict[str, Any] | None = None
    concurrency: int = Field(default=1, ge=1)

    def __init__(self, expression: str, **data: Any) -> None:
        super().__init__(expression=expression, **data)

    @field_validator("expression")
    @classmethod
    def _valid(cls, value: str) -> str:
        server_expression(value)
        return value

    @field_validator("zone")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError) as error:
                raise ValueError(f"no time zone {value!r}") from error
        return value

    async def run(self, ctx: TriggerContext) -> None:
        bus = ctx.client.bus
        target = bus.names.event("schedule", *ctx.binding.id.rsplit("-", 1))
        await self._arm(ctx, target)

        async def handle(delivery: Delivery) -> None:
            late = time.time() - delivery.timestamp > _LATE_SECONDS
            if late and delivery.attempt == 1:  # nobody was there; a killed replica's comes again
                latest = await bus.last(bus.names.events, target)
                overtaken = latest is not None and latest.sequence > delivery.sequence
                if self.catch_up == "none" or overtaken:
                    return
            at = datetime.fromtimestamp(delivery.timestamp, UTC)
            tick = CronTick(scheduled_at=at.replace(microsecond=0), fired_at=at)
            payload = tick if self.payload is None else self.payload
            await ctx.deliver(payload, delivery.attempt, tick=delivery.sequence)

        await ctx.consume(bus.names.events, [target], handle, concurrency=self.concurrency)

    async def _arm(self, ctx: TriggerContext, target: str) -> None:
        """Put the schedule into the record, and remove those that this function no longer has.

        An unchanged schedule is left alone: writing it again would shift the phase of ``@every``.
        """
        bus = ctx.client.bus
        function = ctx.binding.function.id.replace(".", "-")
        place = f"cron.{function}"
        headers = {
            wire.SCHEDULE: server_expression(self.expression),
            wire.SCHEDULE_TARGET: bus.names.relayed(target),
        }
        if self.zone and not self.expression.startswith("@every"):
            headers[wire.SCHEDULE_ZONE] = self.zone
        subject = bus.names.schedule(f"{place}.{ctx.binding.id}")
        kept = {
            bus.names.schedule(f"{place}.{id}") for id in ctx.siblings if id != ctx.binding.id
        } | {subject}
        for old in await bus.subjects(bus.names.record, bus.names.schedule(f"{place}.*")):
            if old not in kept:
                await bus.api(f"STREAM.PURGE.{bus.names.record}", {"filter": old})
        stored = await bus.last(bus.names.record, subject)
        if stored is not None and _same(stored, headers):
            return
        headers[wire.EXPECTED_SEQUENCE] = str(stored.sequence if stored else 0)
        try:
            await bus.store(subject, b"{}", headers)
        except WriteConflictError:
            return  # another replica was faster


def _same(stored: Stored, headers: dict[str, str]) -> bool:
    names = (wire.SCHEDULE, wire.SCHEDULE_TARGET, wire.SCHEDULE_ZONE)
    return all(stored.headers.get(name) == headers.get(name) for name in names)


def server_expression(expression: str) -> str:
    """Return *expression* as the server reads it: six fields, or ``@every``; ValueError if none."""
    text = " ".join(expression.split())
    if text in _NAMED:
        return _NAMED[text]
    if text.startswith("@every"):
        parts = _PART.findall(text) if _EVERY.fullmatch(text) else []
        if sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts) < 1:
            raise ValueError("@every takes a duration of at least 1 s, such as 90s or 1m30s")
        return text
    fields = text.split(" ")
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6 or not all(_FIELD.fullmatch(field) for field in fields):
        raise ValueError("a cron expression has 6 fields (with seconds), 5, or is @every/@daily/…")
    return " ".join(fields)
