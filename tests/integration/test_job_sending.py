"""Sending jobs: once, later, unique, large, and as a part of a transaction."""

from datetime import UTC, datetime, timedelta

import anyio
import pytest
from pydantic import BaseModel

from trine import App, Context, EventModel, Scope
from trine.errors import DeadlineError, TooLargeError, UsageError, WriteConflictError
from trine_triggers import Event, Queue

pytestmark = pytest.mark.anyio

LARGE = "x" * 700_000


class Note(BaseModel):
    text: str


notes: Scope[Note] = Scope("notes", Note)


def counting(runs: list[int], **options: object) -> App:
    app = App("shop")

    @app.on(Queue("orders", **options))
    @app.function("shop.order")
    async def order(n: int) -> int:
        runs.append(n)
        return n

    return app


async def test_one_id_is_one_job_however_it_is_sent(serve):
    runs: list[int] = []
    async with serve(counting(runs)) as client:
        jobs = []

        async def send(n: int, **how: object) -> None:
            jobs.append(await client.enqueue("orders", {"n": n}, id="only/once", **how))

        async with anyio.create_task_group() as tasks:
            for n in range(8):
                tasks.start_soon(send, n)
        await send(100, priority="high")
        await send(101, delay=60)
        async with client.transaction() as tx:
            tx.enqueue("orders", {"n": 102}, id="only/once")
        assert len({job.ref for job in jobs}) == 1
        [result] = {await job.result(10) for job in jobs}
        last = await client.enqueue("orders", {"n": -1})
        await last.result(10)
        assert runs == [result, -1]
        assert await jobs[0].status() == "done"


async def test_a_delayed_job_with_an_id_holds_the_id_before_it_is_due(serve):
    runs: list[int] = []
    async with serve(counting(runs)) as client:
        first = await client.enqueue("orders", {"n": 1}, id="later", delay=1)
        second = await client.enqueue("orders", {"n": 2}, id="later")
        third = await client.enqueue("orders", {"n": 3}, id="later", delay=2)
        assert await first.status() == "scheduled"
        assert [await one.result(10) for one in (first, second, third)] == [1, 1, 1]
        assert runs == [1]


async def test_ids_that_no_subject_can_hold_stay_different(serve):
    runs: list[int] = []
    async with serve(counting(runs)) as client:
        jobs = [
            await client.enqueue("orders", {"n": n}, id=id)
            for n, id in enumerate(["a b", "a.b", "a-b", "ü" * 200, "ü" * 199])
        ]
        assert [await job.result(10) for job in jobs] == [0, 1, 2, 3, 4]
        assert await client.job("a b", queue="orders").result(5) == 0


async def test_two_functions_may_use_one_id(serve):
    app = App("shop")

    @app.function("shop.one")
    async def one() -> str:
        return "one"

    @app.function("shop.two")
    async def two() -> str:
        return "two"

    async with serve(app) as client:
        await client.send(one, id="same")
        await client.send(two, id="same")
        assert await client.job("same", function=one).result(10) == "one"
        assert await client.job("same", function="shop.two").result(10) == "two"


async def test_a_job_runs_at_its_time_and_not_before(serve):
    app = App("shop")

    @app.function("shop.when")
    async def when() -> float:
        return datetime.now(UTC).timestamp()

    async with serve(app) as client:
        due = datetime.now(UTC) + timedelta(seconds=1)
        at = await client.send(when, at=due)
        before = datetime.now(UTC).timestamp()
        delayed = await client.send(when, delay=0.5)
        assert await at.status() == "scheduled"
        assert await at.result(10) >= due.timestamp()
        assert await delayed.result(10) >= before + 0.5
        assert await at.status() == "done"


async def test_a_transaction_delays_and_ranks_its_jobs(serve):
    runs: list[int] = []
    async with serve(counting(runs)) as client:
        async with client.transaction() as tx:
            tx.put(notes, "a", Note(text="b"))
            now = tx.enqueue("orders", {"n": 1}, priority="low")
            later = tx.enqueue("orders", {"n": 2}, delay=0.5)
        assert await client.job(later).status() == "scheduled"
        assert await client.job(now).result(10) == 1
        assert await client.job(later).result(10) == 2
        tx = client.transaction()
        tx.create(notes, "a", Note(text="c"))
        never = tx.enqueue("orders", {"n": 3}, delay=0.1)
        with pytest.raises(WriteConflictError):
            await tx.commit()
        assert await client.job(never).cancel() is False, "nothing of it was stored"


async def test_a_transaction_whose_job_was_sent_before_keeps_the_rest(serve):
    runs: list[int] = []
    async with serve(counting(runs)) as client:
        job = await client.enqueue("orders", {"n": 1}, id="x")
        async with client.transaction() as tx:
            tx.enqueue("orders", {"n": 2}, id="x")
            tx.put(notes, "kept", Note(text="yes"))
        async with client.transaction() as tx:
            tx.enqueue("orders", {"n": 3}, id="x")
        assert (await client.state(notes).get("kept")).value.text == "yes"
        assert await job.result(10) == 1
        assert await (await client.enqueue("orders", {"n": 9})).result(10) == 9
        assert runs == [1, 9]


async def test_a_unique_job_is_the_only_one_while_it_waits_or_runs(serve):
    app = App("shop")
    runs: list[int] = []
    go = anyio.Event()

    @app.on(Queue("orders"))
    @app.function("shop.order")
    async def order(n: int) -> int:
        runs.append(n)
        await go.wait()
        if n < 0:
            raise UsageError("not this one")
        return n

    async with serve(App("empty")) as client:
        first = await client.enqueue("orders", {"n": 1}, unique="report 7")
        waiting = await client.enqueue("orders", {"n": 2}, unique="report 7")
        other = await client.enqueue("orders", {"n": 3}, unique="report 8")
        delayed = await client.enqueue("orders", {"n": 4}, unique="report 9", delay=60)
        again = await client.enqueue("orders", {"n": 5}, unique="report 9")
        assert waiting.ref == first.ref != other.ref
        assert again.ref == delayed.ref
        async with serve(app):
            with anyio.fail_after(5):
                while await first.status() != "running":
                    await anyio.sleep(0.01)
            running = await client.enqueue("orders", {"n": 6}, unique="report 7")
            assert running.ref == first.ref
            go.set()
            assert await first.result(10) == 1
            assert await other.result(10) == 3
            await free(client, "report 7")
            dead = await client.enqueue("orders", {"n": -1}, unique="report 7")
            with pytest.raises(UsageError):
                await dead.result(10)
            await free(client, "report 7")
            assert await delayed.cancel()
            fresh = await client.enqueue("orders", {"n": 7}, unique="report 9")
            assert await fresh.result(10) == 7
        assert runs == [1, 3, -1, 7]


async def free(client, key: str) -> None:
    """Wait until the unique *key* of the queue is free."""
    names = client.bus.names
    token = key.replace(" ", "-")
    with anyio.fail_after(5):
        while any(
            not one.gone
            for one in await client.bus.latest(names.record, [names.unique("orders", "*")])
            if token in one.subject
        ):
            await anyio.sleep(0.01)


async def test_a_unique_key_that_a_crash_left_behind_is_taken_over(serve):
    runs: list[int] = []
    async with serve(counting(runs)) as client:
        names = client.bus.names
        first = await client.enqueue("orders", {"n": 1}, unique="k")
        assert await first.result(10) == 1
        await free(client, "k")
        await client.bus.store(names.unique("orders", "k"), first.id.encode())  # as after a crash
        second = await client.enqueue("orders", {"n": 2}, unique="k")
        assert await second.result(10) == 2


async def test_large_payloads_results_and_events_travel_and_are_tidied_up(serve):
    class Told(EventModel, type="shop.told"):
        text: str

    app = App("shop")
    sizes: list[int] = []
    heard = anyio.Event()

    @app.function("shop.echo")
    async def echo(ctx: Context, note: Note) -> Note:
        await ctx.emit(Told(text=note.text))
        async with ctx.transaction() as tx:
            tx.emit(Told(text=note.text))
            tx.send(small, {"text": note.text}, id="large")
        return note

    @app.function("shop.small")
    async def small(note: Note) -> int:
        return len(note.text)

    @app.on(Event("shop.told"))
    @app.function("shop.hear")
    async def hear(told: Told) -> None:
        sizes.append(len(told.text))
        if len(sizes) == 2:
            heard.set()

    async with serve(app) as client:
        job = await client.send(echo, Note(text=LARGE))
        assert (await job.result(15)).text == LARGE
        assert await client.job("large", function=small).result(15) == len(LARGE)
        with anyio.fail_after(10):
            await heard.wait()
        assert sizes == [len(LARGE)] * 2
        delayed = await client.send(small, Note(text=LARGE), delay=60)
        assert await delayed.cancel()
        stream = f"OBJ_{client.bus.names.objects}"
        infos = client.bus.names.object_info("*")
        with anyio.fail_after(10):  # the payloads of the jobs go, result and events stay
            while len(await client.bus.subjects(stream, infos)) > 3:
                await anyio.sleep(0.02)
        client.bus.payload_limit = 10_000
        with pytest.raises(TooLargeError):
            await client.send(small, Note(text=LARGE))


async def test_a_result_is_kept_for_as_long_as_the_sender_says(serve):
    runs: list[int] = []
    async with serve(counting(runs)) as client:
        unkept = await client.enqueue("orders", {"n": 1}, keep=0)
        short = await client.enqueue("orders", {"n": 2}, keep=1)
        assert await short.result(10) == 2
        with pytest.raises(DeadlineError):
            await unkept.result(0.2)
        with anyio.fail_after(5):
            while any(one.id == short.id for one in await client.jobs("orders")):
                await anyio.sleep(0.05)
        assert runs == [1, 2]


@pytest.mark.parametrize(
    "how",
    [
        {"delay": 1, "at": datetime.now(UTC)},
        {"delay": -1},
        {"at": datetime(2030, 1, 1)},  # noqa: DTZ001 - that is the mistake
        {"priority": "urgent"},
        {"priority": "high", "key": "a"},
        {"keep": 1e9},
    ],
)
async def test_contradictions_are_refused_before_anything_is_sent(serve, how):
    async with serve(App("empty")) as client:
        with pytest.raises(UsageError):
            await client.enqueue("orders", {}, **how)
