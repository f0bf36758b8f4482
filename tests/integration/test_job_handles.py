"""The handle on a job: where it is, how far it is, and its end before time."""

import anyio
import pytest
from pydantic import BaseModel

from trine import App, Context, Retry
from trine.errors import CancelledByCallerError, InternalError, NotFoundError, UsageError
from trine_triggers import Queue

pytestmark = pytest.mark.anyio


class Step(BaseModel):
    n: int


async def until(job, *wanted: str) -> str:
    """Wait until the status of *job* is one of *wanted*."""
    with anyio.fail_after(10):
        while (status := await job.status()) not in wanted:
            await anyio.sleep(0.01)
    return status


async def test_a_job_tells_where_it_is_from_the_first_to_the_last(serve):
    app = App("work")
    go = anyio.Event()

    @app.on(Queue("works"))
    @app.function("work.do", retry=Retry(attempts=2, delay_seconds=0.05))
    async def do(ctx: Context, fail: bool = False) -> int:
        if fail:
            raise RuntimeError("no")
        await go.wait()
        return 1

    async with serve(App("empty")) as client:
        delayed = await client.enqueue("works", delay=60)
        job = await client.enqueue("works")
        assert await delayed.status() == "scheduled"
        assert await job.status() == "queued"
        with pytest.raises(NotFoundError):
            await client.job("works/never").status()
        async with serve(app):
            await until(job, "running")
            bad = await client.enqueue("works", {"fail": True})
            assert await bad.status() == "queued", "there is one place"
            go.set()
            assert await job.result(10) == 1
            assert await until(job, "done") == "done"
            assert await until(bad, "failed") == "failed"
        listed = {one.ref: one.status for one in await client.jobs("works")}
        assert listed == {delayed.ref: "scheduled", job.ref: "done", bad.ref: "failed"}


async def test_progress_is_told_while_the_job_runs(serve):
    app = App("work")
    told = [anyio.Event() for _ in range(3)]

    @app.function("work.steps")
    async def steps(ctx: Context) -> str:
        for n in range(3):
            await ctx.progress(Step(n=n))
            await told[n].wait()
        return "end"

    async with serve(app) as client:
        job = await client.send(steps)
        seen = []
        with anyio.fail_after(10):
            async for step in job.follow():
                seen.append(step["n"])
                assert (await job.progress())["n"] == step["n"]
                told[step["n"]].set()
        assert seen == [0, 1, 2]
        assert await job.result(5) == "end"
        assert await job.progress() == {"n": 2}
        late = [step async for step in client.job(job.ref).follow()]
        assert late == [{"n": 2}], "who comes late hears the latest, and that it has ended"


async def test_progress_where_no_job_runs_is_an_error(serve):
    app = App("work")

    @app.function("work.steps")
    async def steps(ctx: Context) -> None:
        await ctx.progress(1)

    async with serve(app) as client:
        with pytest.raises(UsageError, match="job"):
            await client.call(steps)


async def test_a_job_that_waits_or_is_delayed_can_be_cancelled(serve):
    app = App("work")
    runs: list[int] = []

    @app.on(Queue("works", concurrency=4))
    @app.function("work.do")
    async def do(n: int) -> int:
        runs.append(n)
        return n

    async with serve(App("empty")) as client:
        waiting = await client.enqueue("works", {"n": 1})
        delayed = await client.enqueue("works", {"n": 2}, delay=0.5)
        named = await client.enqueue("works", {"n": 3}, id="three")
        for job in (waiting, delayed, named):
            assert await job.cancel()
            assert await job.status() == "cancelled"
            assert not await job.cancel(), "it has ended"
            with pytest.raises(CancelledByCallerError):
                await job.result(1)
        assert (await client.enqueue("works", {"n": 4}, id="three")).ref == named.ref
        async with serve(app):
            later = await client.enqueue("works", {"n": 5}, delay=1)
            assert await later.result(10) == 5
            assert not await later.cancel()
            assert await later.status() == "done"
        assert runs == [5]


async def test_a_running_job_is_stopped_and_not_run_again(serve):
    app = App("work")
    started, ended = anyio.Event(), anyio.Event()
    runs: list[int] = []

    @app.on(Queue("works", ack_wait=1))
    @app.function("work.do")
    async def do(n: int) -> int:
        runs.append(n)
        if n == 1:
            started.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.set()
        return n

    async with serve(app) as client:
        job = await client.enqueue("works", {"n": 1})
        with anyio.fail_after(5):
            await started.wait()
        assert await job.cancel()
        with anyio.fail_after(5):
            await ended.wait()
        with pytest.raises(CancelledByCallerError):
            await job.result(1)
        # The one place is free at once, and stays so for longer than the ack wait.
        for n in (2, 3):
            assert await (await client.enqueue("works", {"n": n}, delay=n - 2)).result(10) == n
        assert runs == [1, 2, 3]


async def test_a_cancel_between_two_attempts_is_the_end(serve):
    app = App("work")
    attempts: list[int] = []

    @app.function("work.do", retry=Retry(delay_seconds=0.5, jitter=0))
    async def do(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise RuntimeError("again")

    async with serve(app) as client:
        job = await client.send(do)
        await until(job, "running")
        with anyio.fail_after(5):
            while not attempts:
                await anyio.sleep(0.01)
        assert await job.cancel()
        after = await client.send(do, delay=1)
        with anyio.fail_after(10):
            while len(attempts) < 2:
                await anyio.sleep(0.01)
        assert attempts == [1, 1], "the second is that of the other job"
        assert await after.cancel()


async def test_cancelling_races_with_the_end_and_has_one_outcome(serve):
    app = App("work")

    @app.on(Queue("works", concurrency=8))
    @app.function("work.do")
    async def do(n: int) -> int:
        await anyio.sleep(0.001 * (n % 5))
        return n

    async with serve(app) as client:
        outcomes = []

        async def race(n: int) -> None:
            job = await client.enqueue("works", {"n": n})
            await anyio.sleep(0.0007 * (n % 7))
            cancelled = await job.cancel()
            try:
                assert await job.result(10) == n
                ended = "done"
            except CancelledByCallerError:
                ended = "cancelled"
            assert ended == ("cancelled" if cancelled else "done")
            assert await job.status() == ended
            outcomes.append(ended)

        async with anyio.create_task_group() as tasks:
            for n in range(60):
                tasks.start_soon(race, n)
        assert len(outcomes) == 60
        with anyio.fail_after(10):
            while (await client.bus.api(f"STREAM.INFO.{client.bus.names.jobs}"))["state"][
                "messages"
            ]:
                await anyio.sleep(0.01)


async def test_a_job_is_found_by_its_reference_only(serve):
    async with serve(App("empty")) as client:
        with pytest.raises(UsageError, match="queue/id"):
            client.job("no-queue")
        job = client.job("works/x")
        assert (job.queue, job.id, job.ref) == ("works", "x", "works/x")


async def test_the_command_shows_lists_and_cancels_jobs(trine, serve):
    app = App("work")

    @app.function("work.do")
    async def do(ctx: Context, fail: bool = False) -> int:
        await ctx.progress({"half": True})
        if fail:
            raise RuntimeError("no")
        return 1

    async with serve(app) as client:
        done = await client.send(do)
        await done.result(10)
        code, out, _ = await trine.run("job", "show", done.ref, "--json")
        assert code == 0
        assert out.strip() == (
            f'{{"job": "{done.ref}", "status": "done", "progress": {{"half": true}}, "result": 1}}'
        )
        delayed = await client.send(do, delay=60)
        code, out, _ = await trine.run("ls", "jobs", "--queue", "work.do")
        assert code == 0
        assert [line.split()[:2] for line in out.splitlines()[1:]] == [
            [delayed.ref, "scheduled"],
            [done.ref, "done"],
        ]
        assert (await trine.run("job", "cancel", delayed.ref))[0] == 0
        assert (await trine.run("job", "cancel", delayed.ref))[0] == 3
        failed = await client.send(do, {"fail": True}, keep=60)
        await failed.cancel()
        with pytest.raises((CancelledByCallerError, InternalError)):
            await failed.result(10)
