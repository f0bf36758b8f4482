"""A calling process: ``echo_caller.py bare|trine URL IN_FLIGHT SIZE SECONDS`` prints JSON."""

import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import anyio
import nats

from trine import App, Client

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo, of_size

app = App("bench")


@app.function("bench.echo")
async def echo(value: Echo) -> Echo:
    return value


async def load(call: Callable[[], Awaitable[object]], in_flight: int, seconds: float) -> None:
    for _ in range(200):
        await call()
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        while (before := time.perf_counter()) < end:
            await call()
            times.append(time.perf_counter() - before)

    async with anyio.create_task_group() as tasks:
        for _ in range(in_flight):
            tasks.start_soon(one)
    print(json.dumps({"rate": len(times) / seconds, "p50": statistics.median(times)}))


async def main() -> None:
    kind, url, in_flight, size, seconds = sys.argv[1:]
    value = of_size(int(size))
    if kind == "bare":
        payload = value.model_dump_json().encode()
        bare = await nats.connect(url)
        await load(lambda: bare.request("bare.echo", payload, 5), int(in_flight), float(seconds))
        await bare.close()
        return
    async with Client.connect(url) as client:
        await load(lambda: client.call(echo, value), int(in_flight), float(seconds))


anyio.run(main, backend_options={"use_uvloop": True})
