"""What happens to calls when something breaks: the server, a subscriber, a handler, a caller."""

import os
import signal
import socket
import sys
from collections import Counter
from typing import Any

import anyio
import pytest

from trine import App, Client
from trine.errors import DeadlineError, TrineError
from trine.testing import server, serving
from trine.transport.connection import connect

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


async def test_of_1000_calls_over_a_restart_each_succeeds_or_may_be_repeated(own_server):
    app = App("work")
    halfway = anyio.Event()
    started = 0

    @app.function("work.do", concurrency=2000)
    async def do(n: int) -> int:
        nonlocal started
        started += 1
        if started == 300:
            halfway.set()
        await anyio.sleep(0.01)
        return n

    outcomes: Counter[str] = Counter()
    wrong: list[Any] = []

    async with serving(app, url=own_server.url, namespace="t") as client:
        async with Client.connect(own_server.url, namespace="t") as caller:

            async def call(n: int) -> None:
                try:
                    answer = await caller.call("work.do", {"n": n}, timeout=8)
                    outcomes["answered"] += 1
                    if answer != n:
                        wrong.append((n, answer))
                except TrineError as error:
                    outcomes[error.code] += 1
                    if not error.retryable:
                        wrong.append((n, error.code, error.message))

            # Each has 8 s; the rest is for a slow machine.
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    places = anyio.Semaphore(100)

                    async def one(n: int) -> None:
                        async with places:
                            await call(n)

                    for n in range(1000):
                        tasks.start_soon(one, n)
                    await halfway.wait()
                    own_server.kill()
                    own_server.start()
            assert not wrong, wrong[:5]
            assert outcomes.total() == 1000
            assert outcomes["answered"] >= 300
            with anyio.fail_after(20):
                while True:
                    try:
                        assert await caller.call("work.do", {"n": 7}, timeout=1) == 7
                        break
                    except TrineError:
                        await anyio.sleep(0.05)
        assert await client.call("work.do", {"n": 8}) == 8


async def test_a_subscriber_that_does_not_read_harms_nobody_else(nats, space, serve):
    app = App("talk")

    @app.function("talk.echo")
    async def echo(text: str) -> int:
        return len(text)

    host, port = nats.removeprefix("nats://").split(":")
    deaf = socket.create_connection((host, int(port)))
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.sendall(b'CONNECT {"verbose":false}\r\nSUB ' + f"{space}.>".encode() + b" 1\r\nPING\r\n")
    await anyio.wait_readable(deaf)
    async with serve(app) as client:
        with anyio.fail_after(60):
            for _ in range(200):  # 20 MB, of which it reads nothing
                assert await client.call("talk.echo", {"text": "x" * 100_000}) == 100_000
    deaf.close()


SLOW = """
from trine import App

app = App("slow")

@app.function("slow.echo")
async def echo(n: int = 0) -> int:
    return n
"""


async def test_a_worker_that_the_server_drops_as_a_slow_consumer_says_so_and_comes_back(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    log = tmp_path / "log"
    options = 'max_pending: 1MB\nwrite_deadline: "200ms"'
    async with (
        server(tmp_path / "store", options=options) as url,
        connect(url) as flooding,
        Client.connect(url, namespace="s") as client,
    ):
        with log.open("wb") as stderr:
            process = await anyio.open_process(
                [sys.executable, "-m", "trine", "serve", "slow.py:app"],
                cwd=tmp_path,
                env={**os.environ, "TRINE_NATS": url, "TRINE_NAMESPACE": "s"},
                stderr=stderr,
            )
        async with process:
            try:
                assert process.stdout is not None
                with anyio.fail_after(60):
                    await process.stdout.receive()
                    process.send_signal(signal.SIGSTOP)  # it reads no more
                    for _ in range(200):  # 100 MB for it: more than all buffers between us
                        for _ in range(10):
                            flooding.send("s.all.fn.nobody", b"x" * 50_000)
                        await flooding.flush()
                    process.send_signal(signal.SIGCONT)
                    while b"nats_reconnected" not in log.read_bytes():
                        await anyio.sleep(0.05)
                    assert b"nats_disconnected" in log.read_bytes()
                    while True:
                        try:
                            assert await client.call("slow.echo", {"n": 3}, timeout=2) == 3
                            break
                        except TrineError:
                            await anyio.sleep(0.05)
            finally:
                process.kill()


async def test_a_handler_that_never_returns_ends_at_the_deadline_of_its_caller(serve):
    app = App("stuck")
    ended = anyio.Event()

    @app.function("stuck.wait")
    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    @app.function("stuck.own", timeout=0.2)
    async def own() -> None:
        await anyio.sleep_forever()

    async with serve(app) as client:
        with pytest.raises(DeadlineError):
            await client.call("stuck.wait", timeout=0.3)
        with anyio.fail_after(10):
            await ended.wait()
        job = await client.send("stuck.own", id="one")
        letters = client.bus.names.dead
        with pytest.raises(DeadlineError):  # what it ends with, after its attempts
            await job.result(30)
        assert await client.bus.subjects(letters, f"{client.bus.names.namespace}.dead.>")


CALLER = """
import asyncio, sys
from trine import Client

async def main():
    async with Client.connect(sys.argv[1], namespace=sys.argv[2]) as client:
        if sys.argv[3] == "stream":
            async for item in client.stream("long.stream"):
                print(item, flush=True)
        else:
            await client.call("long.run", timeout=600)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["call", "stream"])
async def test_a_callee_is_cancelled_within_10_seconds_when_its_caller_is_killed(
    nats, space, serve, kind
):
    app = App("long")
    began, cancelled = anyio.Event(), anyio.Event()

    @app.function("long.run")
    async def run() -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    @app.function("long.stream")
    async def stream():
        began.set()
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    async with serve(app):
        caller = await anyio.open_process(
            [sys.executable, "-c", CALLER, nats, space, kind], stdout=None, stderr=None
        )
        async with caller:
            with anyio.fail_after(20):
                await began.wait()
            with anyio.move_on_after(8):  # longer than its silence may be: it lives, nothing ends
                await cancelled.wait()
            assert not cancelled.is_set()
            caller.send_signal(signal.SIGKILL)
            with anyio.fail_after(10):
                await cancelled.wait()
            await caller.wait()
