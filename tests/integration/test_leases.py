"""Leases, presence and single placement, over a real server."""

import anyio
import pytest

from trine import App, Trigger, TriggerContext, catalogue
from trine.catalogue.directory import Directory, functions
from trine.errors import WriteConflictError
from trine.leases import Lease, held

pytestmark = pytest.mark.anyio


async def until(condition, seconds: float = 10) -> None:
    with anyio.fail_after(seconds):
        while not await condition():
            await anyio.sleep(0.01)


async def test_one_takes_a_lease_and_the_second_does_not(serve):
    async with serve() as client:
        first = Lease(client.bus, "gpu.0", b"a", 30)
        second = Lease(client.bus, "gpu.0", b"b", 30)
        assert await first.take()
        assert first.held
        assert not await second.take()
        assert not second.held
        await first.release()
        assert not first.held
        assert await second.take()
        assert second.revision > first.revision
        assert [one.payload for one in await held(client.bus, "gpu.*")] == [b"b"]


async def test_a_lease_expires_and_the_stale_holder_cannot_renew(serve):
    async with serve() as client:
        first = Lease(client.bus, "gpu.0", b"a", 1)
        second = Lease(client.bus, "gpu.0", b"b", 30)
        assert await first.take()

        async def taken() -> bool:
            return await second.take()

        await until(taken)
        assert not first.held
        with pytest.raises(WriteConflictError):
            await first.renew()
        assert second.revision > first.revision


async def test_renewing_keeps_a_lease(serve):
    async with serve() as client:
        lease = Lease(client.bus, "gpu.0", b"a", 1)
        assert await lease.take()
        for _ in range(5):
            await anyio.sleep(0.3)  # longer in all than the lease lives
            await lease.renew()
        assert len(await held(client.bus, "gpu.*")) == 1


async def test_a_worker_is_in_the_catalogue_while_it_serves(serve):
    app = App("shop")

    @app.function("shop.order", timeout=3)
    async def order(n: int) -> int:
        """Take an order."""
        return n

    async with serve() as client:
        directory = Directory(client.bus)
        changes = 0

        def changed() -> None:
            nonlocal changes
            changes += 1

        directory.on_change = changed
        async with anyio.create_task_group() as tasks:
            await tasks.start(directory.run)
            assert "shop.order" not in await functions(client.bus)
            async with serve(app):
                info = (await functions(client.bus))["shop.order"]
                assert (info.doc, info.timeout) == ("Take an order.", 3)
                assert info.input_schema["properties"]["n"]["type"] == "integer"
                assert len(await catalogue.workers(client.bus)) == 2

                async def known() -> bool:
                    return "shop.order" in directory.functions

                await until(known)
            assert "shop.order" not in await functions(client.bus)
            assert len(await catalogue.workers(client.bus)) == 1

            async def forgotten() -> bool:
                return "shop.order" not in directory.functions

            await until(forgotten)
            assert changes == 2
            tasks.cancel_scope.cancel()


class Single(Trigger):
    placement = "single"
    name: str = "only"

    async def run(self, ctx: TriggerContext) -> None:
        await ctx.fire()
        await ctx.stopping.wait()


class Failing(Trigger):
    placement = "each"

    async def run(self, ctx: TriggerContext) -> None:
        if await ctx.fire() < 3:
            raise RuntimeError("the source broke")
        await ctx.stopping.wait()


async def test_a_single_trigger_runs_in_one_replica_and_moves_when_it_stops(serve):
    app = App("one")
    starts = 0
    moved = anyio.Event()

    @app.on(Single())
    @app.function()
    async def start() -> None:
        nonlocal starts
        starts += 1
        if starts == 2:
            moved.set()

    async with serve(app) as client:

        async def running() -> bool:
            return starts == 1

        await until(running)
        async with serve(app):
            [lease] = await held(client.bus, "trigger.*")
            assert starts == 1
            assert lease.payload.decode()
    async with serve(app):
        with anyio.fail_after(10):
            await moved.wait()


async def test_a_trigger_that_fails_is_started_again(serve):
    app = App("flaky")
    starts = 0
    third = anyio.Event()

    @app.on(Failing())
    @app.function()
    async def start() -> int:
        nonlocal starts
        starts += 1
        if starts == 3:
            third.set()
        return starts

    async with serve(app):
        with anyio.fail_after(10):
            await third.wait()
