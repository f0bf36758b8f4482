"""Streaming functions, over a real server."""
# ruff: noqa: PT012 - what raises is the iteration as a whole

from collections.abc import AsyncIterator
from contextlib import aclosing

import anyio
import pytest
from pydantic import BaseModel

from trine import App
from trine.errors import BadRequestError, FunctionNotFoundError, InvalidInputError, UsageError

pytestmark = pytest.mark.anyio


class Item(BaseModel):
    n: int


def counting(ended: anyio.Event) -> App:
    app = App("count")

    @app.function("count.to")
    async def to(limit: int) -> AsyncIterator[Item]:
        for n in range(limit):
            yield Item(n=n)

    @app.function("count.fail")
    async def fail() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise BadRequestError("enough", after=2)

    @app.function("count.ever")
    async def ever() -> AsyncIterator[int]:
        n = 0
        try:
            while True:
                yield n
                n += 1
        finally:
            ended.set()

    return app


async def test_items_arrive_in_order_and_the_end_ends(serve):
    app = counting(anyio.Event())
    async with serve(app) as client:
        with anyio.fail_after(10):
            typed = [item async for item in client.stream(app.functions["count.to"], {"limit": 3})]
            assert typed == [Item(n=0), Item(n=1), Item(n=2)]
            assert [item async for item in client.stream("count.to", {"limit": 1})] == [{"n": 0}]
            assert [item async for item in client.stream("count.to", {"limit": 0})] == []


async def test_a_slow_reader_loses_nothing(serve):
    async with serve(counting(anyio.Event())) as client:
        got: list[int] = []
        with anyio.fail_after(20):
            async for item in client.stream("count.to", {"limit": 10_000}):
                if not got:
                    await anyio.sleep(0.5)  # meanwhile the rest arrives
                got.append(item["n"])
        assert got == list(range(10_000))


async def test_an_error_in_the_middle_comes_after_the_items_before_it(serve):
    async with serve(counting(anyio.Event())) as client:
        got: list[int] = []
        with anyio.fail_after(10), pytest.raises(BadRequestError, match="enough") as error:
            async for item in client.stream("count.fail"):
                got.append(item)  # noqa: PERF401 - it ends by an error
        assert got == [1, 2]
        assert error.value.details == {"after": 2}


async def test_a_reader_that_leaves_stops_the_generator(serve):
    ended = anyio.Event()
    async with serve(counting(ended)) as client:
        with anyio.fail_after(10):
            async with aclosing(client.stream("count.ever")) as items:
                async for n in items:
                    if n == 5:
                        break
            await ended.wait()


async def test_invalid_input_and_unknown_functions_are_errors_of_a_stream_too(serve):
    async with serve(counting(anyio.Event())) as client:
        with anyio.fail_after(10):
            with pytest.raises(InvalidInputError):
                await anext(client.stream("count.to", {"limit": "x"}))
            with pytest.raises(FunctionNotFoundError):
                await anext(client.stream("count.down"))


async def test_a_streaming_function_refuses_a_plain_call(serve):
    async with serve(counting(anyio.Event())) as client:
        with pytest.raises(UsageError, match="stream"):
            await client.call("count.to", {"limit": 1})
