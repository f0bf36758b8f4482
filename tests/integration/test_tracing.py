"""One trace over calls, jobs, events, changed keys and HTTP, and what is recorded of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from pydantic import BaseModel

from trine import App, Client, Context, EventModel, Retry, Scope
from trine.errors import DeadlineError, TrineError
from trine.invocation import new_traceparent
from trine.invocation import tracing as process
from trine.middleware.logging import logging
from trine.middleware.tracing import tracing
from trine.observability import traces
from trine.observability.traces import Span
from trine.settings import Settings
from trine.system import running
from trine_triggers import Cron, Event, Http, Key, KeyChange, Queue

pytestmark = pytest.mark.anyio

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    process.sample(1.0)
    process.inject = None


class Order(BaseModel):
    id: str


class OrderPlaced(EventModel, type="order.placed", key="id"):
    id: str


orders = Scope("orders", Order, changes=True)
drafts = Scope("drafts", Order)


class Records:
    """The spans that are published while it listens."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._arrived = anyio.Event()
        self.spans: list[Span] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Records"]:
        bus = self._client.bus

        def receive(message) -> None:
            self.spans.append(Span.model_validate_json(message.data))
            self._arrived.set()

        listener = await bus.connection.listen(bus.names.trace("*", "*", "*"), receive)
        try:
            yield self
        finally:
            await listener.close()

    async def of(self, *functions: str, seconds: float = 15) -> dict[str, Span]:
        """Wait until each of *functions* has a span, and return the first of each."""
        missing = set(functions)
        with anyio.move_on_after(seconds):
            while missing := set(functions) - {span.function for span in self.spans}:
                self._arrived = anyio.Event()
                await self._arrived.wait()
        assert not missing, f"no span of {missing} within {seconds} s"
        return {span.function: span for span in reversed(self.spans)}


def shop() -> App:
    app = App("shop", middleware=[tracing()])

    @app.on(Http("POST", "/orders"))
    @app.function("shop.order")
    async def order(ctx: Context, order: Order) -> dict[str, str]:
        await ctx.call("shop.price", order)
        await ctx.state(drafts).put(order.id, order)
        async with ctx.transaction() as tx:
            tx.put(orders, order.id, order)
            tx.send("shop.ship", order)
            tx.emit(OrderPlaced(id=order.id))
        await ctx.send("shop.remind", order, delay=1)
        await ctx.enqueue("labels", order)
        return {"invocation": ctx.id}

    @app.function("shop.price")
    async def price(order: Order) -> int:
        return 3

    @app.function("shop.ship", retry=Retry(3, delay_seconds=0.05))
    async def ship(ctx: Context, order: Order) -> None:
        if ctx.attempt == 1:
            raise RuntimeError("no van")

    @app.function("shop.remind")
    async def remind(order: Order) -> None: ...

    @app.on(Queue("labels"))
    @app.function("shop.label")
    async def label(order: Order) -> None: ...

    @app.on(Event("order.placed"))
    @app.function("shop.notify")
    async def notify(ctx: Context, event: OrderPlaced) -> None:
        await ctx.call("shop.price", Order(id=event.id))

    @app.on(Key(orders))
    @app.function("shop.index")
    async def index(change: KeyChange) -> None: ...

    @app.on(Key(drafts))
    @app.function("shop.draft")
    async def draft(change: KeyChange) -> None: ...

    return app


async def test_one_trace_shows_a_request_and_all_that_it_caused(nats, space, tmp_path, trine):
    settings = Settings(nats=nats, namespace=space, port=0, store=tmp_path)
    async with running(settings, [shop()]) as system, Records(system.client).listening() as seen:
        async with httpx.AsyncClient() as http:
            reply = await http.post(
                f"{system.http[0]}/orders",
                json={"id": "o1"},
                headers={"traceparent": PARENT, "tracestate": "rojo=1"},
            )
        assert reply.headers["traceparent"] == PARENT
        invocation = reply.json()["invocation"]
        found = await seen.of(
            "shop.order", "shop.price", "shop.ship", "shop.remind", "shop.label",
            "shop.notify", "shop.index", "shop.draft",
        )  # fmt: skip
        assert {span.trace for span in seen.spans} == {TRACE}
        root = found["shop.order"]
        assert root.parent == "00f067aa0ba902b7"
        assert root.trigger is None
        for caused, trigger in [
            ("ship", "job"), ("remind", "job"), ("label", "queue"), ("notify", "event"),
            ("index", "key"), ("draft", "key"),
        ]:  # fmt: skip
            span = found[f"shop.{caused}"]
            assert (span.parent, span.trigger) == (root.span, trigger), caused
        prices = [span for span in seen.spans if span.function == "shop.price"]
        while len(prices) < 2 or sum(span.function == "shop.ship" for span in seen.spans) < 2:
            seen._arrived = anyio.Event()
            await seen._arrived.wait()
            prices = [span for span in seen.spans if span.function == "shop.price"]
        assert {span.parent for span in prices} == {root.span, found["shop.notify"].span}
        shipped = [span for span in seen.spans if span.function == "shop.ship"]
        assert [(span.attempt, span.outcome) for span in shipped] == [(1, "internal"), (2, "ok")]
        assert shipped[0].error == "RuntimeError: no van"

        by_trace = await traces.find(system.client.bus, TRACE)
        assert {span.span for span in by_trace} == {span.span for span in seen.spans}
        assert await traces.find(system.client.bus, invocation) == by_trace

        code, out, _ = await trine.run("trace", invocation)
        assert code == 0
        lines = out.splitlines()
        assert lines[0].startswith(f"trace {TRACE}: 10 runs in ")
        assert lines[0].endswith(", 1 failed")
        assert lines[1].startswith("shop.order ")
        assert sum(line.startswith(("├─ ", "└─ ")) for line in lines) == 8
        assert any(line.startswith(("│  └─ shop.price", "   └─ shop.price")) for line in lines)
        (failed,) = [line for line in lines if "internal: RuntimeError: no van" in line]
        assert "shop.ship" in failed
        code, out, _ = await trine.run("trace", TRACE, "--json")
        assert {span["function"] for span in json.loads(out)} == set(found)


async def test_a_transaction_of_a_client_is_one_trace(serve):
    async with serve(shop()) as client, Records(client).listening() as seen:
        async with client.transaction() as tx:
            tx.put(orders, "o2", Order(id="o2"))
            tx.send("shop.remind", Order(id="o2"))
            tx.emit(OrderPlaced(id="o2"))
        found = await seen.of("shop.remind", "shop.notify", "shop.index")
        assert len({span.trace for span in found.values()}) == 1


async def test_a_job_that_a_client_sent_is_one_trace_over_its_attempts(serve):
    async with serve(shop()) as client, Records(client).listening() as seen:
        job = await client.send("shop.ship", Order(id="o3"))
        await job.result()
        await seen.of("shop.ship")
        first, second = seen.spans
        assert first.trace == second.trace
        assert first.parent == second.parent


async def test_a_tick_begins_a_trace(serve):
    app = App("clock", middleware=[tracing()])

    @app.on(Cron("* * * * * *"))
    @app.function("clock.tick")
    async def tick(ctx: Context) -> None:
        await ctx.call("clock.tock")

    @app.function("clock.tock")
    async def tock() -> None: ...

    async with serve(app) as client, Records(client).listening() as seen:
        found = await seen.of("clock.tick", "clock.tock")
        assert found["clock.tock"].parent == found["clock.tick"].span
        assert found["clock.tick"].trigger == "cron"
        assert found["clock.tick"].parent is None


async def kept(client: Client) -> int:
    info = await client.bus.api(f"STREAM.INFO.{client.bus.names.traces}")
    return int(info["state"]["messages"])


async def test_plain_calls_and_calls_that_are_not_sampled_leave_nothing(serve):
    async with serve(shop()) as client, Records(client).listening() as seen:
        await client.call("shop.price", Order(id="a"))
        for traceparent in (
            PARENT[:-2] + "00",
            "00-zz",
            PARENT.replace(TRACE, "0" * 32),
            "ff" + PARENT[2:],
        ):
            await client.call_bytes(
                "shop.price", b'{"id": "a"}', headers={"traceparent": traceparent}
            )
        await client.call_bytes("shop.price", b'{"id": "b"}', headers={"traceparent": PARENT})
        await seen.of("shop.price")
        assert len(seen.spans) == 1
        assert await kept(client) == 1


async def test_a_share_of_the_traces_is_recorded_the_same_share_everywhere(serve):
    process.sample(0.0)
    assert new_traceparent().endswith("-00")
    process.sample(0.5)
    flags = [new_traceparent()[-2:] for _ in range(400)]
    assert 100 < flags.count("01") < 300
    async with serve(shop()) as client, Records(client).listening() as seen:
        inside, outside = TRACE[:16] + "7" * 16, TRACE[:16] + "8" * 16
        for trace in (outside, inside):
            await client.call_bytes(
                "shop.price", b'{"id": "b"}', headers={"traceparent": f"00-{trace}-{'1' * 16}-01"}
            )
        found = await seen.of("shop.price")
        assert [span.trace for span in seen.spans] == [inside]
        assert found["shop.price"].trace == inside
        process.sample(0.0)
        await client.send("shop.remind", Order(id="c"))
        await client.call_bytes("shop.price", b'{"id": "b"}')
    assert len(seen.spans) == 1


async def test_a_run_that_is_stopped_says_why(serve):
    app = App("slow", middleware=[tracing(), logging])
    started = anyio.Event()

    @app.function("slow.wait")
    async def wait() -> None:
        started.set()
        await anyio.sleep_forever()

    @app.function("slow.job", timeout=0.1, retry=Retry(1))
    async def job() -> None:
        await anyio.sleep_forever()

    @app.function("slow.refuse")
    async def refuse() -> None:
        raise TrineError("not today")

    head = {"traceparent": PARENT}
    async with serve(app) as client, Records(client).listening() as seen:
        with pytest.raises(DeadlineError):
            await client.call_bytes("slow.wait", b"", headers=head, timeout=0.2)
        late = (await seen.of("slow.wait"))["slow.wait"]
        assert late.outcome in ("deadline_exceeded", "cancelled")
        seen.spans.clear()

        started = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.call_bytes("slow.wait", b"", headers=head))
            await started.wait()
            tasks.cancel_scope.cancel()
        assert (await seen.of("slow.wait"))["slow.wait"].outcome == "cancelled"

        await client.send("slow.job")
        assert (await seen.of("slow.job"))["slow.job"].outcome == "deadline_exceeded"
        with pytest.raises(TrineError):
            await client.call_bytes("slow.refuse", b"", headers=head)
        refused = (await seen.of("slow.refuse"))["slow.refuse"]
        assert (refused.outcome, refused.error) == (TrineError.code, "not today")


async def test_streams_and_broadcasts_are_part_of_the_trace(serve):
    app = App("many", middleware=[tracing()])

    @app.function("many.root")
    async def root(ctx: Context) -> int:
        await ctx.broadcast("many.one")
        return sum([item async for item in ctx.stream("many.items")])

    @app.function("many.one")
    async def one() -> int:
        return 1

    @app.function("many.items")
    async def items() -> AsyncIterator[int]:
        yield 1
        yield 2

    async with serve(app) as client, Records(client).listening() as seen:
        await client.call_bytes("many.root", b"", headers={"traceparent": PARENT})
        found = await seen.of("many.root", "many.one", "many.items")
        assert found["many.one"].parent == found["many.root"].span
        assert found["many.items"].parent == found["many.root"].span


async def test_the_trace_of_what_was_never_recorded_is_an_error(serve, trine):
    async with serve(shop()):
        code, out, err = await trine.run("trace", "nobody-1")
        assert (code, out) == (3, "")
        assert "nothing of 'nobody-1' is recorded" in err


async def test_what_anybody_may_publish_as_a_span_does_no_harm(serve):
    async with serve(shop()) as client:
        bus = client.bus
        for number, payload in enumerate((b"", b"{", b"[]", b'{"trace": 1}')):
            bus.connection.send(bus.names.trace(TRACE, f"{number:016x}", "x"), payload)
        await bus.connection.flush()
        while await kept(client) < 4:
            await asyncio.sleep(0)
        assert await traces.find(bus, TRACE) == []
        assert await traces.find(bus, "x") == []
        assert await traces.find(bus, "*") == []
        assert await traces.find(bus, "a b > \r\n") == []
