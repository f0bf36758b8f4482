"""Observe: functions that run after others, over a real server."""

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, ValidationError

from trine import App, Client, Context
from trine.errors import BadRequestError, TrineError, UsageError
from trine.leases import held
from trine.observability.observe import Completion
from trine_triggers import Observe

pytestmark = pytest.mark.anyio


class Total(BaseModel):
    total: int


def shop() -> App:
    app = App("shop")

    @app.function("orders.place")
    async def place(amount: int) -> Total:
        if amount < 0:
            raise BadRequestError("an amount is not negative")
        return Total(total=amount * 2)

    return app


class Seen:
    """A function that observes ``orders.place``."""

    def __init__(self, name: str = "audit", **settings: Any) -> None:
        self.items: list[Completion] = []
        self._changed = anyio.Event()
        self.app = App(name)

        async def note(done: Completion) -> None:
            self.items.append(done)
            self._changed.set()

        self.app.on(Observe("orders.place", **settings))(self.app.function(f"{name}.note")(note))

    async def wait(self, count: int, seconds: float = 15) -> list[Completion]:
        with anyio.fail_after(seconds):
            while len(self.items) < count:
                self._changed = anyio.Event()
                await self._changed.wait()
        return self.items


async def observers(client: Client, count: int) -> None:
    """Wait until *count* replicas observe."""
    with anyio.fail_after(10):
        while len(await held(client.bus, "observe.>")) != count:
            await anyio.sleep(0.02)


async def order(client: Client, *amounts: int) -> None:
    for amount in amounts:
        try:
            await client.call("orders.place", {"amount": amount})
        except TrineError:
            continue


async def test_a_completion_says_what_went_in_and_came_out(serve):
    seen = Seen()
    async with serve(shop()) as client, serve(seen.app):
        await observers(client, 1)
        await order(client, 21)
        [done] = await seen.wait(1)
    assert (done.function, done.ok, done.attempt) == ("orders.place", True, 1)
    assert (done.input, done.output, done.error) == ({"amount": 21}, {"total": 42}, None)
    assert done.milliseconds > 0


async def test_what_is_observed_and_what_runs_for_it_are_one_trace(serve):
    traces: list[str | None] = []
    done = anyio.Event()
    app = App("audit")

    @app.on(Observe("orders.place"))
    @app.function()
    async def note(ctx: Context) -> None:
        traces.append(ctx.invocation.traceparent)
        done.set()

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with serve(shop()) as client, serve(app):
        await observers(client, 1)
        await client.call_bytes("orders.place", b'{"amount": 1}', headers={"traceparent": trace})
        with anyio.fail_after(15):
            await done.wait()
    assert traces[0] is not None
    assert traces[0][3:35] == trace[3:35]


async def test_success_error_and_complete_are_told_apart(serve):
    good = Seen("good", on="success")
    bad = Seen("bad", on="error")
    every = Seen("every")
    async with serve(shop()) as client, serve(good.app, bad.app, every.app):
        await observers(client, 3)
        await order(client, 1, -1, 2)
        await every.wait(3)
        await good.wait(2)
        await bad.wait(1)
    assert [one.input["amount"] for one in good.items] == [1, 2]
    assert [one.error and one.error["code"] for one in bad.items] == ["bad_request"]


async def test_where_and_sample_choose(serve):
    large = Seen("large", where={"output.total": {"gt": 10}})
    some = Seen("some", sample=0.5)
    every = Seen("every")
    async with serve(shop()) as client, serve(large.app, some.app, every.app):
        await observers(client, 3)
        await order(client, *range(60))
        await every.wait(60)
        await large.wait(54)
    assert len(large.items) == 54
    assert 5 < len(some.items) < 55


async def test_replicas_share_and_each_function_gets_its_copy(serve):
    one, two = Seen("one"), Seen("two")
    async with serve(shop()) as client, serve(one.app, two.app), serve(one.app, two.app):
        await observers(client, 4)
        await order(client, *range(20))
        await one.wait(20)
        await two.wait(20)
    assert len(one.items) == len(two.items) == 20


async def test_nothing_is_told_when_nobody_observes(serve):
    seen = Seen()
    told = []
    async with serve(shop()) as client:
        await client.bus.connection.listen(client.bus.names.done(">"), told.append)
        await order(client, 1)
        async with serve(seen.app):
            await observers(client, 1)
            await order(client, 2)
            await seen.wait(1)
        await observers(client, 0)
        before = len(told)
        with anyio.fail_after(10):  # the process that serves has heard that nobody is left
            while True:
                await order(client, 3)
                await client.bus.connection.flush()
                if len(told) == before:
                    break
                before = len(told)
    assert before >= 1


async def test_max_fires_holds_over_replicas_and_restarts(serve):
    seen = Seen(max_fires=5)
    every = Seen("every")
    async with serve(shop(), every.app) as client:
        async with serve(seen.app):
            await observers(client, 2)
            await order(client, 1, 2)
            await seen.wait(2)
        async with serve(seen.app), serve(seen.app):
            await observers(client, 3)
            await order(client, *range(20))
            await seen.wait(5)
            await observers(client, 1)  # both replicas have ended by themselves
        async with serve(seen.app):
            await order(client, 1)
            await every.wait(23)
            assert len(await held(client.bus, "observe.>")) == 1
    assert len(seen.items) == 5


async def test_an_observer_ends_when_its_time_is_over(serve):
    soon = Seen("soon", expires=1.0)
    past = Seen("past", expires=datetime.now(UTC) - timedelta(seconds=1))
    async with serve(shop()) as client, serve(soon.app, past.app):
        await observers(client, 1)
        await observers(client, 0)
        await order(client, 1)
        async with serve(soon.app):  # its time began with its first start
            assert await held(client.bus, "observe.>") == []
    assert soon.items == past.items == []


def test_a_function_cannot_observe_itself():
    app = App("loop")
    function = app.function("loop.run")(lambda: None)
    with pytest.raises(UsageError, match="itself"):
        app.on(Observe("loop.run"))(function)


@pytest.mark.parametrize(
    "settings",
    [
        {"on": "started"},
        {"sample": 0},
        {"sample": 1.5},
        {"max_fires": 0},
        {"expires": -1.0},
        {"expires": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"where": {"output": {}}},
    ],
)
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, Any]):
    with pytest.raises(ValidationError):
        Observe("orders.place", **settings)


def test_a_function_stands_for_its_id():
    place = shop().functions["orders.place"]
    assert Observe(place) == Observe("orders::place") == Observe("orders.place")
    with pytest.raises(ValidationError, match="noun"):
        Observe("Orders")
