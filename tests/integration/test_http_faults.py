"""What a gateway makes of broken, slow, hostile and too many requests: never a 500, or a hang."""

import json
import random
from collections import Counter
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from gateways import gateway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from trine import App
from trine_triggers import Http

pytestmark = pytest.mark.anyio


class Thing(BaseModel):
    name: str = ""
    n: int = 0
    x: float = 0.0
    many: list[int] = []
    deep: "Thing | None" = None


def things() -> App:
    app = App("things")

    @app.on(Http("POST", "/things/{n:int}"))
    @app.on(Http("GET", "/things"))
    @app.on(Http("GET", "/files/{name:path}"))
    @app.function("things.echo")
    async def echo(thing: Thing) -> Thing:
        return thing

    return app


@asynccontextmanager
async def talking(http: httpx.AsyncClient):
    """Give a bare connection, for what no HTTP client would send."""
    async with await anyio.connect_tcp(http.base_url.host, http.base_url.port or 80) as stream:
        yield stream


async def said(stream) -> bytes:
    """Return what comes until the other side closes."""
    whole = b""
    with anyio.fail_after(20):
        try:
            while True:
                whole += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return whole


async def test_a_body_cut_in_the_middle_runs_nothing(nats, space):
    app = App("cut")
    runs: list[int] = []

    @app.function("cut.run")
    async def run() -> None:
        runs.append(1)

    async with gateway(nats, space, app) as (http, _):
        for head in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
            async with talking(http) as stream:
                await stream.send(b"POST /fn/cut.run HTTP/1.1\r\nHost: a\r\n" + head)
                await stream.send_eof()
                assert b"200" not in await said(stream)
        assert (await http.post("/fn/cut.run")).status_code == 200
    assert runs == [1]


async def test_a_body_that_comes_too_slowly_is_a_408(nats, space, monkeypatch):
    monkeypatch.setenv("TRINE_HTTP_BODY_SECONDS", "0.3")
    async with gateway(nats, space, things()) as (http, _):
        for path, kind, begin in (
            (b"/fn/things.echo", b"application/json", b"{"),
            (b"/objects", b"a/b", b"x"),
            (b"/fn/things.echo", b"multipart/form-data; boundary=b", b"--b"),
        ):
            async with talking(http) as stream:
                await stream.send(
                    b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n"
                    b"Content-Type: " + kind + b"\r\n\r\n" + begin
                )
                with anyio.fail_after(10):
                    answer = await stream.receive()
                assert answer.startswith(b"HTTP/1.1 408 ")
                assert b"request_timeout" in answer


async def test_a_head_that_never_ends_is_cut_off_by_size_and_by_time(nats, space, monkeypatch):
    monkeypatch.setattr("trine_triggers.gateway.server._HEAD_SECONDS", 0.5)
    async with gateway(nats, space, things()) as (http, _):
        async with talking(http) as stream:
            await stream.send(b"GET /things HTTP/1.1\r\nHost: a\r\nX-Slow: ")
            assert await said(stream) == b""
        async with talking(http) as stream:
            assert await said(stream) == b""  # not even a first byte
        monkeypatch.setattr("trine_triggers.gateway.server._HEAD_SECONDS", 60.0)
        async with talking(http) as stream:
            await stream.send(b"GET /things HTTP/1.1\r\nHost: a\r\n")
            with anyio.fail_after(20):
                try:
                    while True:
                        await stream.send(b"X-Long: " + b"a" * 4000 + b"\r\n")
                except (anyio.BrokenResourceError, ConnectionError):
                    pass
        assert (await http.get("/things")).status_code == 200


async def test_a_client_that_hangs_up_with_a_body_sent_stops_the_function(nats, space):
    app = App("slow")
    started, ended = anyio.Event(), anyio.Event()

    @app.on(Http("POST", "/slow/{n:int}"))
    @app.function("slow.work")
    async def work(n: int) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with gateway(nats, space, app) as (http, _), talking(http) as stream:
        await stream.send(b"POST /slow/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
        with anyio.fail_after(10):
            await started.wait()
            await stream.aclose()
            await ended.wait()


REMOTE = """
from pathlib import Path

import anyio

from trine import App
from trine_triggers import Http

app = App("far")

@app.on(Http("GET", "/far"))
@app.function("far.work")
async def work() -> None:
    Path("started").touch()
    try:
        await anyio.sleep_forever()
    finally:
        Path("ended").touch()
"""


async def test_a_client_that_hangs_up_stops_a_function_of_another_process(nats, space, trine):
    async def until(name: str) -> None:
        with anyio.fail_after(10):
            while not (trine.directory / name).exists():
                await anyio.sleep(0.02)

    async with gateway(nats, space) as (http, _), trine.serve(REMOTE):
        with anyio.fail_after(10):
            while "far.work" not in (await http.get("/routes")).text:
                await anyio.sleep(0.02)
        async with talking(http) as stream:
            await stream.send(b"GET /far HTTP/1.1\r\nHost: a\r\n\r\n")
            await until("started")
        await until("ended")


async def test_of_a_thousand_requests_at_once_the_limit_is_served_and_the_others_told_when(
    nats, space
):
    app = App("many")
    go, running = anyio.Event(), anyio.Event()
    runs: list[int] = []

    @app.on(Http("GET", "/many", max_in_flight=100))
    @app.function("many.wait")
    async def wait() -> str:
        runs.append(1)
        if len(runs) == 100:
            running.set()
        await go.wait()
        return "done"

    async with gateway(nats, space, app) as (http, _):
        answers: list[bytes] = []

        async def ask() -> None:
            async with talking(http) as stream:
                await stream.send(b"GET /many HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                answers.append(await said(stream))

        with anyio.fail_after(50):
            async with anyio.create_task_group() as tasks:
                for _ in range(1000):
                    tasks.start_soon(ask)
                await running.wait()
                while len(answers) < 900:
                    await anyio.sleep(0.02)
                go.set()
        assert Counter(int(one.split()[1]) for one in answers) == {200: 100, 429: 900}
        assert sum(b"\r\nretry-after: 1\r\n" in one for one in answers) == 900
        assert sum(one.endswith(b'"done"') for one in answers) == 100
        assert len(runs) == 100
        assert (await http.get("/many")).json() == "done"


BODIES = {
    "cut": b'{"name": "a',
    "a list": b"[1]",
    "a number": b"7",
    "null": b"null",
    "invalid UTF-8": b'{"name": "\xff"}',
    "a lone surrogate": b'{"name": "\\ud800"}',
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"deep":' * 50_000 + b"null" + b"}" * 50_000,
    "a huge integer": b'{"n": ' + b"9" * 100_000 + b"}",
    "a huge float": b'{"many": [1e999999]}',
    "not a number": b'{"many": [NaN]}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"name": "a"}'.encode("utf-16"),
    "a NUL": b"\0",
    "a form": b"name=a&n=2",
    "HTML": b"<html></html>",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_garbage_in_a_body_is_a_422(nats, space, body):
    async with gateway(nats, space, things()) as (http, _):
        for path in ("/fn/things.echo", "/things/3", "/fn/things.echo?x=1"):
            answer = await http.post(path, content=body)
            assert answer.status_code == 422, (path, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"


TARGETS = [
    b"//", b"/../../etc/passwd", b"/things/../fn/things.echo", b"/%2e%2e/", b"/things/%00",
    b"/files/%ff", b"/files/%c3%28", b"/things;a=b", b"/things%3fn=1", b"/things/" + b"9" * 5000,
    b"/fn/..", b"/fn/%2e%2e%2f", b"/fn/a.b::c", b"/" + b"a/" * 20_000, b"/things?" + b"n=1&" * 5000,
    b"/things?n=%ff", b"/things?=&&&==", b"/things?n", b"/things?" + b"%" * 100, b"*",
    b"http://elsewhere/things", b"/things#x", b"/th ings", b"/th\xffings", b"/objects/../things",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: repr(target[:24]))
async def test_no_path_or_query_is_a_500_or_hangs(nats, space, target):
    async with gateway(nats, space, things()) as (http, _), talking(http) as stream:
        await stream.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await said(stream)
        status = int(answer.split()[1])
        assert status == 200 or 400 <= status < 500, answer[:300]
        assert (await http.get("/healthz")).status_code == 200


async def test_bytes_that_are_no_http_do_no_harm(nats, space):
    chance = random.Random(7)
    async with gateway(nats, space, things()) as (http, _):
        for _ in range(40):
            async with talking(http) as stream:
                begin = chance.choice(
                    [b"", b"GET / HTTP/1.1\r\n", b"POST /fn/things.echo HTTP/1.1\r\n"]
                )
                await stream.send(begin + chance.randbytes(300) + b"\r\n\r\n")
                await stream.send_eof()
                answer = await said(stream)
                assert not answer or 400 <= int(answer.split()[1]) < 500
        assert (await http.get("/healthz")).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
REQUEST = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]),
        "path": st.sampled_from(["/things", "/things/1", "/fn/things.echo", "/files/", "/objects"])
        | st.text("/a%{}2f0.:-", max_size=20).map(lambda text: f"/{text}"),
        "query": st.binary(max_size=40).map(
            lambda raw: bytes(c for c in raw if 33 <= c < 127 and c != 35).decode()
        ),
        "body": st.binary(max_size=80)
        | JSON.map(lambda value: json.dumps(value).encode())
        | st.fixed_dictionaries(
            {}, optional={"name": JSON, "n": JSON, "x": JSON, "many": JSON, "deep": JSON}
        ).map(lambda value: json.dumps(value).encode()),
        "kind": st.sampled_from(
            [
                "application/json",
                "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=b",
                "multipart/form-data",
                "a",
            ]
        ),
        "accept": st.sampled_from(["*/*", "text/event-stream", "application/jsonl", ""]),
    }
)


async def test_no_request_makes_the_gateway_fail(nats, space):
    """Hypothesis makes the requests; the gateway runs on through all of them."""
    async with gateway(nats, space, things()) as (http, system):
        url = system.http[0]

        def fuzz() -> None:
            with httpx.Client(timeout=10) as client:

                @settings(
                    max_examples=300,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                )
                @given(REQUEST)
                def one(request) -> None:
                    headers = {"content-type": request["kind"], "accept": request["accept"]}
                    try:
                        made = client.build_request(
                            request["method"],
                            f"{url}{request['path']}?{request['query']}",
                            content=request["body"],
                            headers=headers,
                        )
                    except (httpx.InvalidURL, ValueError):
                        return
                    answer = client.send(made)
                    assert answer.status_code < 500, (request, answer.text)
                    if answer.status_code >= 400 and request["method"] != "HEAD":
                        problem = answer.json()
                        assert problem["status"] == answer.status_code
                        assert problem["code"]

                one()

        await anyio.to_thread.run_sync(fuzz)
        assert (await http.get("/healthz")).status_code == 200
