"""Interval: run a function again and again in one replica; what it takes to write a trigger."""

from datetime import UTC, datetime
from typing import ClassVar

import anyio
from pydantic import BaseModel, Field

from trine import Trigger, TriggerContext
from trine.trigger import Placement


class IntervalTick(BaseModel):
    """The payload: when it fired, and how often before since this replica took over."""

    at: datetime
    before: int


class Interval(Trigger):
    """``Interval(30)``: every 30 seconds, in one replica at a time.

    A run that takes longer lets beats out, a replica that dies is replaced within 15 s, and what
    was due meanwhile is not made up for: `trine_triggers.Cron` keeps its times over restarts.
    """

    placement: ClassVar[Placement] = "single"

    seconds: float = Field(ge=0.05, le=366 * 24 * 3600)
    at_once: bool = False  # fire when it starts, too

    def __init__(self, seconds: float, **data: object) -> None:
        super().__init__(seconds=seconds, **data)

    async def run(self, ctx: TriggerContext) -> None:
        ctx.ready.set()
        due = anyio.current_time() + (0 if self.at_once else self.seconds)
        before = 0
        while True:
            await anyio.sleep_until(due)
            await ctx.fire(IntervalTick(at=datetime.now(UTC), before=before))
            before += 1
            due += self.seconds * max(1, -(-(anyio.current_time() - due) // self.seconds))
