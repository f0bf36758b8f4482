"""What jobs survive: killed workers, a restarted server, poison, and jobs that kill."""

import signal
from collections import Counter

import anyio
import pytest

from trine import App, Client, Context, GiveUp, Retry, RetryLater
from trine.errors import DeadlineError, JobFailedError, TrineError, UnavailableError
from trine.jobs import deadletters, queues
from trine.testing import serving
from trine_triggers import Queue

pytestmark = pytest.mark.anyio


def told(runs: list[tuple[str, int]], reached: int) -> tuple[App, anyio.Event]:
    """Return an app that hears what worker processes do, and when *reached* things were done."""
    app = App("told")
    full = anyio.Event()

    @app.function("told.ran")
    async def ran(key: str, n: int) -> None:
        runs.append((key, n))
        if len(runs) >= reached:
            full.set()

    return app, full


FIFO = """
from trine import App, Context
from trine_triggers import Queue

app = App("work")

@app.on(Queue("works", fifo=True, concurrency=3, ack_wait=1))
@app.function("work.do")
async def do(ctx: Context, key: str, n: int) -> None:
    await ctx.call("told.ran", {"key": key, "n": n})
"""


async def test_the_order_of_a_key_survives_killed_workers(serve, trine):
    runs: list[tuple[str, int]] = []
    app, full = told(runs, 20)
    keys = [f"customer-{n}" for n in range(4)]
    async with serve(app) as client, trine.serve(FIFO) as first:
        jobs = [
            await client.enqueue("works", {"key": key, "n": n}, key=key)
            for n in range(15)
            for key in keys
        ]
        with anyio.fail_after(20):
            await full.wait()
        async with trine.serve(FIFO):
            first.signal(signal.SIGKILL)
            for job in jobs:
                await job.result(30)
    for key in keys:
        seen = [n for k, n in runs if k == key]
        assert sorted(set(seen)) == list(range(15)), "none is lost"
        assert seen == sorted(seen), "none overtakes another, also not when one runs again"


DEADLY = """
import os, signal
from trine import App, Context, Retry
from trine_triggers import Queue

app = App("work")

@app.on(Queue("works", ack_wait=1))
@app.function("work.do", retry=Retry(attempts=2))
async def do(ctx: Context, deadly: bool = False) -> int:
    await ctx.call("told.ran", {"key": "deadly" if deadly else "good", "n": ctx.attempt})
    if deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1
"""


async def test_a_job_that_kills_its_worker_ends_in_the_dead_letters(serve, trine, tmp_path):
    runs: list[tuple[str, int]] = []
    app, _ = told(runs, 1)
    file = tmp_path / "deadly.py"
    file.write_text(DEADLY)
    async with serve(app) as client:
        job = await client.enqueue("works", {"deadly": True})
        for _ in range(2):
            async with trine.start("serve", f"{file}:app") as worker:
                assert await worker.wait(20) == -signal.SIGKILL
        async with trine.serve(DEADLY):
            good = await client.enqueue("works")
            with pytest.raises(JobFailedError, match="2 workers"):
                await job.result(20)
            assert await good.result(10) == 1
        [letter] = await deadletters.ls(client, queue="works")
        assert (letter.job, letter.code, letter.attempts) == (job.ref, "job_failed", 3)
    assert [run for run in runs if run[0] == "deadly"] == [("deadly", 1), ("deadly", 2)]


async def test_poison_beside_good_jobs_is_set_aside(serve):
    app = App("work")
    runs: Counter[int] = Counter()

    @app.on(Queue("works", concurrency=8))
    @app.function("work.do", retry=Retry(attempts=2, delay_seconds=0.01))
    async def do(n: int) -> int:
        runs[n] += 1
        if n % 4 == 1:
            raise UnavailableError("poison")
        if n % 4 == 3:
            raise GiveUp("poison")
        return n

    async with serve(app) as client:
        jobs = [
            await client.enqueue("works", {"n": n} if n % 8 != 7 else b"\xff") for n in range(400)
        ]
        for n in range(0, 400, 2):
            assert await jobs[n].result(20) == n
        await queues.drain(client, "works", 20)
        letters = await deadletters.ls(client, queue="works")
        assert len(letters) == 200
        assert Counter(letter.code for letter in letters) == {
            "unavailable": 100,
            "gave_up": 50,
            "invalid_input": 50,
        }
        assert runs == {n: 2 if n % 4 == 1 else 1 for n in range(400) if n % 8 != 7}


async def test_a_handler_that_never_returns_is_ended_by_its_timeout(serve):
    app = App("work")

    @app.function("work.hang", timeout=0.1, retry=Retry(attempts=2, delay_seconds=0.01))
    async def hang() -> None:
        await anyio.sleep_forever()

    @app.function("work.quick")
    async def quick() -> int:
        return 1

    async with serve(app) as client:
        job = await client.send(hang)
        with pytest.raises(DeadlineError, match="did not end"):
            await job.result(10)
        assert await (await client.send(quick)).result(5) == 1


async def test_retry_later_and_handing_back_do_not_use_up_attempts(serve):
    app = App("work")

    @app.function("work.later", retry=Retry(attempts=2, delay_seconds=0.01))
    async def later(ctx: Context) -> int:
        if ctx.attempt < 4:
            raise RetryLater(after=0.01)
        if ctx.attempt == 4:
            raise RuntimeError("the first failure")
        return ctx.attempt

    async with serve(app) as client:
        assert await (await client.send(later)).result(10) == 5


async def test_a_server_restart_amid_a_thousand_jobs_loses_none(own_server):
    runs: Counter[int] = Counter()
    halfway = anyio.Event()

    def worker() -> App:
        app = App("work")

        @app.on(Queue("works", concurrency=16, ack_wait=2))
        @app.function("work.do")
        async def do(n: int) -> int:
            runs[n] += 1
            if len(runs) == 400:
                halfway.set()
            await anyio.sleep(0.005)
            return n

        return app

    async with (
        serving(worker(), url=own_server.url, namespace="t") as client,
        serving(worker(), url=own_server.url, namespace="t"),
        Client.connect(own_server.url, namespace="t") as sender,
    ):
        jobs = []

        async def send(start: int) -> None:
            for n in range(start, start + 100):
                while True:  # an id makes it safe to send again what was not acknowledged
                    try:
                        jobs.append(await sender.enqueue("works", {"n": n}, id=f"job-{n}"))
                        break
                    except TrineError:
                        await anyio.sleep(0.1)

        async with anyio.create_task_group() as tasks:
            for start in range(0, 1000, 100):
                tasks.start_soon(send, start)
            with anyio.fail_after(30):
                await halfway.wait()
            own_server.kill()
            own_server.start()
        results = {}
        for job in jobs:
            results[job.id] = await job.result(40)
        assert results == {f"job-{n}": n for n in range(1000)}
        await queues.drain(client, "works", 20)
        assert await deadletters.ls(client) == []
    assert sorted(runs) == list(range(1000)), "all ran, none was lost"
    twice = sum(1 for count in runs.values() if count > 1)
    assert twice <= 64, "only what was in hands at the moment of the kill may run again"
