"""Key: run a function when a key is written, deleted or expires."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from trine import Scope, Trigger, TriggerContext, wire
from trine.consume import Delivery
from trine.trigger import Placement

Operation = Literal["put", "delete", "expire"]
LEASES = "leases"


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
    no replica ran. On other scopes the latest value of each key is: changes in quick succession
    may arrive as one. The scope ``"leases"`` is the bucket of leases, whose keys expire.
    """

    placement: ClassVar[Placement] = "shared"

    scope: str
    keys: str = Field(default=">", pattern=r"^[-/_=a-zA-Z0-9*]+(\.[-/_=a-zA-Z0-9*]+)*(\.>)?$|^>$")
    on: tuple[Operation, ...] = ("put", "delete", "expire")
    changes: bool = False

    def __init__(self, scope: "str | Scope[Any]", keys: str = ">", **data: Any) -> None:
        if isinstance(scope, Scope):
            data.setdefault("changes", scope.changes)
            scope = scope.name
        super().__init__(scope=scope, keys=keys, **data)

    async def run(self, ctx: TriggerContext) -> None:
        names = ctx.client.bus.names

        async def handle(delivery: Delivery) -> None:
            change = self._recorded(delivery) if self.changes else self._seen(delivery)
            below = change.key.count(".") >= self.keys.count(".")  # a.> would match a itself
            if change.operation in self.on and below:
                await ctx.deliver(change, delivery.attempt)

        if self.changes:
            keys = self.keys if self.keys.endswith(">") else f"{self.keys}.*"
            pattern = names.event("changed", self.scope, keys)
            await ctx.consume(names.events, [pattern], handle)
        elif self.scope == LEASES:
            await ctx.consume(names.leases, [names.lease(self.keys)], handle)
        else:
            await ctx.consume(names.record, [names.state(self.scope, self.keys)], handle)

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
