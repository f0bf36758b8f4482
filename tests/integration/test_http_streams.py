"""Streams over HTTP: JSON lines and server-sent events, their ends, and clients that leave."""

import json
import socket
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest
from gateways import connect, events_of, gateway
from pydantic import BaseModel

from trine import App, EventModel
from trine.errors import ConflictError, TrineError
from trine_triggers import Http
from trine_triggers.gateway.feed import Feed

pytestmark = pytest.mark.anyio


class Steps(BaseModel):
    n: int = 3
    fail_at: int | None = None
    last_event_id: int = 0


class Finished(EventModel, type="run.finished", key="run"):
    run: str
    n: int


class Started(EventModel, type="run.started", key="run"):
    run: str


def counting() -> App:
    app = App("count")

    @app.on(Http("GET", "/steps"))
    @app.on(Http("GET", "/sse/{n:int}", stream="sse"))
    @app.on(Http("GET", "/few", condition="count.few"))
    @app.function("count.steps")
    async def steps(value: Steps) -> AsyncIterator[dict[str, int]]:
        for number in range(value.last_event_id + 1, value.n + 1):
            if number == value.fail_at:
                raise ConflictError("it went wrong", at=number)
            yield {"step": number}

    @app.function("count.few")
    async def few(value: Steps) -> bool:
        return value.n < 3

    return app


async def test_a_stream_too_is_asked_for_its_condition(nats, space):
    async with gateway(nats, space, counting()) as (http, _):
        assert (await http.get("/few?n=2")).text.count("\n") == 2
        unmet = await http.get("/few?n=3")
        assert (unmet.status_code, unmet.json()["code"]) == (422, "condition_not_met")


async def test_a_stream_is_one_json_line_for_each_item(nats, space):
    async with gateway(nats, space, counting()) as (http, _):
        for path in ("/steps?n=3", "/fn/count.steps"):
            method = "GET" if path.startswith("/s") else "POST"
            answer = await http.request(method, path)
            assert answer.headers["content-type"] == "application/jsonl"
            assert [json.loads(line) for line in answer.text.splitlines()] == [
                {"step": 1},
                {"step": 2},
                {"step": 3},
            ]
        answer = await http.get("/steps?n=0")
        assert (answer.status_code, answer.text) == (200, "")
        accept = {"accept": "application/x-ndjson"}
        answer = await http.get("/steps", headers=accept)
        assert answer.headers["content-type"] == "application/x-ndjson"


async def test_a_stream_is_server_sent_events_for_those_who_accept_them(nats, space):
    async with gateway(nats, space, counting()) as (http, _):
        sse = {"accept": "text/event-stream"}
        for answer in (await http.get("/steps?n=2", headers=sse), await http.get("/sse/2")):
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-cache"
            assert events_of(answer.text) == [
                {"id": "1", "event": "message", "data": {"step": 1}},
                {"id": "2", "event": "message", "data": {"step": 2}},
                {"event": "end", "data": {}},
            ]


async def test_a_function_that_takes_the_last_event_id_goes_on_after_it(nats, space):
    async with gateway(nats, space, counting()) as (http, _):
        headers = {"accept": "text/event-stream", "last-event-id": "3"}
        answer = await http.get("/steps?n=5", headers=headers)
        assert [one["id"] for one in events_of(answer.text) if "id" in one] == ["4", "5"]
        assert [one["data"] for one in events_of(answer.text)][:2] == [{"step": 4}, {"step": 5}]
        wrong = await http.get("/steps", headers={"last-event-id": "x"})
        assert (wrong.status_code, wrong.json()["fields"][0]["field"]) == (422, "last_event_id")


async def test_an_error_before_the_first_item_has_its_own_status_and_a_later_one_is_told(
    nats, space
):
    async with gateway(nats, space, counting()) as (http, _):
        early = await http.get("/steps?fail_at=1")
        assert (early.status_code, early.json()["code"]) == (409, "conflict")
        late = await http.get("/sse/5?fail_at=3")
        assert late.status_code == 200
        *items, end = events_of(late.text)
        assert [one["data"]["step"] for one in items] == [1, 2]
        assert (end["event"], end["data"]["code"]) == ("error", "conflict")
        lines = [
            json.loads(line) for line in (await http.get("/steps?fail_at=2")).text.splitlines()
        ]
        assert lines[0] == {"step": 1}
        assert lines[-1]["code"] == "conflict"
        invalid = await http.get("/steps?n=many")
        assert (invalid.status_code, invalid.json()["code"]) == (422, "invalid_input")
        assert (await http.head("/steps")).status_code == 200


def ticking(started: anyio.Event, ended: anyio.Event) -> App:
    app = App("tick")

    @app.on(Http("GET", "/ticks"))
    @app.function("tick.forever")
    async def forever() -> AsyncIterator[int]:
        started.set()
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            ended.set()

    return app


async def test_a_quiet_stream_shows_that_it_lives_and_ends_with_its_client(
    nats, space, monkeypatch
):
    monkeypatch.setenv("TRINE_HTTP_KEEP_ALIVE_SECONDS", "0.1")
    started, ended = anyio.Event(), anyio.Event()
    async with gateway(nats, space, ticking(started, ended)) as (http, _):
        sse = {"accept": "text/event-stream"}
        with anyio.fail_after(10):
            async with http.stream("GET", "/ticks", headers=sse) as answer:
                beats = 0
                async for line in answer.aiter_lines():
                    beats += line == ": keep-alive"
                    if beats == 2:
                        break
            await ended.wait()


async def test_a_stream_is_told_when_the_gateway_stops(nats, space):
    started, ended = anyio.Event(), anyio.Event()
    told: list[str] = []
    sse = {"accept": "text/event-stream"}
    async with (
        httpx.AsyncClient() as own,
        anyio.create_task_group() as tasks,
        gateway(nats, space, ticking(started, ended)) as (_, system),
    ):

        async def listen(*, task_status) -> None:
            async with own.stream("GET", f"{system.http[0]}/ticks", headers=sse) as answer:
                async for line in answer.aiter_lines():
                    told.append(line)
                    if line == "data: 1":
                        task_status.started()

        await tasks.start(listen)
    *_, end = events_of("\n".join(told))
    assert (end["event"], end["data"]["code"]) == ("error", "unavailable")
    assert ended.is_set()


async def test_a_client_that_does_not_read_is_cut_off_and_the_function_ends(
    nats, space, monkeypatch
):
    monkeypatch.setenv("TRINE_HTTP_STALL_SECONDS", "0.3")
    app = App("flood")
    ended = anyio.Event()

    @app.on(Http("GET", "/flood"))
    @app.function("flood.forever")
    async def forever() -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 10_000
                await anyio.sleep(0)
        finally:
            ended.set()

    async with gateway(nats, space, app) as (http, _):
        deaf = connect(http, receive_buffer=4096)
        try:
            deaf.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
            with anyio.fail_after(20):
                await ended.wait()
                await anyio.to_thread.run_sync(_drain, deaf)
        finally:
            deaf.close()
        assert (await http.get("/healthz")).status_code == 200


def _drain(one: socket.socket) -> int:
    """Read until the connection is cut off; raises when it stays open."""
    size = 0
    try:
        while data := one.recv(65536):
            size += len(data)
    except ConnectionResetError:
        return size
    return size


# --- durable events ------------------------------------------------------------------------------


async def read(http: httpx.AsyncClient, path: str, count: int, **headers: str) -> list[dict]:
    """Return the first *count* events of a feed."""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    text = ""
    with anyio.fail_after(10):
        async with http.stream("GET", path, headers=names) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for piece in answer.aiter_text():
                text += piece
                found = events_of(text[: text.rfind("\n\n") + 2])
                if len(found) >= count:
                    return found
    raise AssertionError(text)


async def test_durable_events_are_replayed_after_the_last_one_seen(nats, space):
    async with gateway(nats, space) as (http, system):
        for n in range(5):
            await system.client.emit(Finished(run=f"r{n % 2}", n=n))
            await system.client.emit(Started(run=f"r{n % 2}"))
        whole = await read(http, "/events?type=run.finished&after=0", 5)
        assert [one["data"]["n"] for one in whole] == [0, 1, 2, 3, 4]
        assert {one["event"] for one in whole} == {"run.finished"}
        rest = await read(http, "/events?type=run.finished", 2, last_event_id=whole[2]["id"])
        assert [one["data"]["n"] for one in rest] == [3, 4]
        of_key = await read(http, "/events?type=run.finished&key=r1&after=0", 2)
        assert [one["data"]["n"] for one in of_key] == [1, 3]
        both = await read(http, "/events?type=run.*&type=run.started&key=r0&after=0", 6)
        assert [one["event"] for one in both] == ["run.finished", "run.started"] * 3
        everything = await read(http, "/events?after=0", 10)
        assert len(everything) == 10


async def test_a_feed_without_a_position_begins_now_and_follows(nats, space):
    async with gateway(nats, space) as (http, system), anyio.create_task_group() as tasks:
        await system.client.emit(Finished(run="old", n=0))
        found: list[dict] = []

        async def listen() -> None:
            found.extend(await read(http, "/events?type=run.finished", 2))

        tasks.start_soon(listen)
        number = 0
        with anyio.fail_after(10):
            while not found:  # it begins at some moment: what comes after that arrives
                number += 1
                await system.client.emit(Finished(run="new", n=number))
                await anyio.sleep(0.02)
        first, second = (one["data"]["n"] for one in found[:2])
        assert first >= 1
        assert second == first + 1


async def test_a_feed_goes_on_over_a_restart_of_the_server(own_server, space):
    async with gateway(own_server.url, space) as (_, system):
        await system.client.emit(Finished(run="a", n=0))
        found: list[int] = []
        async with anyio.create_task_group() as tasks:

            async def listen(*, task_status) -> None:
                feed = Feed(system.client.bus, ["run.finished"], None, 0)
                async for item in feed.items():
                    found.append(json.loads(item.data)["n"])
                    if len(found) == 1:
                        task_status.started()
                    if found[-1] == 2:
                        return

            await tasks.start(listen)
            own_server.kill()
            own_server.start()
            with anyio.fail_after(20):
                for n in (1, 2):
                    await _emit_when_back(system, Finished(run="a", n=n))
        assert found == [0, 1, 2]


async def _emit_when_back(system, event) -> None:
    while True:
        try:
            await system.client.emit(event, id=f"e{event.n}")
            return
        except TrineError:
            await anyio.sleep(0.1)


async def test_a_feed_that_was_purged_says_what_is_missing(nats, space):
    async with gateway(nats, space) as (http, system):
        for n in range(4):
            await system.client.emit(Finished(run="a", n=n))
        stream = system.client.bus.names.events
        await system.client.bus.api(f"STREAM.PURGE.{stream}", {"seq": 4})
        gap, last = await read(http, "/events", 2, last_event_id="1")
        assert (gap["event"], gap["data"]) == ("gap", {"from": 2, "to": 3})
        assert last["data"]["n"] == 3


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("type=Run..x", {}),
        ("type=a%20b", {}),
        ("type=a&key=x%20y", {}),
        ("key=%ff", {}),
        ("colour=red", {}),
        ("after=-1", {}),
        ("", {"last-event-id": "abc"}),
        ("", {"last-event-id": "9" * 40}),
    ],
)
async def test_a_feed_that_cannot_be_is_refused(nats, space, query, headers):
    async with gateway(nats, space) as (http, _):
        answer = await http.get(f"/events?{query}", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


async def test_feeds_leave_no_consumers_behind(nats, space):
    async with gateway(nats, space) as (http, system):
        await system.client.emit(Finished(run="a", n=0))
        for _ in range(3):
            await read(http, "/events?after=0", 1)
        stream = system.client.bus.names.events
        with anyio.fail_after(10):
            while True:
                named = await system.client.bus.api(f"CONSUMER.NAMES.{stream}", {"offset": 0})
                left = [one for one in named.get("consumers") or [] if one.startswith("feed-")]
                if not left:
                    break
                await anyio.sleep(0.02)
