"""Observe: run a function after runs of another one, wherever that runs."""

import random
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Literal

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream
from pydantic import AwareDatetime, BaseModel, Field, field_validator

from trine import Completion, Scope, Trigger, TriggerContext, wire
from trine.errors import ConflictError, UsageError, WriteConflictError
from trine.function import Function
from trine.invocation import new_id
from trine.leases import Lease
from trine.transport.connection import Msg
from trine.trigger import Placement
from trine_triggers.where import Where, matches

log = structlog.get_logger("trine")

_Told = tuple[Completion, Mapping[str, str]]  # with the headers, which carry its trace
_LEASE_SECONDS = 20.0
_WAITING = 1024  # completions in this replica that have no place yet; more are dropped


class Spent(BaseModel):
    """How often a binding has fired, and until when it may: kept over restarts."""

    fires: int = 0
    until: float | None = None  # unix seconds


spent = Scope("observers", Spent)


class Observe(Trigger):
    """``Observe("orders.place", on="error")``: the payload is a `trine.Completion`.

    At most once: a completion that is told while no replica listens, or while more wait than a
    replica takes, is not seen. *where* compares fields of the completion, such as
    ``{"output.total": {"gt": 100}}``; *sample* is the share of them that fires. After *max_fires*,
    over all replicas and restarts, or when *expires* (seconds from the first start, or a time) has
    come, it ends. The observed function pays nothing while nobody observes it.
    """

    placement: ClassVar[Placement] = "shared"

    function: str
    on: Literal["success", "error", "complete"] = "complete"
    where: Where = Field(default_factory=dict)
    max_fires: int | None = Field(default=None, ge=1)
    expires: float | AwareDatetime | None = None
    sample: float = Field(default=1.0, gt=0, le=1)
    concurrency: int = Field(default=16, ge=1, le=1000)

    def __init__(self, function: "str | Function[Any, Any]", **data: Any) -> None:
        id = function.id if isinstance(function, Function) else function
        super().__init__(function=id, **data)

    @field_validator("function")
    @classmethod
    def _id(cls, value: str) -> str:
        try:
            return wire.function_id(value)
        except UsageError as error:
            raise ValueError(error.message) from error

    @field_validator("expires")
    @classmethod
    def _ahead(cls, value: float | datetime | None) -> float | datetime | None:
        if isinstance(value, float) and not 0 < value < 10 * 366 * 24 * 3600:
            raise ValueError("expires takes seconds above 0, up to ten years")
        return value

    def check(self, function: Function[Any, Any]) -> None:
        if function.id == self.function:
            raise UsageError(f"{function.id} cannot observe itself: it would run for ever")

    async def run(self, ctx: TriggerContext) -> None:
        observer = _Observer(self, ctx)
        state = await observer.begin()
        left = None if state.until is None else state.until - time.time()
        if (left is not None and left <= 0) or observer.exhausted(state):
            ctx.ready.set()
            return
        await observer.listen(left)


class _Observer:
    """One replica that listens for a binding."""

    def __init__(self, trigger: Observe, ctx: TriggerContext) -> None:
        self._trigger = trigger
        self._ctx = ctx
        self._bus = ctx.client.bus
        self._name = wire.token(ctx.binding.id)
        self._store = ctx.client.state(spent)
        self._over = anyio.Event()

    async def begin(self) -> Spent:
        """Return what is known of this binding; its time begins with its first start."""
        expires = self._trigger.expires
        until = expires.timestamp() if isinstance(expires, datetime) else expires
        if isinstance(expires, float):
            until = time.time() + expires
        if until is None and self._trigger.max_fires is None:
            return Spent()
        try:
            await self._store.create(self._name, Spent(until=until))
        except ConflictError:
            return (await self._store.get(self._name)).value
        return Spent(until=until)

    def exhausted(self, state: Spent) -> bool:
        limit = self._trigger.max_fires
        return limit is not None and state.fires >= limit

    async def listen(self, seconds: float | None) -> None:
        """Fire until stopped, until nothing is left to fire, or for *seconds*; what runs ends."""
        names, connection = self._bus.names, self._bus.connection
        send, receive = anyio.create_memory_object_stream[_Told](_WAITING)

        def take(message: Msg) -> None:
            completion = self._wanted(message)
            try:
                if completion is not None:
                    send.send_nowait((completion, message.headers or {}))
            except anyio.WouldBlock:
                log.warning("completion_dropped", binding=self._ctx.binding.id)

        key = f"observe.{self._trigger.function}.{self._name}-{wire.token(new_id())}"
        lease = Lease(self._bus, key, b"{}", _LEASE_SECONDS)
        listener = await connection.listen(names.done(self._trigger.function), take, self._name)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._end_on_stop, seconds)
                await tasks.start(lease.keep)
                self._ctx.ready.set()
                async with anyio.create_task_group() as runs:
                    for _ in range(self._trigger.concurrency):
                        runs.start_soon(self._work, receive.clone())
                    await self._over.wait()
                    with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                        await listener.close()
                    send.close()  # what waits is run, then the workers end
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await listener.close()
            send.close()
            receive.close()

    async def _end_on_stop(self, seconds: float | None) -> None:
        with anyio.move_on_after(seconds):
            await self._ctx.stopping.wait()
        self._over.set()

    def _wanted(self, message: Msg) -> Completion | None:
        trigger = self._trigger
        try:
            completion = Completion.model_validate_json(message.data)
        except ValueError as error:
            log.warning("completion_unreadable", error=str(error)[:200])
            return None
        if trigger.on != "complete" and completion.ok != (trigger.on == "success"):
            return None
        if trigger.where and not matches(trigger.where, completion.model_dump(mode="json")):
            return None
        return completion if random.random() < trigger.sample else None  # noqa: S311 - no secret

    async def _work(self, receive: MemoryObjectReceiveStream[_Told]) -> None:
        with receive:
            async for completion, headers in receive:
                if self._trigger.max_fires is not None and not await self._spend():
                    continue
                await self._ctx.fire(completion, headers, observed=completion.invocation)

    async def _spend(self) -> bool:
        """Count one fire; False when none is left, over all replicas."""
        while not self._over.is_set():
            entry = await self._store.get(self._name)
            if self.exhausted(entry.value):
                break
            counted = entry.value.model_copy(update={"fires": entry.value.fires + 1})
            try:
                await self._store.replace(entry, counted)
            except WriteConflictError:
                continue
            if self.exhausted(counted):
                self._over.set()
            return True
        self._over.set()
        return False
