"""A handler that blocks the event loop is named in the log; one that runs in a thread is not."""

import time
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from trine import App
from trine.serving.watchdog import Watchdog

pytestmark = pytest.mark.anyio


def blocked(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["event"] == "event_loop_blocked"]


def spin(logs: list[Any], seconds: float = 20) -> bool:
    """Keep the thread busy until there is a warning; return whether one came."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if blocked(logs):
            return True
        time.sleep(0.01)
    return False


async def test_a_handler_that_blocks_the_loop_is_named_while_it_does(serve):
    app = App("bad")
    logs: list[Any] = []

    @app.function("bad.block")
    async def block() -> bool:
        return spin(logs)

    with capture_logs() as entries:
        logs = entries
        async with serve(app) as client:
            assert await client.call("bad.block") is True
    [warning] = blocked(logs)
    assert warning["function"] == "bad.block"
    assert warning["log_level"] == "warning"
    file, _, line = warning["at"].rpartition(":")
    assert file == __file__
    assert int(line) > 0


async def test_a_handler_that_blocks_twice_is_warned_about_twice(serve):
    app = App("bad")
    logs: list[Any] = []
    seen: list[int] = []

    @app.function("bad.block")
    async def block() -> int:
        before = len(blocked(logs))
        limit = time.monotonic() + 20
        while len(blocked(logs)) == before and time.monotonic() < limit:
            time.sleep(0.01)
        seen.append(len(blocked(logs)) - before)
        return before

    with capture_logs() as entries:
        logs = entries
        async with serve(app) as client:
            await client.call("bad.block")
            await client.call("bad.block")
    assert seen == [1, 1]


async def test_an_async_generator_and_what_it_calls_are_named_too(serve):
    app = App("bad")
    logs: list[Any] = []

    @app.function("bad.stream")
    async def stream():
        yield 1
        yield int(spin(logs))

    with capture_logs() as entries:
        logs = entries
        async with serve(app) as client:
            assert [one async for one in client.stream("bad.stream")] == [1, 1]
    assert [one["function"] for one in blocked(logs)] == ["bad.stream"]


async def test_sync_handlers_and_long_awaits_are_not_warned_about(serve):
    app = App("good")

    @app.function("good.sleep")
    def sleep() -> None:
        time.sleep(3)

    @app.function("good.busy")
    def busy() -> int:
        limit = time.monotonic() + 3
        n = 0
        while time.monotonic() < limit:
            n += 1
        return n

    @app.function("good.wait")
    async def wait() -> None:
        await anyio.sleep(3)

    with capture_logs() as logs:
        async with serve(app) as client, anyio.create_task_group() as tasks:
            for name in app.functions:
                tasks.start_soon(client.call, name)
    assert blocked(logs) == []


async def test_code_that_is_nobodys_handler_is_shown_by_its_place():
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            await tasks.start(Watchdog([], seconds=0.2).run)
            assert spin(logs)
            tasks.cancel_scope.cancel()
    assert blocked(logs)[0]["function"] == "?"
    assert __file__ in blocked(logs)[0]["at"]
