"""Lanes of a queue: priorities, requirements, the order of a key, and how many run at once."""

import itertools

import anyio
import pytest
from pydantic import ValidationError

from trine import App, Context, Retry
from trine.errors import GiveUp
from trine.jobs.consumers import queue_consumer
from trine.jobs.message import partition
from trine_triggers import Queue

pytestmark = pytest.mark.anyio


async def test_higher_lanes_are_served_first(serve):
    app = App("work")
    order: list[str] = []

    @app.on(Queue("works", priorities=True))
    @app.function("work.do")
    async def do(name: str) -> None:
        order.append(name)

    async with serve(App("empty")) as client:
        jobs = [
            await client.enqueue("works", {"name": f"{priority}{n}"}, priority=priority)
            for n in range(4)
            for priority in ("low", "normal", "high")
        ]
        jobs.append(await client.enqueue("works", {"name": "keyed"}, key="k"))
        async with serve(app):
            for job in jobs:
                await job.result(10)
            idle = await client.enqueue("works", {"name": "idle"}, priority="low")
            await idle.result(10)
    assert order[:4] == [f"high{n}" for n in range(4)]
    assert order[4:9] == [*(f"normal{n}" for n in range(4)), "keyed"]
    assert order[9:] == [*(f"low{n}" for n in range(4)), "idle"]


async def test_a_high_job_overtakes_what_waits_while_the_worker_is_busy(serve):
    app = App("work")
    order: list[str] = []
    started, go = anyio.Event(), anyio.Event()

    @app.on(Queue("works", priorities=True))
    @app.function("work.do")
    async def do(name: str) -> None:
        order.append(name)
        if name == "first":
            started.set()
            await go.wait()

    async with serve(app) as client:
        jobs = [await client.enqueue("works", {"name": "first"})]
        with anyio.fail_after(5):
            await started.wait()
        jobs += [await client.enqueue("works", {"name": f"n{n}"}) for n in range(3)]
        jobs.append(await client.enqueue("works", {"name": "high"}, priority="high"))
        go.set()
        for job in jobs:
            await job.result(10)
    assert order == ["first", "high", "n0", "n1", "n2"]


async def test_a_function_that_declares_priorities_runs_the_urgent_first(serve):
    app = App("work")
    order: list[str] = []

    @app.function("work.do", concurrency=1, priorities=True)
    async def do(name: str) -> None:
        order.append(name)

    async with serve(App("empty")) as client:
        jobs = [
            await client.send("work.do", {"name": priority}, priority=priority)
            for priority in ("low", "normal", "high")
        ]
        async with serve(app):
            for job in jobs:
                await job.result(10)
    assert order == ["high", "normal", "low"]


async def test_functions_that_declare_no_priorities_keep_the_order_of_arrival(serve):
    app = App("work")
    order: list[int] = []

    @app.function("work.do", concurrency=1)
    async def do(n: int) -> None:
        order.append(n)

    async with serve(App("empty")) as client:
        lanes = itertools.cycle(["low", "high", "normal"])
        jobs = [await client.send("work.do", {"n": n}, priority=next(lanes)) for n in range(9)]
        async with serve(app):
            for job in jobs:
                await job.result(10)
    assert order == list(range(9))


async def test_lanes_share_the_places_of_their_worker(serve):
    app = App("work")
    running = most = 0
    full = anyio.Event()

    @app.on(Queue("works", priorities=True, concurrency=3, requirements=("cuda", "any")))
    @app.function("work.do", retry=Retry(attempts=1))
    async def do(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        if n < 3:  # the first three are there at once, or never end
            await full.wait()
        await anyio.sleep(0.002 * (n % 3))
        running -= 1
        return n

    async with serve(app) as client:
        jobs = []
        for n in range(120):
            jobs.append(
                await client.enqueue(
                    "works",
                    {"n": n},
                    priority=("low", "normal", "high")[n % 3],
                    requirement=("any", "cuda")[n % 2],
                )
            )
            if n % 10 == 9:  # idle again and again: standing pulls come and go
                await jobs[-1].result(10)
        assert [await job.result(20) for job in jobs] == list(range(120))
    assert most == 3, "what came over the places was handed back, and no attempt was lost by it"


async def test_the_order_of_a_key_holds_over_replicas_and_retries(serve):
    def app(runs: list[tuple[str, int]], running: set[str]) -> App:
        one = App("work")

        @one.on(Queue("works", fifo=True, concurrency=4))
        @one.function("work.do", retry=Retry(attempts=3, delay_seconds=0.02))
        async def do(ctx: Context, key: str, n: int) -> None:
            assert key not in running, "one at a time"
            running.add(key)
            try:
                await anyio.sleep(0.001)
                if n == 3 and ctx.attempt < 3:
                    raise RuntimeError("later")
                if n == 5:
                    raise GiveUp("never")
                runs.append((key, n))
            finally:
                running.discard(key)

        return one

    runs: list[tuple[str, int]] = []
    running: set[str] = set()
    keys = [f"customer-{n}" for n in range(6)]
    async with serve(App("empty")) as client:
        jobs = [
            await client.enqueue("works", {"key": key, "n": n}, key=key)
            for n in range(8)
            for key in keys
        ]
        unkeyed = [await client.enqueue("works", {"key": "-", "n": n}) for n in (0, 1, 2)]
        async with serve(app(runs, running)), serve(app(runs, running)):
            for job in jobs + unkeyed:
                try:
                    await job.result(20)
                except GiveUp:
                    continue
    for key in keys:
        assert [n for k, n in runs if k == key] == [0, 1, 2, 3, 4, 6, 7]
    assert [n for k, n in runs if k == "-"] == [0, 1, 2]


async def test_keys_of_one_partition_are_in_order_and_all_partitions_are_used(serve):
    assert len({partition(f"customer-{n}") for n in range(200)}) == 8
    app = App("work")
    order: list[int] = []

    @app.on(Queue("works", fifo=True))  # one place for nine lanes
    @app.function("work.do")
    async def do(n: int) -> None:
        order.append(n)

    async with serve(app) as client:
        jobs = [await client.enqueue("works", {"n": n}, key=f"c{n}") for n in range(40)]
        for job in jobs:
            await job.result(20)
        late = await client.enqueue("works", {"n": 99}, key="late")
        await late.result(10)
    assert sorted(order) == [*range(40), 99]


async def test_total_bounds_all_workers_together(serve):
    running = most = 0

    def app() -> App:
        one = App("work")

        @one.on(Queue("works", concurrency=8, total=3))
        @one.function("work.do")
        async def do(n: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await anyio.sleep(0.01)
            running -= 1
            return n

        return one

    async with serve(app()) as client, serve(app()):
        jobs = [await client.enqueue("works", {"n": n}) for n in range(30)]
        assert [await job.result(10) for job in jobs] == list(range(30))
    assert most == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"total": 2, "fifo": True},
        {"total": 2, "priorities": True},
        {"total": 2, "requirements": ("any", "cuda")},
        {"fifo": True, "priorities": True},
        {"requirements": ()},
    ],
)
def test_what_the_server_cannot_do_together_is_refused_when_it_is_defined(wrong):
    with pytest.raises(ValidationError):
        Queue("works", **wrong)


async def test_a_queue_may_get_other_lanes_between_versions(serve):
    def app(seen: list[int], **layout: object) -> App:
        one = App("work")

        @one.on(Queue("works", concurrency=2, **layout))
        @one.function("work.do")
        async def do(n: int) -> int:
            seen.append(n)
            return n

        return one

    numbers = itertools.count()
    async with serve(App("empty")) as client:
        for layout in ({}, {"priorities": True}, {"fifo": True}, {}):
            seen: list[int] = []
            waiting = [
                await client.enqueue("works", {"n": next(numbers)}, **how)
                for how in ({}, {"priority": "high"}, {"key": "a"})
            ]
            async with serve(app(seen, **layout)):
                got = [await job.result(10) for job in waiting]
            assert sorted(seen) == sorted(got)


async def test_a_place_is_shared_by_requirement_sets(serve):
    """As a device has one place, whatever it can do."""
    running = most = 0
    runs: list[str] = []
    all_done = anyio.Event()

    async def handle(delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.005)
        running -= 1
        runs.append(delivery.subject.split(".")[3])
        if len(runs) == 12:
            all_done.set()

    async with serve(App("empty")) as client:
        stopping = anyio.Event()
        [consumer] = queue_consumer(
            client.bus, "train", handle, requirements=("h200", "any"), concurrency=1
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(consumer.run, stopping)
            for n in range(12):
                await client.enqueue("train", n, requirement=("any", "h200")[n % 2])
            with anyio.fail_after(10):
                await all_done.wait()
            stopping.set()
    assert most == 1
    assert sorted(runs) == ["any"] * 6 + ["h200"] * 6
