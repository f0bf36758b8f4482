"""Whatever arrives from NATS: the engine and its worker answer on, and nothing grows or is lost."""

import asyncio
import contextlib
import functools
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
import structlog
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from trine import App, Client, EventModel, catalogue, wire
from trine.catalogue.directory import Directory
from trine.errors import TrineError
from trine.observability.observe import Observed
from trine.serving.worker import Worker
from trine.settings import Settings
from trine.system import running
from trine_triggers import Event, Http, Queue

pytestmark = pytest.mark.timeout(240)

EXAMPLES = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,  # the same everywhere; change the seed to look further
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.generate],  # an engine that has been hurt once is no judge of smaller blows
)


class Order(BaseModel):
    n: int = 0
    text: str = ""


class Placed(EventModel, type="order.placed"):
    n: int


def shop() -> App:
    app = App("shop")

    @app.on(Http("POST", "/orders"))
    @app.on(Queue("orders"))
    @app.function("shop.order", timeout=2)
    async def order(value: Order) -> Order:
        return value

    @app.function("shop.stream", timeout=2)
    async def stream(value: Order):
        yield value.n

    @app.function("shop.wait")
    async def wait() -> None:
        await anyio.sleep_forever()

    @app.on(Event("order.placed"))
    @app.function("shop.placed", timeout=2)
    def placed(value: Order) -> int:
        return value.n

    return app


class Raw:
    """A connection that speaks the protocol itself: nothing is checked before it is sent."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("nats://").split(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.settimeout(10)
        self._socket.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nPING\r\n')
        self._until(b"PONG\r\n")

    def publish(self, subject: str, head: bytes, payload: bytes, reply: str = "") -> None:
        if head:
            block = b"NATS/1.0" + head + b"\r\n\r\n"
            size = len(block) + len(payload)
            line = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode() + block
        else:
            line = f"PUB {subject} {reply} {len(payload)}\r\n".encode()
        self._socket.sendall(line + payload + b"\r\n")

    def flush(self) -> None:
        self._socket.sendall(b"PING\r\n")
        self._until(b"PONG\r\n")

    def _until(self, text: bytes) -> None:
        found = b""
        while text not in found:
            piece = self._socket.recv(65536)
            assert piece, f"the server closed the connection: {found[-200:]!r}"
            assert b"-ERR" not in piece, piece
            found += piece

    def close(self) -> None:
        self._socket.close()


@dataclass
class Engine:
    """A whole engine under attack, with all that it logs."""

    client: Client
    other: Client
    raw: Raw
    worker: Worker
    space: str
    directory: Directory
    faults: list[str] = field(default_factory=list)

    async def check(self) -> None:
        """Everything still works, and nothing was logged that nobody foresaw."""
        self.raw.flush()
        with anyio.fail_after(20):
            assert await self.other.call("shop.order", {"n": 1}, timeout=5) == {"n": 1, "text": ""}
            items = [one async for one in self.other.stream("shop.stream", {"n": 2}, timeout=10)]
            assert items == [2]
        assert not self.faults, self.faults[:3]

    async def settled(self) -> None:
        """Wait for what runs to end, then look for what has grown."""
        with anyio.fail_after(30):
            while self.worker._host.inflight:
                await anyio.sleep(0.05)
        await self.check()

    async def send(self, messages: list[tuple[str, bytes, bytes, str]]) -> None:
        for subject, head, payload, reply in messages:
            self.raw.publish(subject, head, payload, reply)
        await self.check()


@asynccontextmanager
async def attacked(nats: str, space: str) -> AsyncIterator[Engine]:
    faults: list[str] = []

    def keep(_logger: Any, _method: str, entry: dict[str, Any]) -> dict[str, Any]:
        expected = ("delivery_dead", "delivery_failed")  # a job with such a payload
        if entry.get("exc_info") or (
            entry["level"] in ("error", "critical") and entry["event"] not in expected
        ):
            if isinstance(entry.get("exc_info"), bool):
                structlog.processors.format_exc_info(None, "", entry)
            faults.append(f"{entry!r}"[-3000:])
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.processors.add_log_level, keep])
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: faults.append(f"{context!r}"[:3000])
    )
    raw = Raw(nats)
    made: list[Worker] = []
    start = Worker.__init__

    def remember(self: Worker, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        made.append(self)

    Worker.__init__ = remember  # type: ignore[method-assign]
    try:
        async with (
            running(Settings(nats=nats, namespace=space, port=0), [shop()]) as system,
            Client.connect(nats, namespace=space) as other,
            anyio.create_task_group() as tasks,
        ):
            directory = Directory(other.bus)
            await tasks.start(directory.run)
            yield Engine(system.client, other, raw, made[0], space, directory, faults)
            tasks.cancel_scope.cancel()
    finally:
        Worker.__init__ = start  # type: ignore[method-assign]
        structlog.configure(processors=before)
        raw.close()


@pytest.fixture
def engine(nats, space):
    """Give ``(engine, call)``: an engine in a thread, and how to run a coroutine in it."""
    with (
        start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(attacked(nats, space)) as it,
    ):
        yield it, portal.call


# --- what is sent --------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "1",
        "30000",
        "1e9",
        "nan",
        "inf",
        "0x10",
        " 5 ",
        "²",
        "١٢",
        "9" * 30,
        "9" * 400,
        "9" * 5000,
        "1.5",
        "true",
        "\x00",
        "é" * 50,
        "a" * 4000,
    ]
)
TEXT = NUMBERS | st.text(max_size=30).map(lambda text: re.sub(r"[\r\n]", " ", text))
HEADERS = [
    value
    for name, value in vars(wire).items()
    if name.isupper() and isinstance(value, str) and "-" in value
] + ["traceparent", "Status", "ce-id", "ce-type", "ce-source", "ce-specversion"]
OURS = [name for name in HEADERS if name.startswith(("Trine-", "trace"))]


def head(pairs: list[tuple[str, str]]) -> bytes:
    return b"".join(f"\r\n{name}: {value}".encode() for name, value in pairs)


def heads(names: list[str]) -> st.SearchStrategy[bytes]:
    known = st.lists(st.tuples(st.sampled_from(names), TEXT), max_size=4).map(head)
    wild = st.binary(max_size=60).map(lambda raw: b"\r\n" + raw)
    return st.just(b"") | known | known | wild


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["n", "text", "id", "name", "kind"]), inner, max_size=3)
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())
PAYLOADS = (
    st.sampled_from([b"", b"{}", b"null", b"[" * 5000, b'{"n": 1}', b'{"n": 1e400}', b"\xff\xfe"])
    | st.sampled_from([b'{"n":' + b"9" * 5000 + b"}", b'{"a":' * 3000, b'"' + b"x" * 100_000])
    | JSON
    | st.binary(max_size=50)
)
TOKENS = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789_-=~!é", min_size=1, max_size=12)


def replies(space: str) -> st.SearchStrategy[str]:
    return st.sampled_from(["", f"{space}.nowhere", "_INBOX.nobody.1", f"{space}.fn.shop.order"])


def attack(engine: Any, messages: st.SearchStrategy[Any], examples: settings = EXAMPLES) -> None:
    it, call = engine

    @examples
    @given(st.lists(messages, min_size=1, max_size=4))
    def run(batch: list[Any]) -> None:
        call(it.send, batch)

    run()
    call(it.settled)


# --- calls ---------------------------------------------------------------------------------------


def test_calls_with_any_headers_and_any_payload(engine):
    it, _ = engine
    functions = ["shop.order", "shop.stream", "shop.placed", "trigger.add", "no.such"]
    places = [f"fn.{one}" for one in functions]
    places += [f"all.fn.{one}" for one in functions]
    places += [f"on.{it.worker.id}.fn.{one}" for one in functions]
    places += [f"on.{it.worker.id}.other", f"on.{it.worker.id}.fn", "all.fn.x", "all.other"]
    subjects = st.sampled_from(places).map(lambda place: f"{it.space}.{place}")
    names = [name for name in OURS if name != wire.INVOCATION]
    attack(
        engine, st.tuples(subjects, heads([*names, *OURS, "Status"]), PAYLOADS, replies(it.space))
    )


@pytest.mark.parametrize("name", OURS)
def test_each_header_of_ours_with_any_value(engine, name):
    it, _ = engine
    subject = st.just(f"{it.space}.fn.shop.order")
    one = st.tuples(st.just(name), TEXT).map(lambda pair: head([pair]))
    few = settings(EXAMPLES, max_examples=60)
    attack(engine, st.tuples(subject, one, st.just(b'{"n": 1}'), replies(it.space)), few)


def test_a_caller_gets_an_answer_whatever_its_headers_say(engine):
    it, call = engine

    @settings(EXAMPLES, max_examples=60)
    @given(st.lists(st.tuples(st.sampled_from(OURS), NUMBERS), min_size=1, max_size=3))
    def run(pairs: list[tuple[str, str]]) -> None:
        async def ask() -> None:
            with anyio.fail_after(15), contextlib.suppress(TrineError):
                message = await it.other.bus.request(
                    f"{it.space}.fn.shop.order", b'{"n": 1}', dict(pairs), 10
                )
                assert wire.ERROR in (message.headers or {}) or message.data

        try:
            call(ask)
        except TrineError as error:
            raise AssertionError(f"no answer to {pairs}") from error
        call(it.check)

    run()


def test_cancellations_and_signs_of_life_of_nobody(engine):
    it, call = engine
    subject = st.tuples(st.sampled_from(["cancel", "alive"]), TOKENS).map(
        lambda pair: f"{it.space}.{pair[0]}.{pair[1]}"
    )
    attack(engine, st.tuples(subject, heads(OURS), PAYLOADS, replies(it.space)))

    async def flood() -> None:
        for n in range(50_000):
            it.raw.publish(f"{it.space}.alive.{n:012x}", b"", b"")
        await it.check()
        async with anyio.create_task_group() as tasks:  # a worker that is never idle
            tasks.start_soon(functools.partial(it.other.call, "shop.wait", timeout=40))
            with anyio.fail_after(30):
                while len(it.worker._host.inflight._heard) > 100:
                    await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()

    call(flood)


# --- discovery -----------------------------------------------------------------------------------


def test_discovery_asked_with_anything(engine):
    it, _ = engine
    verbs = st.sampled_from(["PING", "INFO", "STATS"])
    ends = st.sampled_from(["", f".{it.space}", f".{it.space}.{it.worker.id}"])
    subject = st.tuples(verbs, ends).map(lambda pair: f"$SRV.{pair[0]}{pair[1]}")
    attack(engine, st.tuples(subject, heads(OURS), PAYLOADS, replies(it.space)))


SERVICES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "b", "a b", "x.y", "*", ">", "\r\nPUB a 1\r\n1\r\n", 5, None]),
        "name": st.sampled_from(["s", "s t", "", "é", "x" * 500, [], {}]),
        "metadata": st.sampled_from([None, {}, {"trine": 1}, [], "x"]),
        "description": st.sampled_from([None, "text", 7, {"a": 1}, "x" * 20_000]),
        "endpoints": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "name": st.sampled_from(["e", 1]),
                    "subject": st.sampled_from(
                        ["SPACE.fn.a.b", "SPACE.fn.", "SPACE.fn.A", "x", 1, "SPACE.fn.shop.order"]
                    ),
                    "metadata": st.sampled_from(
                        [
                            None,
                            [],
                            "x",
                            {"input_schema": "[" * 5000},
                            {"timeout": "1e999"},
                            {"timeout": "-1", "description": 5},
                            {"output_schema": "{}"},
                        ]
                    ),
                },
            ),
            max_size=3,
        )
        | st.sampled_from([None, 5, "x", {}]),
    },
)


def test_services_that_answer_discovery_with_anything(engine):
    it, call = engine
    answers: list[bytes] = [b"{}"]

    async def answer() -> None:
        connection = it.other.bus.connection

        def receive(message: Any) -> None:
            if not message.reply:
                return
            for text in answers:
                it.raw.publish(message.reply, b"", text)

        await connection.listen("$SRV.PING", receive)
        await connection.listen("$SRV.INFO.>", receive)

    call(answer)

    @settings(EXAMPLES, max_examples=25)
    @given(st.lists(SERVICES.map(json.dumps) | JSON.map(bytes.decode), min_size=1, max_size=6))
    def run(said: list[str]) -> None:
        answers[:] = [text.replace("SPACE", it.space).encode() for text in said]

        async def look() -> None:
            assert "shop.order" in it.directory.functions
            it.directory._wake.set()  # it asks at once, instead of in a moment
            await it.check()

        call(look)

    run()
    assert len(it.directory._foreign._services) <= 3
    assert [info.id for info in it.directory.functions.values() if info.foreign] in ([], ["a.b"])


# --- what is stored ------------------------------------------------------------------------------


def test_jobs_events_results_and_completions_of_anybody(engine):
    it, _ = engine
    subject = st.one_of(
        TOKENS.map(lambda id: f"{it.space}.job.fn-shop-order.any.{id}"),
        TOKENS.map(lambda id: f"{it.space}.job.orders.any.{id}"),
        TOKENS.map(lambda id: f"{it.space}.event.order.placed.k.{id}"),
        TOKENS.map(lambda id: f"{it.space}.result.{id}"),
        TOKENS.map(lambda id: f"{it.space}.done.{id}"),
    )
    names = [*OURS, "ce-id", "ce-type", "ce-source", "ce-specversion", "ce-time"]
    few = settings(EXAMPLES, max_examples=60)
    attack(engine, st.tuples(subject, heads(names), PAYLOADS, st.just("")), few)


PRESENCES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["w", 5, None, "a.b"]),
        "host": st.sampled_from(["h", 5]),
        "pid": st.sampled_from([1, "x", -1, 10**30]),
        "started_at": st.sampled_from([0.0, "x", None]),
        "apps": st.sampled_from([[], "x", [1]]),
        "document": st.sampled_from(["", "nope", "a b", "*", "x" * 300, "é"]),
    },
).map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("kind", ["worker", "observe"])
def test_leases_that_hold_anything(engine, kind):
    it, call = engine
    prefix = f"$KV.{it.space}_leases.{kind}."
    key = TOKENS if kind == "worker" else TOKENS.map(lambda one: f"shop.order.{one}")
    subject = key.map(lambda one: prefix + one)
    head_ = st.just(b"\r\nNats-TTL: 5s") | heads([wire.KV_OPERATION, wire.MARKER_REASON, wire.TTL])
    few = settings(EXAMPLES, max_examples=60)
    attack(engine, st.tuples(subject, head_, PAYLOADS | PRESENCES, st.just("")), few)
    call(_listed, it)


BINDINGS = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["data-a", "data-b", "x", 7]),
        "kind": st.sampled_from(["http", "cron", "event", "queue", "key", "nope", "", 5]),
        "function": st.sampled_from(["shop.order", "no.such", "", "A B"]),
        "config": st.sampled_from(
            [
                {},
                {"path": "/x"},
                {"method": "GET", "path": "/x{"},
                {"expression": "@daily"},
                5,
                {"type": "a"},
                {"type": "a.>"},
                {"name": "q"},
                {"self": 1},
                {"scope": "*"},
                [],
            ]
        ),
    }
).map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("scope", ["bindings", "catalogue"])
def test_state_of_the_engine_that_holds_anything(engine, scope):
    it, call = engine
    keys = ["data-a", "data-b", "x", "latest-shop-trigger", "deep.er"]
    subject = st.sampled_from(keys).map(lambda key: f"$KV.{it.space}_state.{scope}.{key}")
    few = settings(EXAMPLES, max_examples=60)
    names = [wire.KV_OPERATION, wire.MARKER_REASON]
    attack(engine, st.tuples(subject, heads(names), BINDINGS | PAYLOADS, st.just("")), few)
    call(_listed, it)


async def _listed(it: Engine) -> None:
    """What reads all of it still does, and so does one who starts now."""
    with anyio.fail_after(30):
        assert it.worker.id in {info.id for info in await catalogue.workers(it.other.bus)}
        assert "shop.order" in {
            one["id"] for one in await it.other.call("trigger.list", timeout=10)
        } | set(it.directory.functions)
        async with anyio.create_task_group() as tasks:
            fresh = Directory(it.other.bus)
            await tasks.start(fresh.run)
            assert "shop.order" in fresh.functions
            observed = Observed(it.other.bus)
            await tasks.start(observed.run)
            late = Worker(it.other, [App("late")])
            await tasks.start(late.run)
            late.stop()
            tasks.cancel_scope.cancel()
    await it.check()
