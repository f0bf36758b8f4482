"""Event: run a function for each event of a type, once for all replicas together."""

import re
from typing import Any, ClassVar

from pydantic import Field, field_validator

from trine import Trigger, TriggerContext, wire
from trine.consume import Delivery
from trine.trigger import Placement

_PATTERN = re.compile(r"([a-z][a-z0-9_]*|\*)(\.([a-z0-9_]+|\*))*")


class Event(Trigger):
    """``Event("run.finished", where={"ok": True})``: the payload is the event itself.

    *type* may have ``*`` in place of a word. *where* compares fields of the payload, ``a.b`` for a
    nested one; all must be equal. Events emitted before the first start are not delivered, those
    emitted while no replica ran are.
    """

    placement: ClassVar[Placement] = "shared"

    type: str
    where: dict[str, Any] = Field(default_factory=dict)
    concurrency: int = 16

    def __init__(self, type: str, **data: Any) -> None:
        super().__init__(type=type, **data)

    @field_validator("type")
    @classmethod
    def _valid(cls, value: str) -> str:
        if not _PATTERN.fullmatch(value):
            raise ValueError("an event type is lower-case words joined by dots, * for any word")
        return value

    async def run(self, ctx: TriggerContext) -> None:
        names = ctx.client.bus.names

        async def handle(delivery: Delivery) -> None:
            if self.where and not matches(self.where, wire.loads(delivery.payload)):
                return
            await ctx.deliver(
                delivery.payload,
                delivery.attempt,
                event=delivery.headers.get("ce-id", ""),
                type=delivery.headers.get("ce-type", ""),
                time=delivery.timestamp,
            )

        subject = names.event(self.type, "*", "*")
        await ctx.consume(names.events, [subject], handle, concurrency=self.concurrency)


def matches(where: dict[str, Any], payload: Any) -> bool:
    """Whether every field that *where* names is equal in *payload*."""
    for path, wanted in where.items():
        value = payload
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value != wanted:
            return False
    return True
