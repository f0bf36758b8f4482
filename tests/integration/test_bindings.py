"""Bindings made as data: to functions of other processes and other languages, over kill -9."""

import json
import signal
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import nats as nats_py
import pytest
from gateways import gateway
from nats.micro import add_service
from outside import PYTHON, following, program, until
from pydantic import BaseModel

from trine import App, Client, EventModel, Scope, streams
from trine.catalogue.directory import bindings, functions
from trine.errors import InvalidInputError, NotFoundError
from trine.settings import Settings
from trine.system import running

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


class Seen(EventModel, type="thing.seen"):
    n: int


class Value(BaseModel):
    n: int


values = Scope("values", Value)
recorded = Scope("recorded", Value, changes=True)


class Probe:
    """Functions that note what they are given, served in this process, apart from the engines."""

    def __init__(self) -> None:
        self.app = App("probe")
        self.got: list[dict] = []
        self._arrived = anyio.Event()

        @self.app.function("probe.note")
        async def note(n: int = -1, new: dict | None = None, scheduled_at: str = "") -> int:
            self.got.append({"n": n, "new": new, "scheduled_at": scheduled_at})
            self._arrived.set()
            return n

    async def until(self, reached, seconds: float = 20) -> None:
        with anyio.fail_after(seconds):
            while not reached(self.got):
                self._arrived = anyio.Event()
                await self._arrived.wait()

    def numbers(self) -> list[int]:
        return sorted(one["n"] for one in self.got)


@asynccontextmanager
async def engines(nats: str, space: str, count: int = 1):
    """Run engines without functions of their own; gives a client of the first."""
    async with AsyncExitStack() as stack:
        systems = [
            await stack.enter_async_context(
                running(Settings(nats=nats, namespace=space), [], gateway=False)
            )
            for _ in range(count)
        ]
        yield systems[0].client


async def add(client: Client, kind: str, function: str, **config) -> dict:
    return await client.call("trigger.add", {"kind": kind, "config": config, "function": function})


async def consumers(client: Client) -> list[str]:
    names = client.bus.names
    return [
        name
        for stream in (names.events, names.record, names.leases)
        for name in await client.bus.consumers(stream)
    ]


async def started(client: Client, binding: str, seconds: float = 10) -> None:
    """Wait until the durable consumer of the binding is there: nothing is missed any more."""
    with anyio.fail_after(seconds):
        while binding not in await consumers(client):
            await anyio.sleep(0.02)


# --- each kind, to a function of another process -------------------------------------------------


async def test_an_event_bound_as_data_runs_once_over_two_engines(nats, space, serve):
    probe = Probe()
    async with engines(nats, space, 2) as client, serve(probe.app):
        added = await add(client, "event", "probe.note", type="thing.seen")
        assert added["served"] is True
        await started(client, added["binding"]["id"])
        for n in range(50):
            await client.emit(Seen(n=n))
        await probe.until(lambda got: len(got) >= 50)
        last = Seen(n=1000)  # what came twice would have come before this
        await client.emit(last)
        await probe.until(lambda got: any(one["n"] == 1000 for one in got))
        assert probe.numbers() == [*range(50), 1000]


async def test_an_interval_bound_as_data_fires_in_one_engine_of_two(nats, space, serve):
    probe = Probe()
    async with engines(nats, space, 2) as client, serve(probe.app):
        await add(client, "interval", "probe.note", seconds=0.2)
        await probe.until(lambda got: len(got) >= 5)
        held = await client.bus.latest(
            client.bus.names.leases, [client.bus.names.lease("trigger.*")]
        )
        assert len([one for one in held if not one.gone]) == 1


async def test_a_key_bound_as_data_tells_the_changes_of_a_scope(nats, space, serve):
    probe = Probe()
    async with engines(nats, space, 2) as client, serve(probe.app):
        added = await add(
            client, "key", "probe.note", scope="recorded", keys="a.*", changes=True, on=["put"]
        )
        with anyio.fail_after(10):
            while not any(
                one.startswith(added["binding"]["id"]) for one in await consumers(client)
            ):
                await anyio.sleep(0.02)
        store = client.state(recorded)
        for n in range(10):
            await store.put("a.b", Value(n=n))
        await probe.until(lambda got: len(got) >= 10)
        assert [one["new"]["n"] for one in probe.got] == list(range(10))


async def test_a_queue_bound_as_data_works_off_the_jobs_and_keeps_their_results(nats, space, serve):
    probe = Probe()
    async with engines(nats, space, 2) as client, serve(probe.app):
        waiting = [await client.enqueue("things", {"n": n}) for n in range(30)]
        await add(client, "queue", "probe.note", name="things", concurrency=4)
        assert [await job.result(20) for job in waiting] == list(range(30))
        assert probe.numbers() == list(range(30))


async def test_a_clock_bound_as_data_ticks_once_for_all_engines(nats, space, serve):
    probe = Probe()
    async with engines(nats, space, 2) as client, serve(probe.app):
        added = await add(client, "cron", "probe.note", expression="* * * * * *")
        await probe.until(lambda got: len(got) >= 4)
        ticks = [one["scheduled_at"] for one in probe.got]
        assert len(set(ticks)) == len(ticks)
        await client.call("trigger.remove", {"id": added["binding"]["id"]})
        names = client.bus.names
        with anyio.fail_after(10):  # its schedule goes from the server
            while await client.bus.subjects(names.record, names.schedule(">")):
                await anyio.sleep(0.02)


async def test_a_route_bound_as_data_leads_to_a_function_of_another_process(nats, space, serve):
    probe = Probe()
    async with gateway(nats, space) as (http, system), serve(probe.app):
        added = await add(system.client, "http", "probe.note", method="POST", path="/notes/{n:int}")
        with anyio.fail_after(10):
            while (answer := await http.post("/notes/7")).status_code == 404:
                await anyio.sleep(0.02)
        assert (answer.status_code, answer.json()) == (200, 7)
        listed = (await http.post("/fn/trigger.list", json={})).json()
        assert [one["id"] for one in listed] == [added["binding"]["id"]]
        removed = await http.post("/fn/trigger.remove", json={"id": added["binding"]["id"]})
        assert removed.status_code == 200
        with anyio.fail_after(10):
            while (await http.post("/notes/7")).status_code != 404:
                await anyio.sleep(0.02)


# --- to a foreign function -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["event", "queue", "cron", "key"])
async def test_each_durable_kind_runs_a_function_without_our_code(nats, space, kind):
    got: list = []
    arrived = anyio.Event()

    async def answer(request) -> None:
        got.append(json.loads(request.data))
        arrived.set()
        await request.respond(b'{"ok": true}')

    async with engines(nats, space) as client:
        plain = await nats_py.connect(nats)
        service = await add_service(plain, name="plain", version="1.0.0")
        await service.add_endpoint(name="a", subject=f"{space}.fn.plain.take", handler=answer)
        await plain.flush()
        config = {
            "event": {"type": "thing.seen"},
            "queue": {"name": "things"},
            "cron": {"expression": "* * * * * *", "payload": {"n": 5}},
            "key": {"scope": "values", "on": ["put"]},
        }[kind]
        added = await add(client, kind, "plain.take", **config)
        assert added["served"] is True
        job = None
        if kind in ("event", "key"):
            await started(client, added["binding"]["id"])
        if kind == "event":
            await client.emit(Seen(n=5))
        if kind == "queue":
            job = await client.enqueue("things", {"n": 5})
        if kind == "key":
            await client.state(values).put("k", Value(n=5))
        with anyio.fail_after(20):
            await arrived.wait()
        found = got[0]["new"] if kind == "key" else got[0]
        assert found["n"] == 5
        if job is not None:
            assert await job.result(10) == {"ok": True}
        await service.stop()
        await plain.close()


# --- over restarts -------------------------------------------------------------------------------


async def test_bindings_and_what_they_missed_survive_kill_9_of_the_engine(
    nats, space, trine, serve
):
    probe = Probe()
    async with serve(probe.app) as client:
        up = ("up", "--json", "--port", "0", "--workers", "0")
        async with trine.start(*up) as engine:
            await engine.line()
            event = await add(client, "event", "probe.note", type="thing.seen")
            await add(client, "queue", "probe.note", name="things", ack_wait=1)
            await add(client, "cron", "probe.note", expression="@every 1s", payload={"n": 7777})
            key = await add(client, "key", "probe.note", scope="values", on=["put"], changes=False)
            await started(client, event["binding"]["id"])
            await started(client, key["binding"]["id"])
            await client.emit(Seen(n=0))
            await probe.until(lambda got: {0, 7777} <= {one["n"] for one in got})
            engine.signal(signal.SIGKILL)
            await engine.wait()
        for n in range(1, 21):
            await client.emit(Seen(n=n))
        await client.state(values).put("k", Value(n=21))
        waiting = [await client.enqueue("things", {"n": n}) for n in range(100, 110)]
        probe.got.clear()
        async with trine.start(*up) as engine:
            await engine.line()
            assert [await job.result(20) for job in waiting] == list(range(100, 110))
            wanted = {*range(1, 21), *range(100, 110), 7777}
            await probe.until(lambda got: wanted <= {one["n"] for one in got})
            await probe.until(lambda got: any(one["new"] == {"n": 21} for one in got))
            listed = await client.call("trigger.list")
            assert sorted(one["kind"] for one in listed) == ["cron", "event", "key", "queue"]


async def test_what_a_binding_left_is_removed_though_its_engine_died(nats, space):
    async with engines(nats, space) as client:
        added = await add(client, "event", "probe.note", type="thing.seen")
        clock = await add(client, "cron", "probe.note", expression="@hourly")
        await started(client, added["binding"]["id"])
        await started(client, clock["binding"]["id"])
    async with Client.connect(nats, namespace=space) as client:  # no engine runs
        for one in (added, clock):
            await client.state(bindings).delete(one["binding"]["id"])
        assert len(await consumers(client)) == 2
    async with engines(nats, space) as client:
        names = client.bus.names
        with anyio.fail_after(10):
            while await consumers(client) or await client.bus.subjects(
                names.record, names.schedule(">")
            ):
                await anyio.sleep(0.02)


async def test_removing_a_binding_ends_it_in_every_engine_with_the_run_that_goes_on(
    nats, space, serve
):
    app = App("slow")
    began, ended = anyio.Event(), anyio.Event()

    @app.function("slow.run")
    async def run(n: int = 0) -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with engines(nats, space, 2) as client, serve(app):
        added = await add(client, "event", "slow.run", type="thing.seen")
        id = added["binding"]["id"]
        await started(client, id)
        await client.emit(Seen(n=1))
        with anyio.fail_after(10):
            await began.wait()
            await client.call("trigger.remove", {"id": id})
            await ended.wait()
            while id in await consumers(client):
                await anyio.sleep(0.02)
        with pytest.raises(NotFoundError, match="trine trigger ls"):
            await client.call("trigger.remove", {"id": id})


async def test_a_binding_of_code_keeps_its_schedule_when_one_of_data_goes(nats, space, serve):
    from trine_triggers import Cron

    app = App("coded")

    @app.on(Cron("@daily"))
    @app.function("coded.run")
    async def run() -> None:
        pass

    async with engines(nats, space) as client:
        async with serve(app):
            added = await add(client, "cron", "coded.run", expression="@hourly")
            await started(client, added["binding"]["id"])
        # Nobody serves the function any more: the catalogue does not have its own binding.
        await client.call("trigger.remove", {"id": added["binding"]["id"]})
        names = client.bus.names
        with anyio.fail_after(10):
            while len(left := await client.bus.subjects(names.record, names.schedule(">"))) > 1:
                await anyio.sleep(0.02)
        assert not left[0].rsplit(".", 1)[1].startswith("data-")


# --- what is refused, and what waits -------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "config", "function", "field"),
    [
        ("nonsense", {}, "a.b", "kind"),
        ("cron", {}, "a.b", "config.expression"),
        ("cron", {"expression": "x"}, "a.b", "config.expression"),
        ("cron", {"expression": "@daily", "zone": "Moon"}, "a.b", "config.zone"),
        ("event", {"type": "a", "typo": 1}, "a.b", "config.typo"),
        ("http", {"method": "POST"}, "a.b", "config.path"),
        ("http", {"method": "BREW", "path": "/x"}, "a.b", "config.method"),
        ("queue", {"name": "q", "self": 1}, "a.b", "config"),
        ("queue", {"name": 7}, "a.b", "config.name"),
        ("queue", {"name": "q"}, "Not An Id", "function"),
        ("queue", {"name": "q"}, "counts.up", "function"),
    ],
)
async def test_what_does_not_fit_is_refused_with_the_field(
    nats, space, serve, kind, config, function, field
):
    app = App("counts")

    @app.function("counts.up")
    async def up():
        yield 1

    async with engines(nats, space) as client, serve(app):
        with pytest.raises(InvalidInputError) as refused:
            await add(client, kind, function, **config)
        assert [one["field"] for one in refused.value.details["fields"]] == [field]
        assert await client.call("trigger.list") == []


async def test_a_function_that_nobody_serves_yet_gets_what_fired_once_it_is_there(
    nats, space, serve
):
    probe = Probe()
    async with engines(nats, space) as client:
        added = await add(client, "event", "probe.note", type="thing.seen")
        assert added["served"] is False
        assert await add(client, "event", "probe.note", type="thing.seen") == added
        await started(client, added["binding"]["id"])
        for n in range(5):
            await client.emit(Seen(n=n))
        async with serve(probe.app):
            await probe.until(lambda got: len(got) >= 5)
            assert probe.numbers() == list(range(5))
        names = client.bus.names
        assert not await client.bus.subjects(names.dead, f"{space}.dead.>")


async def test_a_foreign_function_that_was_killed_gets_what_fired_meanwhile(nats, space):
    async with engines(nats, space) as client:
        added = await add(client, "queue", "text.upper", name="texts", ack_wait=1)
        assert added["served"] is False
        async with program(PYTHON, nats, space) as worker:
            assert await (await client.enqueue("texts", {"text": "a"})).result(20) == {"text": "A"}
            worker.send_signal(signal.SIGKILL)
            with anyio.fail_after(10):
                await worker.wait()
        job = await client.enqueue("texts", {"text": "b"})
        async with program(PYTHON, nats, space):
            assert await job.result(20) == {"text": "B"}


# --- the command ---------------------------------------------------------------------------------


async def test_the_command_adds_lists_and_removes(nats, space, trine):
    async with engines(nats, space):
        status, out, err = await trine.run("trigger", "add", "queue", '{"name": "q"}', "some.thing")
        assert status == 0, err
        id = out.strip()
        assert id.startswith("data-some-thing--queue-")
        assert "nobody serves some.thing now" in err
        status, out, _ = await trine.run("trigger", "ls")
        assert (status, out.split()[:3]) == (0, [id, "queue", "some.thing"])
        status, out, _ = await trine.run("trigger", "ls", "--json")
        assert [one["id"] for one in json.loads(out)] == [id]
        status, _, err = await trine.run("trigger", "add", "queue", '{"name": ""}', "some.thing")
        assert (status, "name" in err, "invalid_input" in err) == (1, True, True)
        status, _, err = await trine.run("trigger", "add", "queue", "{", "some.thing")
        assert (status, "not JSON" in err) == (2, True)
        assert (await trine.run("trigger", "rm", id))[0] == 0
        status, _, err = await trine.run("trigger", "rm", id)
        assert (status, "trine trigger ls" in err) == (3, True)


async def test_without_an_engine_the_command_says_so(nats, space, trine):
    async with Client.connect(nats, namespace=space) as client:
        await streams.ensure(client.bus)
    status, _, err = await trine.run("trigger", "ls")
    assert status == 1
    assert "trine up" in err


# --- the directory -------------------------------------------------------------------------------


async def test_the_directory_follows_workers_and_bindings(nats, space, serve):
    probe = Probe()
    async with engines(nats, space) as client, following(client) as directory:
        assert "trigger.add" in directory.functions
        assert "probe.note" not in directory.functions
        async with serve(probe.app):
            await until(directory, lambda known: "probe.note" in known)
            added = await add(client, "queue", "probe.note", name="q")
            id = added["binding"]["id"]
            await until(
                directory, lambda known: [b.id for b in known["probe.note"].bindings] == [id]
            )
            assert await functions(client.bus) == directory.functions
            await client.call("trigger.remove", {"id": id})
            await until(directory, lambda known: not known["probe.note"].bindings)
        await until(directory, lambda known: "probe.note" not in known)


async def test_the_directory_reads_again_what_changed_while_the_server_was_away(own_server):
    async with Client.connect(own_server.url, namespace="d") as client:
        await streams.ensure(client.bus)
        async with engines(own_server.url, "d") as engine, following(client) as directory:
            await add(engine, "queue", "some.thing", name="q")
            with anyio.fail_after(10):
                while not directory.data:
                    await directory.changed()
            own_server.kill()
            own_server.start()
            with anyio.fail_after(30):
                while True:
                    try:
                        await client.state(bindings).delete(next(iter(directory.data)))
                        break
                    except Exception:  # noqa: BLE001 - away
                        await anyio.sleep(0.05)
                while directory.data:
                    await directory.changed()
