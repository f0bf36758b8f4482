"""Queues as a whole: counted, paused, drained and purged, from Python and from the command line."""

import json
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from trine import App
from trine.errors import CancelledByCallerError, DeadlineError, NotFoundError
from trine.jobs import queues
from trine_triggers import Queue

pytestmark = pytest.mark.anyio


def works(runs: list[int], go: anyio.Event | None = None, **layout: object) -> App:
    app = App("work")

    @app.on(Queue("works", **layout))
    @app.function("work.do")
    async def do(n: int) -> int:
        runs.append(n)
        if go is not None:
            await go.wait()
        if n < 0:
            raise LookupError("no such thing")
        return n

    return app


async def counted(client, **wanted: int) -> queues.QueueInfo:
    """Wait until the queue has *wanted* of each."""
    with anyio.fail_after(10):
        while True:
            info = await queues.info(client, "works")
            if all(getattr(info, name) == count for name, count in wanted.items()):
                return info
            await anyio.sleep(0.02)


async def test_a_queue_tells_how_full_it_is(serve):
    runs: list[int] = []
    go = anyio.Event()
    async with serve(App("empty")) as client:
        with pytest.raises(NotFoundError):
            await queues.info(client, "works")
        for n in range(5):
            await client.enqueue("works", {"n": n})
        await client.enqueue("works", {"n": 9}, delay=60)
        await counted(client, waiting=5, running=0, delayed=1, dead=0)
        async with serve(works(runs, go, concurrency=2)):
            info = await counted(client, waiting=3, running=2, delayed=1, dead=0)
            assert info.paused_until is None
            with pytest.raises(DeadlineError, match="5 jobs of works are left"):
                await queues.drain(client, "works", timeout=0.1)
            go.set()
            await queues.drain(client, "works", timeout=10)
            await counted(client, waiting=0, running=0)
        assert sorted(runs) == list(range(5))


@pytest.mark.parametrize("layout", [{}, {"priorities": True}, {"fifo": True}])
async def test_a_paused_queue_gives_nothing_out_over_a_restart_of_its_workers(serve, layout):
    runs: list[int] = []
    async with serve(App("empty")) as client:
        async with serve(works(runs, **layout)):
            first = await client.enqueue("works", {"n": 1})
            await first.result(10)
            await queues.pause(client, "works")
        jobs = [
            await client.enqueue("works", {"n": 2}),
            await client.enqueue("works", {"n": 3}, priority="high"),
            await client.enqueue("works", {"n": 4}, key="k"),
        ]
        async with serve(works(runs, **layout)):
            with pytest.raises(DeadlineError):
                await jobs[1].result(0.5)
            assert (await queues.info(client, "works")).paused_until is not None
            assert runs == [1]
            await queues.resume(client, "works")
            assert sorted([await job.result(10) for job in jobs]) == [2, 3, 4]
            assert (await queues.info(client, "works")).paused_until is None


async def test_a_queue_can_be_paused_before_it_has_a_worker_and_for_a_time(serve):
    runs: list[int] = []
    async with serve(App("empty")) as client:
        job = await client.enqueue("works", {"n": 1})
        await queues.pause(client, "works", until=datetime.now(UTC) + timedelta(seconds=60))
        async with serve(works(runs)):
            with pytest.raises(DeadlineError):
                await job.result(0.3)
            assert runs == []
            await queues.pause(client, "works", until=datetime.now(UTC) + timedelta(seconds=1))
            assert await job.result(10) == 1


async def test_purging_cancels_what_waits_and_leaves_what_runs(serve):
    runs: list[int] = []
    go = anyio.Event()
    async with serve(works(runs, go)) as client:
        running = await client.enqueue("works", {"n": 0})
        await counted(client, running=1)
        waiting = [await client.enqueue("works", {"n": n}) for n in range(1, 40)]
        large = await client.enqueue("works", {"n": 1, "rest": "x" * 600_000}, unique="u")
        delayed = await client.enqueue("works", {"n": 50}, delay=60)
        await counted(client, waiting=40, running=1, delayed=1)
        assert await queues.purge(client, "works") == 41
        go.set()
        assert await running.result(10) == 0
        for job in (waiting[0], waiting[-1], large, delayed):
            with pytest.raises(CancelledByCallerError):
                await job.result(1)
        await counted(client, waiting=0, running=0, delayed=0)
        again = await client.enqueue("works", {"n": 60}, unique="u")
        assert await again.result(10) == 60
        objects = f"OBJ_{client.bus.names.objects}"
        assert await client.bus.subjects(objects, client.bus.names.object_info("*")) == []
        assert runs == [0, 60]


async def test_the_command_shows_pauses_drains_and_purges(trine, serve):
    runs: list[int] = []
    async with serve(works(runs)) as client:
        code, _, err = await trine.run("queue", "ls")
        assert code == 0
        assert (await trine.run("queue", "pause", "works"))[0] == 0
        await client.enqueue("works", {"n": 1})
        await client.enqueue("works", {"n": 2}, delay=60)
        code, out, err = await trine.run("queue", "ls", "--json")
        assert code == 0, err
        [row] = [row for row in json.loads(out) if row["queue"] == "works"]
        assert row == {
            "queue": "works",
            "waiting": 1,
            "running": 0,
            "delayed": 1,
            "dead": 0,
            "paused_until": "9999-01-01T00:00:00+00:00",
        }
        assert (await trine.run("queue", "drain", "works", "--timeout", "0.1"))[0] == 4
        assert (await trine.run("queue", "resume", "works"))[0] == 0
        assert (await trine.run("queue", "drain", "works"))[0] == 0
        code, out, _ = await trine.run("queue", "purge", "works")
        assert (code, out.strip()) == (0, "1 cancelled")
        assert runs == [1]
