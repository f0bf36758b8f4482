"""Event: run a function for each event of a type, once for all replicas together."""

import contextlib
import re
from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, Field, field_validator, model_validator

from trine import Trigger, TriggerContext, wire
from trine.consuming.consumer import FORGET_SECONDS, Delivery
from trine.errors import TrineError
from trine.trigger import Placement
from trine_triggers.where import Where, matches

_PATTERN = re.compile(r"([a-z][a-z0-9_]*|\*)(\.([a-z0-9_]+|\*))*")
_LIVE_SECONDS = 10.0
_ACK_SECONDS = 10.0  # until an event in the hands of a killed replica goes to another


class Event(Trigger):
    """``Event("run.finished", where={"ok": True})``: the payload is the event itself.

    *type* may have ``*`` in place of a word. *where* compares fields of the payload, ``a.b`` for a
    nested one. Every binding gets its copy of each event, and the replicas of its function share
    it. The first start of a binding begins with what is emitted from then on (``start="new"``),
    with all that is kept (``"all"``), at a time, or at a sequence of the stream; later starts go
    on where they were. ``durable=False``: what is emitted while no replica runs is not delivered.
    """

    placement: ClassVar[Placement] = "shared"

    type: str
    where: Where = Field(default_factory=dict)
    durable: bool = True
    start: Literal["new", "all"] | int | AwareDatetime = "new"
    concurrency: int = Field(default=16, ge=1, le=1000)

    def __init__(self, type: str, **data: Any) -> None:
        super().__init__(type=type, **data)

    @field_validator("type")
    @classmethod
    def _valid(cls, value: str) -> str:
        if not _PATTERN.fullmatch(value):
            raise ValueError("an event type is lower-case words joined by dots, * for any word")
        return value

    @field_validator("start")
    @classmethod
    def _stored(cls, value: str | int | datetime) -> str | int | datetime:
        if isinstance(value, int) and value < 1:
            raise ValueError("the first sequence of a stream is 1")
        return value

    @model_validator(mode="after")
    def _live_from_now(self) -> Self:
        if not self.durable and self.start != "new":
            raise ValueError("durable=False begins with what comes: leave start out")
        return self

    async def run(self, ctx: TriggerContext) -> None:
        names = ctx.client.bus.names

        async def handle(delivery: Delivery) -> None:
            if self.where and not matches(self.where, wire.loads(delivery.payload)):
                return
            await ctx.deliver(
                delivery.payload,
                delivery.attempt,
                delivery.headers,
                event=delivery.headers.get("ce-id", ""),
                type=delivery.headers.get("ce-type", ""),
                time=delivery.timestamp,
                sequence=delivery.sequence,
            )

        if not self.durable:
            await _forget_if_alone(ctx)
        await ctx.consume(
            names.events,
            [names.event(self.type, "*", "*")],
            handle,
            deliver=self.start,
            concurrency=self.concurrency,
            ack_wait=_ACK_SECONDS,
            forget_seconds=FORGET_SECONDS if self.durable else _LIVE_SECONDS,
        )


async def _forget_if_alone(ctx: TriggerContext) -> None:
    """Remove what an earlier replica left, unless another one uses it now."""
    bus = ctx.client.bus
    consumer = f"{bus.names.events}.{ctx.binding.id}"
    with contextlib.suppress(TrineError):  # there is none
        info = await bus.api(f"CONSUMER.INFO.{consumer}")
        if not info.get("num_waiting") and not info.get("num_ack_pending"):
            await bus.api(f"CONSUMER.DELETE.{consumer}")
