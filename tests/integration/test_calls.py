"""Calls, over a real server."""

import threading

import anyio
import pytest
from pydantic import BaseModel

from trine import App, Client, Context, TrineError
from trine.errors import (
    ConflictError,
    DeadlineError,
    FunctionNotFoundError,
    InternalError,
    InvalidInputError,
    TooManyRequestsError,
    UnavailableError,
)
from trine.serving.worker import Worker

pytestmark = pytest.mark.anyio


class Pair(BaseModel):
    a: int
    b: int = 1


class Sum(BaseModel):
    value: int


def arithmetic() -> App:
    app = App("math")

    @app.function("math.add")
    async def add(pair: Pair) -> Sum:
        return Sum(value=pair.a + pair.b)

    return app


async def test_a_call_by_reference_returns_the_model(serve):
    app = arithmetic()
    async with serve(app) as client:
        assert await client.call(app.functions["math.add"], Pair(a=2, b=3)) == Sum(value=5)


async def test_a_call_by_id_takes_and_returns_json(serve):
    async with serve(arithmetic()) as client:
        assert await client.call("math.add", {"a": 2}) == {"value": 3}
        assert await client.call("math::add", {"a": 2, "b": 5}) == {"value": 7}
        assert await client.call("math.add", Pair(a=1), returns=Sum) == Sum(value=2)


async def test_invalid_input_names_the_field_on_both_sides(serve):
    app = arithmetic()
    async with serve(app) as client:
        with pytest.raises(InvalidInputError, match=r"\ba\b") as remote:
            await client.call("math.add", {"a": "many"})
        assert remote.value.details["fields"][0]["field"] == "a"
        with pytest.raises(InvalidInputError, match=r"\bb\b"):
            await client.call(app.functions["math.add"], {"a": 1, "b": "x"})


async def test_a_payload_that_is_not_json_is_invalid_input(serve):
    async with serve(arithmetic()) as client:
        with pytest.raises(InvalidInputError):
            await client.call("math.add", b"{")


async def test_an_unknown_function_suggests_the_nearest(serve):
    async with serve(arithmetic()) as client:
        with pytest.raises(FunctionNotFoundError, match=r"did you mean 'math\.add'"):
            await client.call("math.ad", {})


async def test_errors_keep_class_code_and_details_over_the_wire(serve):
    app = App("errors")

    @app.function()
    async def conflict() -> None:
        raise ConflictError("it is taken", holder="gpu-1", tries=[1, 2])

    @app.function()
    async def crash() -> None:
        raise ZeroDivisionError("no\nzero")

    @app.function()
    async def subclass() -> None:
        class OwnError(ConflictError):
            """No code of its own."""

        raise OwnError("mine")

    async with serve(app) as client:
        with pytest.raises(ConflictError, match="it is taken") as known:
            await client.call("errors.conflict")
        assert type(known.value) is ConflictError
        assert known.value.details == {"holder": "gpu-1", "tries": [1, 2]}
        with pytest.raises(InternalError, match=r"ZeroDivisionError: no\nzero"):
            await client.call("errors.crash")
        with pytest.raises(ConflictError) as own:
            await client.call("errors.subclass")
        assert own.value.code == "conflict"


class Sleeper:
    """An app whose function sleeps, and says when it started and how it ended."""

    def __init__(self, **options) -> None:
        self.started = anyio.Event()
        self.ended = anyio.Event()
        self.remaining: float | None = None
        self.app = App("sleeper")

        @self.app.function("sleep.long", **options)
        async def long(ctx: Context) -> None:
            self.remaining = ctx.invocation.remaining()
            self.started.set()
            try:
                await anyio.sleep(60)
            finally:
                self.ended.set()

        @self.app.function("sleep.through")
        async def through(ctx: Context) -> None:
            await ctx.call("sleep.long", timeout=50)


async def test_a_deadline_raises_and_stops_the_callee(serve):
    sleeper = Sleeper()
    async with serve(sleeper.app) as client:
        with pytest.raises(DeadlineError):
            await client.call("sleep.long", timeout=0.2)
        with anyio.fail_after(2):
            await sleeper.ended.wait()


async def test_the_functions_own_timeout_ends_a_call_without_a_deadline(serve):
    sleeper = Sleeper(timeout=0.2)
    async with serve(sleeper.app) as client:
        bus = client.bus
        reply = await bus.request(bus.names.fn("sleep.long"), b"{}", timeout=5)
        assert reply.headers["Nats-Service-Error-Code"] == "504"
        assert sleeper.ended.is_set()


async def test_a_cancelled_caller_stops_the_callee_at_once(serve):
    sleeper = Sleeper()
    async with serve(sleeper.app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, "sleep.long")
        with anyio.fail_after(5):
            await sleeper.started.wait()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(2):
            await sleeper.ended.wait()


async def test_a_deadline_reaches_over_two_hops(serve):
    sleeper = Sleeper()
    async with serve(sleeper.app) as client:
        with pytest.raises(DeadlineError):
            await client.call("sleep.through", timeout=0.5)
        with anyio.fail_after(2):
            await sleeper.ended.wait()
        assert sleeper.remaining is not None
        assert sleeper.remaining <= 0.5


async def test_a_sync_function_runs_in_a_thread_and_does_not_hold_up_the_loop(serve):
    app = App("sync")
    released = threading.Event()

    @app.function()
    def wait(ctx: Context) -> str:
        assert ctx.id
        assert released.wait(10), "the loop was blocked"
        return threading.current_thread().name

    @app.function()
    async def release() -> None:
        released.set()

    async with serve(app) as client, anyio.create_task_group() as tasks:

        async def waiting() -> None:
            assert await client.call("sync.wait") != threading.main_thread().name

        tasks.start_soon(waiting)
        await client.call("sync.release", timeout=5)


async def test_too_many_in_flight_is_refused(serve):
    sleeper = Sleeper(concurrency=1)
    async with serve(sleeper.app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, "sleep.long")
        with anyio.fail_after(5):
            await sleeper.started.wait()
        with pytest.raises(TooManyRequestsError):
            await client.call("sleep.long")
        tasks.cancel_scope.cancel()


async def test_a_directed_call_reaches_that_worker_and_no_other(serve, nats, space):
    app = App("who")

    @app.function()
    async def am_i(ctx: Context) -> str:
        return ctx.invocation.worker

    async with serve(app), serve(app) as client:
        workers = [info.id for info in await _workers(client, 2)]
        for worker in workers * 3:
            assert await client.call("who.am_i", worker=worker) == worker
        with pytest.raises(UnavailableError, match="nowhere"):
            await client.call("who.am_i", worker="nowhere")


async def test_two_workers_share_the_load(serve):
    app = App("who")

    @app.function()
    async def am_i(ctx: Context) -> str:
        return ctx.invocation.worker

    async with serve(app), serve(app) as client:
        answers = [await client.call("who.am_i") for _ in range(100)]
    counts = {worker: answers.count(worker) for worker in answers}
    assert len(counts) == 2
    assert min(counts.values()) > 20


async def test_a_worker_that_stops_loses_no_call(serve, nats, space):
    app = App("busy")

    @app.function()
    async def work() -> int:
        await anyio.sleep(0)
        return 1

    async with serve(app) as client, Client.connect(nats, namespace=space) as other:
        stopped = anyio.Event()
        count = 0

        async def caller() -> None:
            nonlocal count
            while not stopped.is_set():
                answer = await client.call("busy.work", timeout=3)
                count += answer

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(caller)
            for _ in range(5):
                async with anyio.create_task_group() as serving:
                    worker = Worker(other, [app])
                    await serving.start(worker.run)
                    before = count
                    while count < before + 200:
                        await anyio.sleep(0.005)
                    worker.stop()
            stopped.set()
        assert count > 1000


async def test_an_error_with_a_huge_message_arrives(serve):
    app = App("loud")

    @app.function()
    async def fail() -> None:
        raise TrineError("é" * 5000 + "\r\nX: y")

    async with serve(app) as client:
        with pytest.raises(TrineError, match="éééé"):
            await client.call("loud.fail")


async def test_a_call_that_has_no_time_left_is_over_at_once(serve):
    app = App("late")

    @app.function()
    async def outer(ctx: Context) -> str:
        ctx.invocation.deadline = 0.0
        try:
            await ctx.call("late.inner")
        except DeadlineError as error:
            return error.code
        return "answered"

    @app.function()
    async def inner() -> None:
        await anyio.sleep(10)

    async with serve(app) as client:
        assert await client.call("late.outer", timeout=5) == "deadline_exceeded"


async def _workers(client: Client, count: int):
    from trine import catalogue

    found = await catalogue.workers(client.bus)
    assert len(found) == count
    return found
