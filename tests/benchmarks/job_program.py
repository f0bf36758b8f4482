"""A process of the job benchmark: ``job_program.py ROLE URL SECONDS``; callers print JSON."""

import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import anyio
import nats
from nats.aio.msg import Msg

from trine import App, Client, Worker, streams

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo, of_size

IN_FLIGHT = 64
app = App("bench")


@app.function("bench.echo")
async def echo(value: Echo) -> Echo:
    return value


@app.function("bench.now")
async def now() -> float:
    """Return the clock that all processes of this machine share."""
    return time.monotonic()


async def serve(url: str) -> None:
    bare = await nats.connect(url)

    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    await bare.subscribe("bare.echo", cb=answer)
    await bare.flush()
    async with Client.connect(url) as client, anyio.create_task_group() as tasks:
        await streams.ensure(client.bus)
        await tasks.start(Worker(client, [app]).run)
        print("ready", flush=True)


async def load(
    call: Callable[[], Awaitable[object]], in_flight: int, seconds: float
) -> list[float]:
    """Call for so many *seconds* and return how long each call took."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        while (before := time.perf_counter()) < end:
            await call()
            times.append(time.perf_counter() - before)

    async with anyio.create_task_group() as tasks:
        for _ in range(in_flight):
            tasks.start_soon(one)
    return times


async def bare_requests(url: str, seconds: float, in_flight: int) -> dict[str, float]:
    payload = of_size(100).model_dump_json().encode()
    bare = await nats.connect(url)
    started = time.perf_counter()
    times = await load(lambda: bare.request("bare.echo", payload, 5), in_flight, seconds)
    took = time.perf_counter() - started
    await bare.close()
    return {"rate": len(times) / took, "p50": statistics.median(times)}


async def jobs(client: Client, seconds: float, keep: float | None) -> dict[str, float]:
    """Send jobs and wait until the server has seen all of them acknowledged."""
    value = of_size(100)
    started = time.perf_counter()
    times = await load(lambda: client.send(echo, value, keep=keep), IN_FLIGHT, seconds)
    info = f"STREAM.INFO.{client.bus.names.jobs}"
    while (await client.bus.api(info))["state"]["messages"]:
        await anyio.sleep(0.005)
    return {"rate": len(times) / (time.perf_counter() - started)}


async def latency(client: Client, count: int) -> dict[str, float]:
    """Send one job at a time and tell how long after the call its handler began."""
    times = []
    for _ in range(count):
        before = time.monotonic()
        job = await client.send(now)
        times.append(await job.result(10) - before)
    return {"p50": statistics.median(times)}


async def main() -> None:
    role, url, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    if role == "serve":
        await serve(url)
        return
    if role.startswith("bare"):
        in_flight = IN_FLIGHT if role == "bare" else 1
        print(json.dumps(await bare_requests(url, seconds, in_flight)))
        return
    async with Client.connect(url) as client:
        if role == "latency":
            said = await latency(client, 200)
        else:
            said = await jobs(client, seconds, 0 if role == "jobs" else None)
    print(json.dumps(said))


anyio.run(main, backend_options={"use_uvloop": True})
