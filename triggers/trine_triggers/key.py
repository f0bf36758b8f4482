"""Key: run a function when a key is written, deleted or expires."""

import dataclasses
from typing import Any, ClassVar, Literal, Self

import anyio
from pydantic import BaseModel, Field, model_validator

from trine import Scope, Trigger, TriggerContext, wire
from trine.consuming.consumer import Delivery
from trine.events import PARTITIONS
from trine.trigger import Placement
from trine_triggers.coalesce import Coalescer
from trine_triggers.where import Where, matches

Operation = Literal["put", "delete", "expire"]
LEASES = "leases"
_ACK_SECONDS = 10.0  # until the keys in the hands of a killed replica go to another


class KeyChange(BaseModel):
    """What happened to a key. ``old`` is known on scopes with ``changes=True``."""

    scope: str
    key: str
    operation: Operation
    old: Any = None
    new: Any = None
    revision: int  # grows with every change


class Key(Trigger):
    """``Key(best, "mar11.*", on=("put",))``: a scope, a pattern of keys, and what to react to.

    On a scope with ``changes=True`` every change is delivered at least once, also those made while
    no replica ran, and the changes of one key in their order: the next one waits until the one
    before it succeeded or is a dead letter. On other scopes the latest value of each key is:
    changes in quick succession may arrive as one. The scope ``"leases"`` is the bucket of leases,
    whose keys expire. *where* compares fields of the change, such as ``{"new.loss": {"lt": 1}}``.
    *coalesce*: at most one run for each key in that many seconds, with the latest value.
    """

    placement: ClassVar[Placement] = "shared"

    scope: str
    keys: str = Field(default=">", pattern=r"^[-/_=a-zA-Z0-9*]+(\.[-/_=a-zA-Z0-9*]+)*(\.>)?$|^>$")
    on: tuple[Operation, ...] = Field(default=("put", "delete", "expire"), min_length=1)
    changes: bool = False
    where: Where = Field(default_factory=dict)
    coalesce: float | None = Field(default=None, ge=1, le=24 * 3600)

    def __init__(self, scope: "str | Scope[Any]", keys: str = ">", **data: Any) -> None:
        if isinstance(scope, Scope):
            data.setdefault("changes", scope.changes)
            scope = scope.name
        super().__init__(scope=scope, keys=keys, **data)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.on == ("expire",) and self.scope != LEASES:
            raise ValueError('only keys of the scope "leases" expire')
        asks_old = any(path.split(".")[0] == "old" for path in self.where)
        if asks_old and (not self.changes or self.coalesce):
            raise ValueError("old values are known on scopes with changes=True, without coalesce")
        return self

    async def run(self, ctx: TriggerContext) -> None:
        names = ctx.client.bus.names
        if self.coalesce is not None:
            await self._coalesced(ctx, self.coalesce)
        elif self.changes:
            await self._ordered(ctx)
        elif self.scope == LEASES:
            await ctx.consume(
                names.leases, [names.lease(self.keys)], lambda one: self._handle(ctx, one)
            )
        else:
            pattern = names.state(self.scope, self.keys)
            await ctx.consume(names.record, [pattern], lambda one: self._handle(ctx, one))

    async def _handle(self, ctx: TriggerContext, delivery: Delivery) -> None:
        change = self._seen(delivery)
        if self._wanted(change):
            await ctx.deliver(change, delivery.attempt, delivery.headers)

    async def _ordered(self, ctx: TriggerContext) -> None:
        """One consumer for each partition of the keys, with one change in hands at a time."""
        names = ctx.client.bus.names
        keys = self.keys if self.keys.endswith(">") else f"{self.keys}.*"

        async def handle(delivery: Delivery) -> None:
            change = self._recorded(delivery)
            if self._wanted(change):
                await ctx.deliver(change, delivery.attempt, delivery.headers)

        parts = [dataclasses.replace(ctx, ready=anyio.Event()) for _ in range(PARTITIONS)]

        async def consume(partition: int) -> None:
            await parts[partition].consume(
                names.events,
                [names.changed(self.scope, partition, keys)],
                handle,
                concurrency=1,
                max_ack_pending=1,
                ack_wait=_ACK_SECONDS,
                suffix=f"--{partition}",
            )

        async with anyio.create_task_group() as tasks:
            for partition in range(PARTITIONS):
                tasks.start_soon(consume, partition)
            for part in parts:
                await part.ready.wait()
            ctx.ready.set()

    async def _coalesced(self, ctx: TriggerContext, seconds: float) -> None:
        names = ctx.client.bus.names
        leases = self.scope == LEASES
        coalescer = Coalescer(
            ctx.client.bus, names.leases if leases else names.record, ctx.binding.id, seconds
        )

        async def handle(delivery: Delivery) -> None:
            change = self._seen(delivery)
            if self._wanted(change) and await coalescer.turn(delivery):
                await ctx.deliver(change, delivery.attempt, delivery.headers)

        async def hand_back() -> None:
            await ctx.stopping.wait()
            coalescer.stop()

        pattern = names.lease(self.keys) if leases else names.state(self.scope, self.keys)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hand_back)
            await ctx.consume(
                names.leases if leases else names.record,
                [pattern],
                handle,
                concurrency=256,
                ack_wait=_ACK_SECONDS,
            )
            tasks.cancel_scope.cancel()

    def _wanted(self, change: KeyChange) -> bool:
        below = change.key.count(".") >= self.keys.count(".")  # a.> would match a itself
        if change.operation not in self.on or not below:
            return False
        return not self.where or matches(self.where, change.model_dump(mode="json"))

    def _recorded(self, delivery: Delivery) -> KeyChange:
        said = wire.loads(delivery.payload)
        return KeyChange(
            scope=self.scope,
            key=said["key_name"],
            operation=said["operation"],
            old=said["old"],
            new=said["new"],
            revision=delivery.sequence,
        )

    def _seen(self, delivery: Delivery) -> KeyChange:
        key = delivery.subject.split(".", 2)[2]  # after $KV.<bucket>.
        operation: Operation = "put"
        if wire.MARKER_REASON in delivery.headers:
            operation = "expire"
        elif wire.KV_OPERATION in delivery.headers:
            operation = "delete"
        return KeyChange(
            scope=self.scope,
            key=key if self.scope == LEASES else key.split(".", 1)[1],
            operation=operation,
            new=wire.loads(delivery.payload) if operation == "put" else None,
            revision=delivery.sequence,
        )
