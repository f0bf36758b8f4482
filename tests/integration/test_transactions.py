"""Transactions, over a real server."""
# ruff: noqa: PT012 - what raises is the commit, on leaving the block

import anyio
import pytest
from pydantic import BaseModel

from trine import App, Context, EventModel, Retry, Scope
from trine.errors import KeyMissingError, TooLargeError, WriteConflictError
from trine.testing import serving
from trine_triggers import Event, Queue

pytestmark = pytest.mark.anyio


class Account(BaseModel):
    balance: int


class Moved(EventModel, type="money.moved", key="to"):
    to: str
    amount: int = 0


accounts = Scope("accounts", Account)
audited = Scope("audited", Account, changes=True)
totals = Scope("totals", int)
log = Scope("log", str)


class Listener:
    """An app that keeps what it was sent and told."""

    def __init__(self) -> None:
        self.events: list[Moved] = []
        self.jobs: list[int] = []
        self.arrived = anyio.Event()
        self.app = App("listener")

        @self.app.on(Event("money.moved"))
        @self.app.function("listener.event")
        async def event(moved: Moved) -> None:
            self.events.append(moved)
            self.check()

        @self.app.function("listener.job")
        async def job(n: int) -> int:
            self.jobs.append(n)
            self.check()
            return n

    def check(self) -> None:
        if self.events and self.jobs:
            self.arrived.set()


async def test_three_scopes_an_event_and_a_job_are_stored_together(serve):
    listener = Listener()
    async with serve(listener.app) as client:
        async with client.transaction() as tx:
            tx.put(accounts, "a", Account(balance=1))
            tx.put(audited, "b", Account(balance=2))
            tx.create(totals, "all", 3)
            tx.emit(Moved(to="b", amount=2))
            job = tx.send("listener.job", {"n": 4})
        assert tx.committed > 0
        assert await client.job(job).result(10) == 4
        with anyio.fail_after(10):
            await listener.arrived.wait()
        assert listener.events == [Moved(to="b", amount=2)]
        assert (await client.state(accounts).get("a")).value.balance == 1
        assert (await client.state(audited).get("b")).value.balance == 2
        assert (await client.state(totals).get("all")).value == 3


async def test_a_conflict_leaves_nothing_behind(serve):
    listener = Listener()
    async with serve(listener.app) as client:
        await client.state(totals).put("all", 1)
        with pytest.raises(WriteConflictError):
            async with client.transaction() as tx:
                tx.put(accounts, "a", Account(balance=1))
                assert await tx.get(totals, "all") == 1
                await client.state(totals).put("all", 2)
                tx.put(totals, "all", 3)
                tx.emit(Moved(to="lost"))
                tx.send("listener.job", {"n": -1})
        assert await client.state(accounts).find("a") is None
        assert (await client.state(totals).get("all")).value == 2
        async with client.transaction() as tx:  # what comes later arrives, and it alone
            tx.emit(Moved(to="kept"))
            tx.send("listener.job", {"n": 1})
        with anyio.fail_after(10):
            await listener.arrived.wait()
        assert listener.events == [Moved(to="kept")]
        assert listener.jobs == [1]


async def test_an_error_in_the_block_stores_nothing(serve):
    async with serve() as client:
        with pytest.raises(ZeroDivisionError):
            async with client.transaction() as tx:
                tx.put(totals, "all", 1)
                raise ZeroDivisionError
        assert await client.state(totals).find("all") is None


@pytest.mark.parametrize("written", ["nothing", "plain", "audited", "job"])
@pytest.mark.parametrize("guards", [1, 3])
async def test_a_key_that_was_only_read_is_guarded(serve, written, guards):
    async with serve() as client:
        for n in range(guards):
            await client.state(totals).put(f"read.{n}", 1)
        for n in range(guards):
            with pytest.raises(WriteConflictError):
                async with client.transaction() as tx:
                    for m in range(guards):
                        await tx.find(totals, f"read.{m}")
                    await tx.find(totals, "absent")
                    await client.state(totals).put(f"read.{n}", 2)
                    if written == "plain":
                        tx.put(accounts, "a", Account(balance=1))
                    elif written == "audited":
                        tx.put(audited, "a", Account(balance=1))
                    elif written == "job":
                        tx.send("nobody.there")
                    else:
                        tx.create(log, "k", "x")
        assert await client.state(accounts).find("a") is None
        assert await client.state(audited).find("a") is None


async def test_an_absent_key_that_was_read_must_stay_absent(serve):
    async with serve() as client:
        with pytest.raises(WriteConflictError):
            async with client.transaction() as tx:
                assert await tx.find(totals, "new") is None
                await client.state(totals).put("new", 1)
                tx.put(accounts, "a", Account(balance=1))


async def test_the_block_reads_what_it_wrote(serve):
    async with serve() as client:
        await client.state(totals).put("a", 1)
        async with client.transaction() as tx:
            tx.put(totals, "a", 2)
            assert await tx.get(totals, "a") == 2
            tx.delete(totals, "a")
            assert await tx.find(totals, "a") is None
            with pytest.raises(KeyMissingError):
                await tx.get(totals, "a")
            assert (await client.state(totals).get("a")).value == 1, "nobody else sees it yet"
            tx.put(totals, "b", 5)
            tx.put(totals, "b", 6)
        assert await client.state(totals).find("a") is None
        assert (await client.state(totals).get("b")).value == 6


async def test_a_transaction_may_create_what_another_deleted(serve):
    async with serve() as client:
        await client.state(totals).put("a", 1)
        await client.state(totals).delete("a")
        async with client.transaction() as tx:
            tx.create(totals, "a", 2)
        with pytest.raises(WriteConflictError):
            async with client.transaction() as tx:
                tx.create(totals, "a", 3)


async def test_a_transaction_that_only_reads_commits(serve):
    async with serve() as client:
        async with client.transaction() as tx:
            assert await tx.find(totals, "a") is None
        assert tx.committed == 0


async def test_a_function_with_retry_runs_again_after_a_conflict(serve):
    app = App("bank")

    @app.function("bank.move", retry=Retry(50))
    async def move(ctx: Context, amount: int) -> None:
        async with ctx.transaction() as tx:
            a = await tx.find(accounts, "a") or Account(balance=100)
            b = await tx.find(accounts, "b") or Account(balance=0)
            tx.put(accounts, "a", Account(balance=a.balance - amount))
            tx.put(accounts, "b", Account(balance=b.balance + amount))

    async with serve(app) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(client.call, "bank.move", {"amount": 3})
        assert (await client.state(accounts).get("a")).value.balance == 100 - 36
        assert (await client.state(accounts).get("b")).value.balance == 36


async def test_a_transaction_with_too_much_is_refused_whole(serve):
    async with serve() as client:
        with pytest.raises(TooLargeError):
            async with client.transaction() as tx:
                for n in range(1001):
                    tx.put(totals, f"n.{n}", n)
        with pytest.raises(TooLargeError):
            async with client.transaction() as tx:
                tx.put(totals, "one", 1)
                tx.put(log, "big", "x" * 1_100_000)
        assert await client.state(totals).entries() == []
        async with client.transaction() as tx:
            for n in range(300):
                tx.put(totals, f"n.{n}", n)
        assert len(await client.state(totals).entries("n")) == 300


async def test_more_transactions_at_once_than_the_server_has_places_for_all_commit(serve):
    async with serve() as client:

        async def write(n: int) -> None:
            async with client.transaction() as tx:
                tx.put(totals, f"a.{n}", n)
                tx.put(totals, f"b.{n}", n)

        async with anyio.create_task_group() as tasks:
            for n in range(120):
                tasks.start_soon(write, n)
        assert len(await client.state(totals).entries()) == 240


async def test_jobs_of_transactions_arrive_from_the_first_moment_of_a_system(nats, space):
    """The relay is set up after the streams exist; what was stored meanwhile may not be lost."""
    for number in range(8):
        app = App("shop")

        @app.on(Queue("labels"))
        @app.function("shop.label")
        async def label() -> None: ...

        @app.function("shop.ship")
        async def ship() -> None: ...

        async with serving(app, url=nats, namespace=f"{space}{number}") as client:
            async with client.transaction() as tx:
                tx.put(totals, "one", 1)
                relayed = client.job(tx.send("shop.ship"))
            direct = await client.enqueue("labels")
            await direct.result(10)
            await relayed.result(10)
