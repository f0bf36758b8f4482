"""Events and the triggers on events and keys, over a real server."""

from datetime import datetime
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field

from trine import App, Context, EventModel, Retry, Scope, Trigger
from trine.leases import Lease
from trine_triggers import Event, Key, KeyChange

pytestmark = pytest.mark.anyio


class Finished(EventModel, type="run.finished", key="run"):
    run: str
    improved: bool = False
    score: dict[str, float] = Field(default_factory=dict)


class Value(BaseModel):
    n: int


recorded = Scope("recorded", Value, changes=True)
plain = Scope("plain", Value)


class Got:
    """An app with one function on *trigger*, and what it was given."""

    def __init__(self, trigger: Trigger, model: type[Any], **options: Any) -> None:
        self.items: list[Any] = []
        self.contexts: list[Context] = []
        self._changed = anyio.Event()
        self.app = App("got")

        async def take(ctx: Context, item: Any) -> None:
            self.items.append(item)
            self.contexts.append(ctx)
            self._changed.set()

        take.__annotations__["item"] = model
        self.app.on(trigger)(self.app.function("got.take", **options)(take))

    async def wait(self, count: int) -> list[Any]:
        with anyio.fail_after(10):
            while len(self.items) < count:
                self._changed = anyio.Event()
                await self._changed.wait()
        return self.items


async def test_an_event_is_handled_once_by_two_replicas_together(serve):
    got = Got(Event("run.finished"), Finished)
    async with serve(got.app) as client, serve(got.app):
        for n in range(50):
            await client.emit(Finished(run=f"r{n}"))
        await client.emit(Finished(run="last"))
        await got.wait(51)
    assert sorted(item.run for item in got.items) == sorted([*(f"r{n}" for n in range(50)), "last"])
    assert len({ctx.invocation.worker for ctx in got.contexts}) == 2
    assert got.contexts[0].invocation.facts["type"] == "run.finished"


async def test_where_lets_only_equal_fields_pass(serve):
    trigger = Event("run.finished", where={"improved": True, "score.loss": 1.5})
    got = Got(trigger, Finished)
    async with serve(got.app) as client:
        await client.emit(Finished(run="a"))
        await client.emit(Finished(run="b", improved=True, score={"loss": 2}))
        await client.emit(Finished(run="c", improved=True, score={"loss": 1.5}))
        await client.emit(Finished(run="d", improved=False, score={"loss": 1.5}))
        await client.emit(Finished(run="e", improved=True, score={"loss": 1.5}))
        await got.wait(2)
    assert sorted(item.run for item in got.items) == ["c", "e"]


async def test_a_star_stands_for_one_word_of_the_type(serve):
    class Other(EventModel, type="run.started"):
        run: str

    class Deeper(EventModel, type="run.step.done"):
        run: str

    got = Got(Event("run.*"), Other)
    async with serve(got.app) as client:
        await client.emit(Deeper(run="no"))
        await client.emit(Finished(run="a"))
        await client.emit(Other(run="b"))
        await got.wait(2)
    assert sorted(item.run for item in got.items) == ["a", "b"]


async def test_events_emitted_while_nobody_runs_are_delivered_after_the_restart(serve):
    got = Got(Event("run.finished"), Finished)
    async with serve() as client:
        await client.emit(Finished(run="before the first start"))
        async with serve(got.app):
            await client.emit(Finished(run="a"))
            await got.wait(1)
        await client.emit(Finished(run="b"))
        await client.emit(Finished(run="c"))
        async with serve(got.app):
            await got.wait(3)
    assert [item.run for item in got.items] == ["a", "b", "c"]


async def test_one_id_is_one_event(serve):
    got = Got(Event("run.finished"), Finished)
    async with serve(got.app) as client:
        await client.emit(Finished(run="a"), id="x")
        await client.emit(Finished(run="a"), id="x")
        await client.emit(Finished(run="b"))
        await got.wait(2)
    assert [item.run for item in got.items] == ["a", "b"]


async def test_a_failed_handler_gets_the_event_again_and_then_it_is_a_dead_letter(serve):
    app = App("got")
    attempts = []

    @app.on(Event("run.finished"))
    @app.function("got.fail", retry=Retry(attempts=3, delay_seconds=0.01))
    async def fail(ctx: Context, event: Finished) -> None:
        attempts.append(ctx.attempt)
        raise RuntimeError("no")

    async with serve(app) as client:
        names = client.bus.names
        listening = anyio.Event()
        letter = await client.bus.connection.listen(
            names.dead_letter("*", "*"), lambda _: listening.set()
        )
        await client.emit(Finished(run="a"))
        with anyio.fail_after(10):
            await listening.wait()
        await letter.close()
    assert attempts == [1, 2, 3]


async def test_a_key_trigger_on_a_recorded_scope_gets_every_change_with_old_and_new(serve):
    got = Got(Key(recorded, "a.*"), KeyChange)
    async with serve(got.app) as client:
        store = client.state(recorded)
        for n in range(20):
            await store.put("a.x", Value(n=n))
        await store.put("b.x", Value(n=99))
        await store.delete("a.x")
        await got.wait(21)
    changes = sorted(got.items, key=lambda change: change.revision)
    assert [c.new and c.new["n"] for c in changes] == [*range(20), None]
    assert [c.old and c.old["n"] for c in changes] == [None, *range(20)]
    assert {(c.scope, c.key) for c in changes} == {("recorded", "a.x")}
    assert [c.operation for c in changes] == ["put"] * 20 + ["delete"]


async def test_a_key_trigger_on_a_plain_scope_gets_the_latest(serve):
    got = Got(Key(plain, on=("put",)), KeyChange)
    async with serve(got.app) as client:
        await client.state(plain).put("a.x", Value(n=1))
        await got.wait(1)
        await client.state(plain).delete("a.x")
        await client.state(plain).put("a.y", Value(n=2))
        await got.wait(2)
    assert [(c.key, c.operation, c.new) for c in got.items] == [
        ("a.x", "put", {"n": 1}),
        ("a.y", "put", {"n": 2}),
    ]


async def test_everything_below_a_key_does_not_mean_the_key_itself(serve):
    got = Got(Key(recorded, "a.>"), KeyChange)
    async with serve(got.app) as client:
        for key in ["a", "a.b", "ab", "a.b.c"]:
            await client.state(recorded).put(key, Value(n=1))
        await got.wait(2)
        await anyio.wait_all_tasks_blocked()
    assert sorted(c.key for c in got.items) == ["a.b", "a.b.c"]


async def test_a_lease_that_runs_out_fires_expire(serve):
    got = Got(Key("leases", "gpu.*", on=("expire",)), KeyChange)
    async with serve(got.app) as client:
        lease = Lease(client.bus, "gpu.0", b'{"host":"a"}', 1)
        assert await lease.take()
        await lease.renew()
        released = Lease(client.bus, "gpu.1", b"{}", 30)
        assert await released.take()
        await released.release()
        await got.wait(1)
    [change] = got.items
    assert (change.key, change.operation) == ("gpu.0", "expire")


async def test_an_event_is_a_cloudevent_for_others(serve):
    async with serve() as client:
        names = client.bus.names
        await client.emit(Finished(run="r 1/2"), id="e1")
        [stored] = await client.bus.latest(names.events, [names.event("run.finished", "*", "*")])
    assert stored.subject == f"{names.namespace}.event.run.finished.r-1-2.e1"
    assert stored.headers["ce-specversion"] == "1.0"
    assert stored.headers["ce-type"] == "run.finished"
    assert stored.headers["ce-id"] == "e1"
    assert datetime.fromisoformat(stored.headers["ce-time"]).tzinfo is not None
