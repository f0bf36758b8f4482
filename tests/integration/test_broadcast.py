"""Calls to one named worker and to all of them."""

import anyio
import pytest

from trine import App, Context, catalogue
from trine.errors import ConflictError, FunctionNotFoundError, UnavailableError

pytestmark = pytest.mark.anyio


def named() -> App:
    app = App("who")

    @app.function("who.am_i")
    async def am_i(ctx: Context) -> str:
        return ctx.invocation.worker

    @app.function("who.refuses")
    async def refuses(ctx: Context, worker: str) -> str:
        if ctx.invocation.worker == worker:
            raise ConflictError("not me")
        return "fine"

    @app.function("who.sleeps")
    async def sleeps(ctx: Context, worker: str) -> str:
        if ctx.invocation.worker == worker:
            await anyio.sleep_forever()
        return "awake"

    return app


async def test_a_broadcast_gathers_the_answer_of_every_replica(serve):
    async with serve(named()) as client, serve(named()), serve(named()):
        workers = {info.id for info in await catalogue.workers(client.bus)}
        answers = await client.broadcast("who.am_i")
        assert len(workers) == 3
        assert {answer.worker for answer in answers} == workers
        assert all(answer.value == answer.worker for answer in answers)


async def test_the_error_of_one_replica_stands_beside_the_values_of_the_others(serve):
    async with serve(named()) as client, serve(named()):
        bad = (await catalogue.workers(client.bus))[0].id
        answers = {
            one.worker: one for one in await client.broadcast("who.refuses", {"worker": bad})
        }
        assert isinstance(answers.pop(bad).error, ConflictError)
        assert [one.value for one in answers.values()] == ["fine"]


async def test_a_replica_that_does_not_answer_is_named(serve):
    async with serve(named()) as client, serve(named()):
        stuck = (await catalogue.workers(client.bus))[1].id
        answers = await client.broadcast("who.sleeps", {"worker": stuck}, timeout=1)
        errors = [one for one in answers if one.error is not None]
        assert [(one.worker, one.error.code) for one in errors] == [(stuck, "deadline_exceeded")]
        assert len(answers) == 2


async def test_a_broadcast_to_nobody_says_so(serve):
    async with serve(named()) as client:
        with pytest.raises(FunctionNotFoundError, match=r"who\.am_i"):
            await client.broadcast("who.am_j")


async def test_one_worker_can_be_called_by_its_id(serve):
    async with serve(named()) as client, serve(named()):
        for info in await catalogue.workers(client.bus):
            assert await client.call("who.am_i", worker=info.id) == info.id
        with pytest.raises(UnavailableError, match="nobody-1"):
            await client.call("who.am_i", worker="nobody-1")
