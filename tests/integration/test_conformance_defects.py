"""The conformance suite finds what is wrong: one planted trigger for each defect."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import anyio
import pytest
from anyio.abc import TaskStatus
from pydantic import BaseModel

from trine import Client, Trigger, TriggerContext
from trine.consuming.consumer import Delivery
from trine.testing import TriggerConformance
from trine.trigger import Placement

SUBJECT = "planted.bell"


class Ring(BaseModel):
    n: int


class Wrong(BaseModel):
    text: str


class Bell(Trigger):
    """A right one: fires in every replica for each message on a subject."""

    placement: ClassVar[Placement] = "each"

    async def run(self, ctx: TriggerContext) -> None:
        async with self.rings(ctx) as rings:
            ctx.ready.set()
            async for n in rings:
                await self.ring(ctx, n)

    async def ring(self, ctx: TriggerContext, n: int) -> None:
        await ctx.fire(Ring(n=n))

    @asynccontextmanager
    async def rings(self, ctx: TriggerContext) -> AsyncIterator[Any]:
        send, receive = anyio.create_memory_object_stream[int](100)
        listener = await ctx.client.bus.connection.listen(
            SUBJECT, lambda message: send.send_nowait(int(message.data))
        )
        try:
            yield receive
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await listener.close()
            send.close()
            receive.close()


class NeverStops(Bell):
    async def run(self, ctx: TriggerContext) -> None:
        async with self.rings(ctx) as rings:
            ctx.ready.set()
            ends = anyio.current_time() + 20  # the tests that find it are long over then
            while anyio.current_time() < ends:
                with (  # the defect: neither a scope nor a task.cancel() gets through
                    contextlib.suppress(BaseException),
                    anyio.CancelScope(shield=True),
                    anyio.move_on_after(0.1),
                ):
                    await self.ring(ctx, await rings.receive())


class KeepsTheCancellation(Bell):
    async def run(self, ctx: TriggerContext) -> None:
        try:
            await super().run(ctx)
        except BaseException:  # noqa: BLE001 - the defect
            return


class NeverReady(Bell):
    async def run(self, ctx: TriggerContext) -> None:
        async with self.rings(ctx) as rings:
            async for n in rings:
                await self.ring(ctx, n)


class FiresTheWrongType(Bell):
    async def ring(self, ctx: TriggerContext, n: int) -> None:
        await ctx.fire(Wrong(text=str(n)))


class FiresWhatIsNoPayload(Bell):
    async def ring(self, ctx: TriggerContext, n: int) -> None:
        await ctx.fire({"number": n})


class FiresTwice(Bell):
    async def ring(self, ctx: TriggerContext, n: int) -> None:
        await ctx.fire(Ring(n=n))
        await ctx.fire(Ring(n=n))


class EndsAtTheFirstFailure(Bell):
    async def ring(self, ctx: TriggerContext, n: int) -> None:
        try:
            await ctx.deliver(Ring(n=n), 1)
        except Exception:  # noqa: BLE001
            await anyio.sleep_forever()


class LeavesATask(Bell):
    async def run(self, ctx: TriggerContext) -> None:
        import asyncio

        asyncio.create_task(asyncio.sleep(3600), name="forgotten")  # noqa: RUF006 - the defect
        await super().run(ctx)


class LosesItsSettings(Bell):
    hidden: str = "default"

    def model_dump_json(self, **options: Any) -> str:
        return "{}"


class Shared(Trigger):
    """A right one: each message of EVENTS in one replica, again after a failure."""

    placement: ClassVar[Placement] = "shared"

    async def run(self, ctx: TriggerContext) -> None:
        names = ctx.client.bus.names
        await ctx.consume(
            names.events, [names.event("planted", "*", "*")], lambda one: self.one(ctx, one)
        )

    async def one(self, ctx: TriggerContext, delivery: Delivery) -> None:
        await ctx.deliver(delivery.payload, delivery.attempt)


class SwallowsErrors(Shared):
    async def one(self, ctx: TriggerContext, delivery: Delivery) -> None:
        await ctx.fire(delivery.payload)  # the defect: acknowledged although it failed


class NotShared(Bell):
    placement: ClassVar[Placement] = "shared"  # the defect: every replica listens for itself

    async def run(self, ctx: TriggerContext) -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.ringing, ctx)
            await ctx.stopping.wait()
            tasks.cancel_scope.cancel()

    async def ringing(self, ctx: TriggerContext, *, task_status: TaskStatus[None]) -> None:
        async with self.rings(ctx) as rings:
            task_status.started()
            ctx.ready.set()
            async for n in rings:
                await self.ring(ctx, n)


class IgnoresTheStop(NotShared):
    async def run(self, ctx: TriggerContext) -> None:
        await Bell.run(self, ctx)


class Clock(Trigger):
    """A right one: fires by itself, in one replica."""

    placement: ClassVar[Placement] = "single"

    async def run(self, ctx: TriggerContext) -> None:
        ctx.ready.set()
        n = 0
        while True:
            await anyio.sleep(0.05)
            n += 1
            await ctx.fire(Ring(n=n))


class ClockInEachReplica(Clock):
    placement: ClassVar[Placement] = "each"


class SharedClock(Clock):
    placement: ClassVar[Placement] = "shared"  # the defect: nothing makes the replicas share


class Suite(TriggerConformance):
    __test__ = False
    payload_model = Ring
    deadline_seconds = 3.0
    planted: Trigger

    def make(self) -> Trigger:
        return self.planted

    async def provoke(self, client: Client) -> None:
        self.count = getattr(self, "count", 0) + 1
        client.bus.connection.send(SUBJECT, str(self.count).encode())
        await client.bus.store(
            client.bus.names.event("planted", "k", str(self.count)),
            Ring(n=self.count).model_dump_json().encode(),
        )


def suite(trigger: Trigger, *, by_itself: bool = False) -> Suite:
    made = type("Made", (Suite,), {"fires_by_itself": by_itself})()
    made.planted = trigger
    return made


CHECKS = sorted(name for name in dir(TriggerConformance) if name.startswith("test_"))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("trigger", "by_itself"),
    [(Bell(), False), (Shared(), False), (Clock(), True), (ClockInEachReplica(), True)],
    ids=lambda value: type(value).__name__,
)
def test_a_right_trigger_passes(trigger, by_itself, check):
    getattr(suite(trigger, by_itself=by_itself), check)()


@pytest.mark.parametrize(
    ("trigger", "by_itself", "check", "reason"),
    [
        (NeverStops(), False, "test_it_stops_when_cancelled", "still running"),
        (NeverStops(), False, "test_it_ends_when_its_worker_stops", "still running"),
        (KeepsTheCancellation(), False, "test_it_stops_when_cancelled", "kept that to itself"),
        (NeverReady(), False, "test_it_is_ready_in_time", "no ctx.ready.set()"),
        (FiresTheWrongType(), False, "test_it_fires_the_declared_payload", "not a Ring"),
        (FiresWhatIsNoPayload(), False, "test_it_fires_the_declared_payload", "is no Ring"),
        (FiresTwice(), False, "test_two_replicas_fire_as_its_placement_says", "not 6"),
        (EndsAtTheFirstFailure(), False, "test_it_goes_on_after_a_function_failed", "again"),
        (LeavesATask(), False, "test_it_stops_when_cancelled", "forgotten"),
        (LeavesATask(), False, "test_it_ends_when_its_worker_stops", "forgotten"),
        (LosesItsSettings(hidden="x"), False, "test_its_value_survives_json", "came back"),
        (SwallowsErrors(), False, "test_it_goes_on_after_a_function_failed", "was not run again"),
        (NotShared(), False, "test_two_replicas_fire_as_its_placement_says", "fired 6 times"),
        (IgnoresTheStop(), False, "test_it_ends_when_its_worker_stops", "still running"),
        (SharedClock(), True, "test_two_replicas_fire_as_its_placement_says", "more than once"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Trigger) else None,
)
def test_a_planted_defect_is_found(trigger, by_itself, check, reason):
    with pytest.raises(AssertionError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        getattr(suite(trigger, by_itself=by_itself), check)()


def test_a_single_trigger_that_fires_in_both_replicas_is_found(monkeypatch):
    """What keeps a single trigger single is its lease: here every replica gets one of its own."""
    from trine import leases
    from trine.serving import supervise

    class Own(leases.Lease):
        async def take(self) -> bool:
            self.key = f"{self.key}-{id(self)}"
            return await super().take()

    monkeypatch.setattr(supervise, "Lease", Own)
    with pytest.raises(AssertionError, match="both replicas fire"):
        suite(Clock(), by_itself=True).test_two_replicas_fire_as_its_placement_says()


def test_a_trigger_of_a_gateway_is_none_for_the_suite():
    class Routed(Trigger):
        placement: ClassVar[Placement] = "gateway"

    with pytest.raises(AssertionError, match="placement 'gateway'"):
        suite(Routed()).test_it_is_ready_in_time()
