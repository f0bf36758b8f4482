"""What a function may be declared with: rate, idempotency, middleware, auth, tracebacks."""

import anyio
import pytest
from pydantic import BaseModel

from trine import App, Client, Context, Rate, Worker, streams
from trine.errors import (
    ConflictError,
    InternalError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
    UsageError,
)
from trine.middleware.auth import BearerAuth

pytestmark = pytest.mark.anyio


class Order(BaseModel):
    customer: str = "a"
    n: int = 0


# --- rate --------------------------------------------------------------------------------------


def limited(rate: Rate) -> App:
    app = App("limited")

    @app.function("limited.take", rate=rate)
    async def take(order: Order) -> str:
        return order.customer

    return app


async def test_a_call_above_the_rate_is_refused_and_told_when_to_come_again(serve):
    async with serve(limited(Rate(3, 60))) as client:
        for _ in range(3):
            await client.call("limited.take", {})
        with pytest.raises(TooManyRequestsError, match="3 times in 60 s") as refused:
            await client.call("limited.take", {})
        assert 0 < refused.value.details["retry_after"] <= 20


async def test_each_key_has_a_rate_of_its_own(serve):
    async with serve(limited(Rate(1, 60, key="customer"))) as client:
        assert await client.call("limited.take", {"customer": "a"}) == "a"
        assert await client.call("limited.take", {"customer": "b"}) == "b"
        with pytest.raises(TooManyRequestsError):
            await client.call("limited.take", {"customer": "a"})


async def test_a_shared_rate_holds_over_all_replicas(serve):
    rate = Rate(5, 60, key="customer", shared=True)
    outcomes = []
    async with serve(limited(rate)) as client, serve(limited(rate)):

        async def one() -> None:
            try:
                outcomes.append(await client.call("limited.take", {"customer": "x y"}))
            except TooManyRequestsError:
                outcomes.append(None)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(one)
    assert outcomes.count("x y") == 5


async def test_a_job_above_the_rate_waits_for_its_turn(serve):
    async with serve(limited(Rate(1, 0.3))) as client:
        jobs = [await client.send("limited.take", {"n": n}) for n in range(4)]
        assert [await job.result(timeout=10) for job in jobs] == ["a"] * 4


def test_an_impossible_rate_is_refused_at_definition():
    with pytest.raises(UsageError):
        Rate(0)
    with pytest.raises(UsageError):
        Rate(1, seconds=0)


# --- idempotency -------------------------------------------------------------------------------


class Counted:
    def __init__(self) -> None:
        self.runs = 0
        self.app = App("counted")
        self.gate = anyio.Event()
        self.gate.set()

        @self.app.function("counted.run")
        async def run(order: Order) -> int:
            self.runs += 1
            await self.gate.wait()
            if order.customer == "bad":
                raise ConflictError("never")
            if order.customer == "later" and self.runs == 1:
                raise UnavailableError("not now")
            return self.runs


async def test_a_call_with_the_same_key_gets_the_first_reply(serve):
    one = Counted()
    async with serve(one.app) as client:
        for _ in range(3):
            assert await client.call("counted.run", {"n": 1}, idempotency_key="k 1") == 1
        assert await client.call("counted.run", {"n": 1}, idempotency_key="k2") == 2
        assert await client.call("counted.run", {"n": 1}) == 3


async def test_calls_with_one_key_at_the_same_time_run_once_over_replicas(serve):
    one, two = Counted(), Counted()
    one.gate = two.gate = anyio.Event()
    replies: list[int] = []
    async with serve(one.app) as client, serve(two.app):

        async def call() -> None:
            replies.append(await client.call("counted.run", {}, idempotency_key="same"))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(call)
            with anyio.fail_after(5):
                while one.runs + two.runs == 0:
                    await anyio.sleep(0.01)
            one.gate.set()
    assert replies == [1] * 8
    assert one.runs + two.runs == 1


async def test_a_key_used_with_another_payload_is_a_conflict(serve):
    async with serve(Counted().app) as client:
        await client.call("counted.run", {"n": 1}, idempotency_key="k")
        with pytest.raises(ConflictError, match="another payload"):
            await client.call("counted.run", {"n": 2}, idempotency_key="k")


async def test_a_final_error_is_kept_and_one_that_may_pass_is_not(serve):
    one = Counted()
    async with serve(one.app) as client:
        for _ in range(2):
            with pytest.raises(ConflictError, match="never"):
                await client.call("counted.run", {"customer": "bad"}, idempotency_key="b")
        assert one.runs == 1
    two = Counted()
    async with serve(two.app) as client:
        with pytest.raises(UnavailableError):
            await client.call("counted.run", {"customer": "later"}, idempotency_key="c")
        assert await client.call("counted.run", {"customer": "later"}, idempotency_key="c") == 2


# --- middleware --------------------------------------------------------------------------------


async def test_middleware_of_app_and_function_wraps_calls_jobs_and_streams_in_order(serve):
    seen: list[str] = []

    def noting(name: str):
        async def middleware(ctx, value, call_next):
            seen.append(f"{name} in")
            output = await call_next(ctx, value)
            seen.append(f"{name} out")
            return output

        return middleware

    app = App("wrapped", middleware=[noting("app")])

    @app.function(middleware=[noting("function")])
    async def add(n: int) -> int:
        seen.append("handler")
        return n + 1

    @app.function()
    async def count(n: int):
        for number in range(n):
            yield number

    async with serve(app) as client:
        assert await client.call("wrapped.add", {"n": 1}) == 2
        order = ["app in", "function in", "handler", "function out", "app out"]
        assert seen == order
        seen.clear()
        assert await (await client.send("wrapped.add", {"n": 2})).result() == 3
        assert seen == order
        seen.clear()
        assert [one async for one in client.stream("wrapped.count", {"n": 2})] == [0, 1]
        assert seen == ["app in", "app out"]


async def test_middleware_may_change_the_output_and_refuse(serve):
    async def guard(ctx: Context, value, call_next):
        if value.n < 0:
            raise ConflictError("negative")
        return 10 * await call_next(ctx, value)

    app = App("guarded", middleware=[guard])

    @app.function()
    async def same(n: int) -> int:
        return n

    async with serve(app) as client:
        assert await client.call("guarded.same", {"n": 2}) == 20
        with pytest.raises(ConflictError, match="negative"):
            await client.call("guarded.same", {"n": -1})


async def test_bearer_auth_lets_in_only_who_has_a_token(serve):
    app = App("secret", middleware=[BearerAuth(["correct horse"])])

    @app.function()
    async def read() -> str:
        return "treasure"

    async with serve(app) as client:
        good = {"authorization": "Bearer correct horse"}
        assert await client.call_bytes("secret.read", b"{}", headers=good) == b'"treasure"'
        for bad in ("", "Bearer", "Bearer wrong", "Basic correct horse", "correct horse"):
            with pytest.raises(UnauthorizedError):
                await client.call_bytes("secret.read", b"{}", headers={"authorization": bad})
        with pytest.raises(UnauthorizedError):
            await client.call("secret.read")
        assert await (await client.send("secret.read")).result() == "treasure"


# --- tracebacks --------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_remote_traceback_is_sent_only_when_allowed(nats, space, allowed):
    app = App("broken")

    @app.function()
    async def crash() -> None:
        raise ZeroDivisionError("nothing left")

    async with Client.connect(nats, namespace=space) as client:
        await streams.ensure(client.bus)
        async with anyio.create_task_group() as tasks:
            worker = Worker(client, [app], tracebacks=allowed)
            await tasks.start(worker.run)
            with pytest.raises(InternalError, match="ZeroDivisionError") as failed:
                await client.call("broken.crash")
            worker.stop()
    assert ("in crash" in failed.value.details.get("traceback", "")) is allowed
