"""The HTTP gateway, in front of functions over a real server."""

import anyio
import httpx
import pytest
from gateways import gateway
from pydantic import BaseModel

from trine import App, Context
from trine.errors import AddressInUseError, ConflictError
from trine.settings import Settings
from trine.system import running
from trine_triggers import Http

pytestmark = pytest.mark.anyio


class Run(BaseModel):
    tag: str
    n: int = 0
    names: list[str] = []


def shop() -> App:
    app = App("shop")

    @app.on(Http("POST", "/api/{tag}/runs"))
    @app.on(Http("GET", "/api/{tag}/runs"))
    @app.function("run.echo")
    async def echo(run: Run) -> Run:
        """Return what came."""
        return run

    @app.on(Http("GET", "/api/fixed/runs"))
    @app.function("run.fixed")
    async def fixed() -> str:
        return "fixed"

    @app.on(Http("POST", "/api/conflict"))
    @app.function("run.conflict")
    async def conflict() -> None:
        raise ConflictError("it is taken", holder="a")

    @app.on(Http("GET", "/api/slow", timeout=0.2))
    @app.function("run.slow")
    async def slow() -> None:
        await anyio.sleep(30)

    @app.function("run.trace")
    async def trace(ctx: Context) -> str | None:
        return ctx.invocation.traceparent

    @app.function("run.blow")
    async def blow() -> str:
        return "x" * 2_000_000  # above what one message can carry

    return app


async def test_path_query_and_body_make_one_payload(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        answer = await http.post("/api/mar11/runs?names=a", json={"n": 3, "tag": "ignored"})
        assert answer.status_code == 200
        assert answer.json() == {"tag": "mar11", "n": 3, "names": ["a"]}
        answer = await http.get("/api/mar11/runs?n=5&names=a&names=b")
        assert answer.json() == {"tag": "mar11", "n": 5, "names": ["a", "b"]}
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["traceparent"]


async def test_a_literal_path_wins_over_a_parameter(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        assert (await http.get("/api/fixed/runs")).json() == "fixed"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "nonsense", None]
)
async def test_the_body_is_json_whatever_its_content_type(nats, space, kind):
    async with gateway(nats, space, shop()) as (http, _):
        headers = {"content-type": kind} if kind else {}
        answer = await http.post("/fn/run.echo", content=b'{"tag":"t","n":2}', headers=headers)
        assert answer.json() == {"tag": "t", "n": 2, "names": []}


async def test_errors_have_the_status_of_their_class(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        answer = await http.post("/api/conflict")
        assert answer.status_code == 409
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json() == {
            "holder": "a",
            "error": "it is taken",
            "code": "conflict",
            "message": "it is taken",
            "details": {"holder": "a"},
            "type": "urn:trine:error:conflict",
            "title": "Conflict",
            "status": 409,
            "detail": "it is taken",
        }
        missing = await http.get("/api/nothing")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        unknown = await http.post("/fn/run.ech", json={})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "function_not_found")
        assert "run.echo" in unknown.json()["message"]
        assert (await http.post("/fn/NO", json={})).status_code == 404
        method = await http.put("/api/mar11/runs", json={})
        assert (method.status_code, method.headers["allow"]) == (405, "GET, HEAD, POST")
        large = await http.post("/fn/run.echo", content=b"x" * 1_100_000)
        assert (large.status_code, large.json()["code"]) == (413, "too_large")
        invalid = await http.post("/api/mar11/runs", json={"n": "x"})
        assert (invalid.status_code, invalid.json()["fields"][0]["field"]) == (422, "n")
        for body in (b"{", b"[1]", b"\xff"):
            assert (await http.post("/api/t/runs", content=body)).status_code == 422, body
            assert (await http.post("/fn/run.echo", content=body)).status_code == 422, body
        late = await http.get("/api/slow")
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")


async def test_a_reply_larger_than_a_message_arrives(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        assert (await http.post("/fn/run.blow")).json() == "x" * 2_000_000


async def test_a_callers_trace_goes_on(nats, space):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with gateway(nats, space, shop()) as (http, _):
        answer = await http.post("/fn/run.trace", headers={"traceparent": trace})
        assert answer.json() == trace
        assert answer.headers["traceparent"] == trace
        for wrong in ("00-xyz-1-01", "ü" * 55, "x" * 5000):
            answer = await http.post("/fn/run.trace", headers={"traceparent": wrong.encode()})
            assert answer.json() == answer.headers["traceparent"]
            assert len(answer.json()) == 55


async def test_health_readiness_and_description(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        document = (await http.get("/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        assert set(document["paths"]["/api/{tag}/runs"]) == {"get", "post"}
        assert "/fn/run.blow" in document["paths"]


async def test_a_gateway_whose_server_is_away_is_not_ready(own_server, space):
    async with gateway(own_server.url, space, shop()) as (http, _):
        assert (await http.get("/readyz")).status_code == 200

        async def until(status: int) -> None:
            with anyio.fail_after(15):
                while (await http.get("/readyz")).status_code != status:
                    await anyio.sleep(0.02)

        own_server.kill()
        await until(503)
        assert (await http.get("/healthz")).status_code == 200
        own_server.start()
        await until(200)


REMOTE = """
from trine import App
from trine_triggers import Http

app = App("remote")

@app.on(Http("GET", "/remote/{n}"))
@app.function("remote.square")
async def square(n: int) -> int:
    return n * n
"""


async def test_routes_come_and_go_with_the_programs_that_serve_them(nats, space, trine):
    async with gateway(nats, space, shop()) as (http, _):

        async def until(status: int) -> httpx.Response:
            with anyio.fail_after(10):
                while (answer := await http.get("/remote/7")).status_code != status:
                    await anyio.sleep(0.02)
                return answer

        assert (await http.get("/remote/7")).status_code == 404
        async with trine.serve(REMOTE) as program:
            assert (await until(200)).json() == 49
            program.signal(15)
            assert await program.wait() == 0
        await until(404)


async def test_a_taken_port_is_one_clear_error(nats, space):
    async with gateway(nats, space) as (http, _):
        settings = Settings(nats=nats, namespace=space, port=http.base_url.port or 0)
        with pytest.raises(BaseExceptionGroup) as group:
            async with running(settings, []):
                pass
        errors = group.value.split(AddressInUseError)[0]
        assert errors is not None


async def test_a_caller_that_hangs_up_stops_the_function(nats, space):
    app = App("slow")
    started, ended = anyio.Event(), anyio.Event()

    @app.function("slow.work")
    async def work() -> None:
        started.set()
        try:
            await anyio.sleep(30)
        finally:
            ended.set()

    async with gateway(nats, space, app) as (http, _):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(http.post, "/fn/slow.work")
            with anyio.fail_after(5):
                await started.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            await ended.wait()


async def test_the_gateway_answers_a_client_that_stays_connected_when_it_stops(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        await http.get("/healthz")  # keeps its connection open
        started = anyio.current_time()
    assert anyio.current_time() - started < 5
