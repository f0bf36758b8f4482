"""One round: ``event_programs.py bare-fanout|trine-fanout|key|key-durable URL`` prints JSON."""

import asyncio
import json
import secrets
import statistics
import sys
import time

import anyio
import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from pydantic import BaseModel

from trine import App, Client, EventModel, Scope, Worker, streams
from trine_triggers import Event, Key, KeyChange

FUNCTIONS = 8
EVENTS = 1000
CHANGES = 200


class Happened(EventModel, type="bench.happened"):
    number: int
    text: str = "x" * 60


class Value(BaseModel):
    at: float


class Count:
    """Sets ``done`` when so many have been counted."""

    def __init__(self, wanted: int) -> None:
        self.left = wanted
        self.done = asyncio.Event()

    def one(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.done.set()


async def bare_fanout(url: str) -> float:
    connection = await nats.connect(url)
    stream = connection.jetstream()
    name = f"B{secrets.token_hex(4)}"
    await stream.add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    count = Count(FUNCTIONS * EVENTS)

    async def handle(message) -> None:
        Happened.model_validate_json(message.data)
        await message.ack()
        count.one()

    for number in range(FUNCTIONS):
        config = ConsumerConfig(
            durable_name=f"c{number}",
            deliver_policy=DeliverPolicy.NEW,
            ack_policy=AckPolicy.EXPLICIT,
            max_ack_pending=10_000,
        )
        await stream.subscribe(f"{name}.>", cb=handle, config=config, manual_ack=True)
    started = time.perf_counter()

    async def emit(first: int) -> None:
        for event in range(first, EVENTS, 16):
            await stream.publish(f"{name}.e", Happened(number=event).model_dump_json().encode())

    await asyncio.gather(*(emit(first) for first in range(16)))
    await count.done.wait()
    took = time.perf_counter() - started
    await stream.delete_stream(name)
    await connection.close()
    return FUNCTIONS * EVENTS / took


async def trine_fanout(url: str) -> float:
    count = Count(FUNCTIONS * EVENTS)
    app = App("bench")

    def make(number: int) -> None:
        @app.on(Event("bench.happened", concurrency=64))
        @app.function(f"bench.f{number}")
        async def handle(event: Happened) -> None:
            count.one()

    for number in range(FUNCTIONS):
        make(number)
    async with serving(url, app) as client:
        started = time.perf_counter()

        async def emit(first: int) -> None:
            for event in range(first, EVENTS, 16):
                await client.emit(Happened(number=event))

        await asyncio.gather(*(emit(first) for first in range(16)))
        await count.done.wait()
        return FUNCTIONS * EVENTS / (time.perf_counter() - started)


async def key_change(url: str, *, durable: bool) -> float:
    app = App("bench")
    scope = Scope("values", Value, changes=durable)
    arrived: list[float] = []
    seen = asyncio.Event()

    @app.on(Key(scope, "k.*"))
    @app.function("bench.changed")
    async def changed(change: KeyChange) -> None:
        arrived.append(time.perf_counter() - change.new["at"])
        seen.set()

    async with serving(url, app) as client:
        for number in range(CHANGES):
            seen.clear()
            await client.state(scope).put(f"k.{number % 10}", Value(at=time.perf_counter()))
            await seen.wait()
    return statistics.median(arrived)


class serving:  # noqa: N801 - used as a function
    """Serve *app* in this process, in a namespace of its own."""

    def __init__(self, url: str, app: App) -> None:
        self._url, self._app = url, app

    async def __aenter__(self) -> Client:
        self._client = Client.connect(self._url, namespace=f"b{secrets.token_hex(4)}")
        client = await self._client.__aenter__()
        await streams.ensure(client.bus)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._worker = Worker(client, [self._app])
        await self._tasks.start(self._worker.run)
        return client

    async def __aexit__(self, *error) -> None:
        self._worker.stop()
        await self._tasks.__aexit__(*error)
        await self._client.__aexit__(*error)


async def main() -> None:
    kind, url = sys.argv[1:]
    if kind == "bare-fanout":
        value = await bare_fanout(url)
    elif kind == "trine-fanout":
        value = await trine_fanout(url)
    else:
        value = await key_change(url, durable=kind == "key-durable")
    print(json.dumps({"value": value}))


anyio.run(main, backend_options={"use_uvloop": True})
