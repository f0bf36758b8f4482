"""What happens when the server goes away, and what the embedded one promises."""

import os
import signal
import subprocess
import sys

import anyio
import pytest
from pydantic import BaseModel

from trine import App, Client, Entry, EventModel, Scope
from trine.embedded import nats_server
from trine.errors import StoreLockedError, TrineError, UnavailableError
from trine.testing import serving
from trine_triggers import Event, Queue

pytestmark = pytest.mark.anyio


class Value(BaseModel):
    n: int


class Done(EventModel, type="work.done"):
    n: int


values = Scope("values", Value)


async def test_everything_goes_on_after_the_server_was_killed(own_server):
    app = App("work")
    runs: list[int] = []
    done: list[int] = []
    told = anyio.Event()

    @app.on(Queue("work"))
    @app.function("work.do")
    async def do(n: int) -> int:
        runs.append(n)
        return n

    @app.on(Event("work.done"))
    @app.function("work.told")
    async def heard(event: Done) -> None:
        done.append(event.n)
        told.set()

    async with (
        Client.connect(own_server.url, namespace="t") as other,
        serving(app, url=own_server.url, namespace="t") as client,
    ):
        store = client.state(values)
        watch = store.watch()
        with anyio.fail_after(40):
            assert await client.call("work.do", {"n": 0}) == 0
            for n in range(50):
                await store.put(f"k.{n}", Value(n=n))
            for n in range(50):
                entry = await anext(watch)
                assert isinstance(entry, Entry)
                assert entry.value.n == n
            waiting = [await other.enqueue("later", {"n": n}) for n in range(20)]
            own_server.kill()
            with pytest.raises(UnavailableError):
                await other.bus.request("$JS.API.INFO", timeout=0.1)
            own_server.start()
            while True:
                try:
                    assert await other.call("work.do", {"n": 1}, timeout=0.5) == 1
                    break
                except TrineError:
                    await anyio.sleep(0.05)
            entries = await other.state(values).entries()
            assert [entry.value.n for entry in entries] == list(range(50))
            await other.state(values).put("k.0", Value(n=100))
            entry = await anext(watch)
            assert isinstance(entry, Entry)
            assert entry.value.n == 100, "the watch goes on"
            with anyio.fail_after(8):  # consumers resume within seconds
                await other.emit(Done(n=1))
                await told.wait()
                job = await other.enqueue("work", {"n": 2})
                assert await job.result(8) == 2
        await watch.aclose()

        late = App("late")

        @late.on(Queue("later", concurrency=4))
        @late.function("late.do")
        async def later(n: int) -> int:
            return n * 10

        async with serving(late, url=own_server.url, namespace="t"):
            assert [await job.result(10) for job in waiting] == [n * 10 for n in range(20)]


async def test_two_embedded_servers_cannot_share_a_store(tmp_path):
    async with nats_server(tmp_path / "store") as url:
        assert url.startswith("nats://")
        with pytest.raises(StoreLockedError, match=str(os.getpid())):
            async with nats_server(tmp_path / "store"):
                pass
    async with nats_server(tmp_path / "store"):
        pass


async def test_what_was_acknowledged_survives_a_restart_of_the_embedded_server(tmp_path):
    async with nats_server(tmp_path / "store") as url, serving(url=url) as client:
        await client.state(values).put("k", Value(n=1))
    async with nats_server(tmp_path / "store") as url, serving(url=url) as client:
        assert (await client.state(values).get("k")).value.n == 1


async def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(UnavailableError, match="Parse error"):
        async with nats_server(tmp_path / "store", options="nonsense: {"):
            pass


PARENT = """
import anyio, sys
from pathlib import Path
from trine.embedded import nats_server

async def main():
    async with nats_server(Path(sys.argv[1])) as url:
        print(url, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_the_embedded_server_ends_when_its_parent_is_killed(tmp_path):
    process = await anyio.open_process(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdin=subprocess.DEVNULL, stderr=None
    )
    async with process:
        assert process.stdout is not None
        with anyio.fail_after(10):
            url = (await process.stdout.receive()).decode().strip()
            async with Client.connect(url):
                pass
            process.send_signal(signal.SIGKILL)
            await process.wait()
            port = int(url.rpartition(":")[2])
            while True:
                try:
                    stream = await anyio.connect_tcp("127.0.0.1", port)
                    await stream.aclose()
                    await anyio.sleep(0.02)
                except OSError:
                    break
    async with nats_server(tmp_path):
        pass


async def test_connecting_to_nobody_is_one_clear_error():
    with anyio.fail_after(6), pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        async with Client.connect("nats://127.0.0.1:1"):
            pass


async def test_a_closed_client_says_that_the_server_is_unavailable(nats):
    async with Client.connect(nats, namespace="closed") as client:
        pass
    with pytest.raises(UnavailableError):
        await client.call("any.thing")
    with pytest.raises(UnavailableError):
        await client.job("work/x").result(1)
    with pytest.raises(UnavailableError):
        await client.state(values).find("k")
    with pytest.raises(UnavailableError):
        await anext(client.stream("any.thing"))
    with pytest.raises(UnavailableError):
        await anext(client.state(values).watch())
