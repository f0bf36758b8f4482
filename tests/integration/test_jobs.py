"""Durable calls and queues, over a real server."""

import signal

import anyio
import pytest
from pydantic import BaseModel

from trine import App, Client, Context, GiveUp, Retry, RetryLater
from trine.bus import Stored
from trine.errors import DeadlineError, InternalError, InvalidInputError, TrineError
from trine_triggers import Queue

pytestmark = pytest.mark.anyio


class Order(BaseModel):
    n: int


class Receipt(BaseModel):
    n: int
    attempt: int


async def letters(client: Client) -> list[Stored]:
    """Return the dead letters."""
    names = client.bus.names
    return await client.bus.latest(names.dead, [names.dead_letter("*", "*")])


async def until_empty(client: Client, stream: str) -> None:
    with anyio.fail_after(10):
        while (await client.bus.api(f"STREAM.INFO.{stream}"))["state"]["messages"]:
            await anyio.sleep(0.01)


async def test_a_job_runs_and_its_result_is_typed(serve):
    app = App("shop")

    @app.function("shop.order")
    async def order(ctx: Context, order: Order) -> Receipt:
        assert ctx.invocation.facts["job"]
        return Receipt(n=order.n, attempt=ctx.attempt)

    async with serve(app) as client:
        job = await client.send(order, Order(n=7))
        assert await job.result(10) == Receipt(n=7, attempt=1)
        assert await job.result(10) == Receipt(n=7, attempt=1), "a result may be asked again"
        assert await client.job(job.ref).result(10) == {"n": 7, "attempt": 1}
        await until_empty(client, client.bus.names.jobs)


async def test_a_failed_job_is_repeated_with_its_attempt_number(serve):
    app = App("shop")

    @app.function("shop.order", retry=Retry(attempts=3, delay_seconds=0.02))
    async def order(ctx: Context, order: Order) -> Receipt:
        if ctx.attempt < 3:
            raise RuntimeError("not this time")
        return Receipt(n=order.n, attempt=ctx.attempt)

    async with serve(app) as client:
        job = await client.send(order, Order(n=1))
        assert (await job.result(10)).attempt == 3
        assert await letters(client) == []


async def test_a_job_that_never_succeeds_ends_in_the_dead_letters(serve):
    app = App("shop")

    @app.function("shop.order", retry=Retry(attempts=2, delay_seconds=0.02))
    async def order(order: Order) -> None:
        raise RuntimeError(f"no stock for {order.n}")

    async with serve(app) as client:
        job = await client.send(order, Order(n=9))
        with pytest.raises(InternalError, match="RuntimeError: no stock for 9"):
            await job.result(10)
        await until_empty(client, client.bus.names.jobs)
        [letter] = await letters(client)
        assert letter.headers["Trine-Reason"] == "internal: no stock for 9"
        assert letter.headers["Trine-Attempt"] == "2"
        assert letter.headers["Trine-Subject"].endswith(job.id)
        assert Order.model_validate_json(letter.payload) == Order(n=9)


async def test_input_that_can_never_be_valid_is_not_repeated(serve):
    app = App("shop")

    @app.function("shop.order", retry=Retry(attempts=5, delay_seconds=5))
    async def order(order: Order) -> None:
        """Take an order."""

    async with serve(app) as client:
        with pytest.raises(InvalidInputError, match="n"):
            await (await client.send("shop.order", {"n": "x"})).result(4)


async def test_give_up_and_retry_later_overrule_the_policy(serve):
    app = App("shop")

    @app.function("shop.hopeless", retry=Retry(attempts=5, delay_seconds=30))
    async def hopeless() -> None:
        raise GiveUp("nobody wants it")

    @app.function("shop.later", retry=Retry(attempts=1))
    async def later(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise RetryLater(after=0.02)
        return ctx.attempt

    async with serve(app) as client:
        with pytest.raises(GiveUp, match="nobody wants it"):
            await (await client.send(hopeless)).result(5)
        assert await (await client.send(later)).result(5) == 3


async def test_one_id_is_one_job(serve):
    app = App("shop")
    runs = []

    @app.function("shop.order")
    async def order(order: Order) -> int:
        runs.append(order.n)
        return order.n

    async with serve(app) as client:
        first = await client.send(order, Order(n=1), id="only-once")
        second = await client.send(order, Order(n=2), id="only-once")
        assert await first.result(5) == await second.result(5) == 1
        last = await client.send(order, Order(n=3))
        assert await last.result(5) == 3
        assert runs == [1, 3]


async def test_waiting_for_a_result_ends_with_the_time_given(serve):
    async with serve(App("empty")) as client:
        job = await client.send("shop.closed", {})
        with pytest.raises(DeadlineError, match=job.id):
            await job.result(0.1)


async def test_jobs_wait_for_a_worker_and_are_shared(serve):
    def app(name: str, runs: list[str]) -> App:
        app = App("shop")

        @app.function("shop.order", concurrency=1)
        async def order(order: Order) -> str:
            runs.append(name)
            await anyio.sleep(0.02)
            return name

        return app

    runs: list[str] = []
    async with serve(App("empty")) as client:
        jobs = [await client.send("shop.order", {"n": n}) for n in range(20)]
        async with serve(app("a", runs)), serve(app("b", runs)):
            for job in jobs:
                await job.result(10)
    assert len(runs) == 20
    assert set(runs) == {"a", "b"}


async def test_a_queue_runs_as_many_at_once_as_it_says(serve):
    app = App("render")
    running = most = 0
    full = anyio.Event()

    @app.on(Queue("renders", concurrency=3))
    @app.function("render.frame")
    async def frame(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        with anyio.move_on_after(0.3):
            await full.wait()
        await anyio.sleep(0.01)
        running -= 1
        return n * 2

    async with serve(app) as client:
        jobs = [await client.enqueue("renders", {"n": n}) for n in range(12)]
        assert [await job.result(10) for job in jobs] == [n * 2 for n in range(12)]
    assert most == 3


async def test_a_queue_takes_only_jobs_whose_requirements_it_meets(serve):
    app = App("render")

    @app.on(Queue("renders", requirements=("any", "cuda")))
    @app.function("render.frame")
    async def frame(n: int) -> int:
        return n

    async with serve(app) as client:
        can = await client.enqueue("renders", {"n": 1}, requirement="cuda")
        cannot = await client.enqueue("renders", {"n": 2}, requirement="tpu")
        assert await can.result(5) == 1
        with pytest.raises(DeadlineError):
            await cannot.result(0.2)


async def test_a_job_longer_than_the_ack_wait_runs_once(serve):
    app = App("render")
    runs = 0

    @app.on(Queue("renders", ack_wait=0.5))
    @app.function("render.frame")
    async def frame() -> int:
        nonlocal runs
        runs += 1
        await anyio.sleep(1.5)
        return runs

    async with serve(app) as client:
        assert await (await client.enqueue("renders")).result(10) == 1
        await until_empty(client, client.bus.names.jobs)
    assert runs == 1


async def test_stopping_lets_a_running_job_end(serve):
    app = App("render")
    started = anyio.Event()
    runs = 0

    @app.function("render.frame")
    async def frame() -> int:
        nonlocal runs
        runs += 1
        started.set()
        await anyio.sleep(0.3)
        return runs

    async with serve(App("empty")) as client:
        async with serve(app) as worker:
            job = await worker.send(frame)
            with anyio.fail_after(5):
                await started.wait()
        assert await client.job(job.ref).result(0.5) == 1
        await until_empty(client, client.bus.names.jobs)


SLOW = """
import anyio
from trine import App, Context
from trine_triggers import Queue

app = App("slow")

@app.on(Queue("slow", ack_wait=1))
@app.function("slow.work")
async def work(ctx: Context) -> dict:
    await ctx.call("seen.start", {"attempt": ctx.attempt})
    if ctx.attempt == 1:
        await anyio.sleep(60)
    return {"attempt": ctx.attempt, "worker": ctx.invocation.worker}
"""


async def test_the_job_of_a_killed_worker_runs_again_on_another(serve, trine):
    seen = App("seen")
    started = anyio.Event()

    @seen.function("seen.start")
    async def start(attempt: int) -> None:
        if attempt == 1:
            started.set()

    async with serve(seen) as client, trine.serve(SLOW) as first:
        job = await client.enqueue("slow")
        with anyio.fail_after(10):
            await started.wait()
        async with trine.serve(SLOW):
            first.signal(signal.SIGKILL)
            result = await job.result(15)
        assert result["attempt"] == 2


async def test_a_queue_name_that_no_subject_can_hold_is_refused(serve):
    async with serve(App("empty")) as client:
        with pytest.raises(TrineError, match="queue"):
            await client.enqueue("a.b")
