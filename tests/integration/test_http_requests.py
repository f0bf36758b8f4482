"""What a route makes of a request, what it refuses, and how it says so."""

import gzip
import json
from uuid import UUID

import anyio
import pytest
from gateways import gateway
from pydantic import BaseModel, ConfigDict

from trine import App
from trine.errors import RetryLater
from trine_triggers import Http

pytestmark = pytest.mark.anyio


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    n: int
    x: float = 0.0
    flag: bool = False
    many: list[int] = []


class Order(BaseModel):
    user: str = ""
    tag: str = ""
    amount: int = 0
    items: list[int] = []


def shop() -> App:
    app = App("shop")

    @app.on(Http("GET", "/strict/{n:int}"))
    @app.on(Http("POST", "/strict"))
    @app.function("shop.strict")
    async def strict(value: Strict) -> Strict:
        return value

    @app.on(Http("GET", "/places/{u:uuid}/{x:float}/{rest:path}"))
    @app.function("shop.place")
    async def place(u: UUID, x: float, rest: str) -> list[str]:
        return [str(u), repr(x), rest]

    @app.on(Http("POST", "/orders/{tag}", headers={"X-User": "user"}, status=201))
    @app.on(Http("PUT", "/items/{tag}", body="items"))
    @app.on(Http("POST", "/paid", where={"amount": {"gt": 0}}))
    @app.on(Http("POST", "/checked", condition="shop.allowed"))
    @app.on(Http("POST", "/small", body_limit=20))
    @app.on(Http("POST", "/far", cors=("https://app.example",)))
    @app.function("shop.order")
    async def order(value: Order) -> Order:
        return value

    @app.function("shop.allowed")
    async def allowed(value: Order) -> bool:
        return value.user == "ada"

    @app.on(Http("GET", "/long"))
    @app.function("shop.long")
    async def long(n: int = 100_000) -> str:
        return "x" * n

    @app.on(Http("GET", "/later"))
    @app.function("shop.later")
    async def later() -> None:
        raise RetryLater("come back", after=6.2)

    return app


async def test_a_parameter_has_the_type_of_its_field_even_for_a_strict_model(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        answer = await http.get("/strict/7?x=1.5&flag=true&many=1&many=2")
        assert answer.json() == {"n": 7, "x": 1.5, "flag": True, "many": [1, 2]}
        assert (await http.get("/strict/7?many=3")).json()["many"] == [3]
        assert (await http.get("/strict/seven")).status_code == 404
        wrong = await http.get("/strict/7?flag=perhaps")
        assert (wrong.status_code, wrong.json()["fields"][0]["field"]) == (422, "flag")


async def test_path_conversions(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        uuid = "6BA7B810-9DAD-11D1-80B4-00C04FD430C8"
        answer = await http.get(f"/places/{uuid}/2.50/a/b%2Fc/ü%20?")
        assert answer.json() == [uuid.lower(), "2.5", "a/b/c/ü "]
        assert (await http.get("/places/1/2.5/a")).status_code == 404
        assert (await http.get(f"/places/{uuid}/inf/a")).status_code == 404


async def test_a_field_that_a_header_sets_comes_from_nowhere_else(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        body = {"user": "mallory", "amount": 2, "tag": "other"}
        answer = await http.post("/orders/t1?user=eve", json=body, headers={"x-user": "ada"})
        assert answer.status_code == 201
        assert answer.json() == {"user": "ada", "tag": "t1", "amount": 2, "items": []}
        answer = await http.post("/orders/t1?user=eve", json=body)
        assert answer.json()["user"] == ""


async def test_the_whole_body_may_be_one_field(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        answer = await http.put("/items/t1?amount=4", content=b" [1, 2] ")
        assert answer.json() == {"user": "", "tag": "t1", "amount": 4, "items": [1, 2]}
        assert (await http.put("/items/t1", content=b"[1,")).status_code == 422


async def test_a_form_makes_a_payload_and_json_that_says_it_is_a_form_is_json(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        answer = await http.post("/fn/shop.order", data={"tag": "t", "items": ["1", "2"]})
        assert answer.json() == {"user": "", "tag": "t", "amount": 0, "items": [1, 2]}
        kind = {"content-type": "application/x-www-form-urlencoded"}
        answer = await http.post("/fn/shop.order", content=b'  {"tag": "j"}', headers=kind)
        assert answer.json()["tag"] == "j"
        bad = await http.post("/fn/shop.order", content=b"tag=%ff", headers=kind)
        assert bad.status_code == 422


async def test_an_unmet_condition_is_a_422_and_the_function_does_not_run(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        assert (await http.post("/paid", json={"amount": 1})).status_code == 200
        unmet = await http.post("/paid", json={"amount": 0})
        assert (unmet.status_code, unmet.json()["code"]) == (422, "condition_not_met")
        assert (await http.post("/checked", json={"user": "ada"})).status_code == 200
        unmet = await http.post("/checked", json={"user": "eve"})
        assert (unmet.status_code, unmet.json()["code"]) == (422, "condition_not_met")
        assert unmet.json()["details"] == {"condition": "shop.allowed"}
        invalid = await http.post("/checked", json={"user": 7})
        assert (invalid.status_code, invalid.json()["code"]) == (422, "invalid_input")


async def test_a_body_has_a_limit_that_a_route_and_a_gateway_can_set(nats, space, monkeypatch):
    monkeypatch.setenv("TRINE_HTTP_BODY_LIMIT", "200")
    async with gateway(nats, space, shop()) as (http, _):

        async def pieces():
            for _ in range(10):
                yield b" " * 30

        body = json.dumps({"user": "a" * 30})
        assert (await http.post("/fn/shop.order", content=body)).status_code == 200
        for path, content in (
            ("/small", body),
            ("/fn/shop.order", " " * 201),
            ("/fn/shop.order", pieces()),
        ):
            large = await http.post(path, content=content)
            assert (large.status_code, large.json()["code"]) == (413, "too_large"), path
        assert (await http.post("/small", content=b"{}" + b" " * 18)).status_code == 200


async def test_a_body_of_exactly_the_usual_limit_is_taken(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        body = b'{"tag":"x"}'.ljust(1024 * 1024)
        assert (await http.post("/fn/shop.order", content=body)).json()["tag"] == "x"
        assert (await http.post("/fn/shop.order", content=body + b" ")).status_code == 413


async def test_a_retry_later_says_when(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        answer = await http.get("/later")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


async def test_a_large_reply_is_compressed_for_those_who_accept_it(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        for n in (2_000, 200_000):  # in the loop, and in a thread
            request = http.build_request("GET", f"/long?n={n}", headers={"accept-encoding": "gzip"})
            answer = await http.send(request, stream=True)
            raw = b"".join([piece async for piece in answer.aiter_raw()])
            assert answer.headers["content-encoding"] == "gzip"
            assert "accept-encoding" in answer.headers["vary"]
            assert len(raw) < n / 10
            assert json.loads(gzip.decompress(raw)) == "x" * n
        plain = await http.get("/long", headers={"accept-encoding": "gzip;q=0"})
        assert "content-encoding" not in plain.headers
        small = await http.get("/long?n=10", headers={"accept-encoding": "gzip"})
        assert "content-encoding" not in small.headers


async def test_browsers_of_the_named_origins_may_call(nats, space, monkeypatch):
    far = {"origin": "https://app.example"}
    asks = {**far, "access-control-request-method": "POST", "access-control-request-headers": "x"}
    async with gateway(nats, space, shop()) as (http, _):
        preflight = await http.options("/far", headers=asks)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert preflight.headers["access-control-allow-methods"] == "POST"
        assert preflight.headers["access-control-allow-headers"] == "x"
        for body, status in (({}, 200), ({"amount": "x"}, 422)):
            answer = await http.post("/far", json=body, headers=far)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert "origin" in answer.headers["vary"]
        foreign = await http.post("/far", json={}, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers
        evil = {**asks, "origin": "https://evil.example"}
        assert (await http.options("/far", headers=evil)).status_code == 405
        assert (await http.options("/paid", headers=asks)).status_code == 405
    monkeypatch.setenv("TRINE_HTTP_CORS", "*")
    async with gateway(nats, f"{space}b", shop()) as (http, _):
        answer = await http.post("/paid", json={"amount": 1}, headers=far)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert (await http.options("/fn/shop.order", headers=asks)).status_code == 204


async def test_a_repeated_idempotency_key_gets_the_first_reply(nats, space):
    app = App("once")
    runs: list[int] = []

    @app.function("once.count", keep_reply=60)
    async def count() -> int:
        runs.append(1)
        return len(runs)

    async with gateway(nats, space, app) as (http, _):
        key = {"idempotency-key": "k1"}
        assert (await http.post("/fn/once.count", headers=key)).json() == 1
        assert (await http.post("/fn/once.count", headers=key)).json() == 1
        assert (await http.post("/fn/once.count")).json() == 2


async def test_the_second_of_two_equal_routes_is_refused_and_shown(nats, space, capfd):
    app = App("twice")

    @app.on(Http("GET", "/same/{a}"))
    @app.function("twice.first")
    async def first(a: str) -> str:
        return f"first {a}"

    @app.on(Http("GET", "/same/{b}"))
    @app.on(Http("GET", "/healthz"))
    @app.function("twice.second")
    async def second(b: str = "") -> str:
        return "second"

    async with gateway(nats, space, app) as (http, _):
        assert (await http.get("/same/x")).json() == "first x"
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        listed = (await http.get("/routes")).json()["routes"]
        assert [one["function"] for one in listed if one.get("path") == "/same/{a}"] == [
            "twice.first"
        ]
        why = sorted(one["refused"] for one in listed if "refused" in one)
        assert why == [
            "GET /healthz belongs to the gateway itself",
            "GET /same/{b} belongs to twice.first",
        ]
        assert (await http.get("/readyz")).json()["refused"] == 2
        paths = (await http.get("/openapi.json")).json()["paths"]
        assert "/same/{b}" not in paths
    assert "route_refused" in capfd.readouterr().out


async def test_too_many_in_flight_are_refused_with_a_time_to_come_back(nats, space):
    app = App("busy")
    started, go = anyio.Event(), anyio.Event()

    @app.on(Http("GET", "/one", max_in_flight=1))
    @app.function("busy.one")
    async def one() -> str:
        started.set()
        await go.wait()
        return "done"

    async with gateway(nats, space, app) as (http, _), anyio.create_task_group() as tasks:
        answers = []

        async def ask() -> None:
            answers.append(await http.get("/one"))

        tasks.start_soon(ask)
        with anyio.fail_after(5):
            await started.wait()
        refused = await http.get("/one")
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert refused.headers["retry-after"] == "1"
        go.set()
        with anyio.fail_after(5):
            while not answers:
                await anyio.sleep(0.01)
        assert answers[0].json() == "done"
        assert (await http.get("/one")).json() == "done"


async def test_a_function_of_the_gateways_own_process_is_not_called_over_nats(nats, space):
    async with gateway(nats, space, shop()) as (http, system):
        sent = system.client.bus.connection.stats["out_msgs"]
        for _ in range(50):
            assert (await http.post("/fn/shop.order", json={"tag": "a"})).status_code == 200
        assert system.client.bus.connection.stats["out_msgs"] - sent < 25


async def test_head_is_get_without_a_body(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        answer = await http.head("/long?n=10")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == "12"


async def test_a_route_made_as_data_appears_and_goes(nats, space):
    async with gateway(nats, space, shop()) as (http, system):

        async def until(status: int) -> None:
            with anyio.fail_after(10):
                while (await http.get("/made?n=3")).status_code != status:
                    await anyio.sleep(0.02)

        config = {"method": "GET", "path": "/made", "timeout": 5}
        made = await system.client.call(
            "trigger.add", {"kind": "http", "config": config, "function": "shop.long"}
        )
        await until(200)
        assert (await http.get("/made?n=3")).json() == "xxx"
        await system.client.call("trigger.remove", {"id": made["binding"]["id"]})
        await until(404)


@pytest.mark.parametrize("key", [b"\xfc", b"a b.c>*", b"x" * 20_000, b"a\tb"])
async def test_any_idempotency_key_is_a_key(nats, space, key):
    async with gateway(nats, space, shop()) as (http, _):
        for _ in range(2):
            headers = {b"idempotency-key": key}
            answer = await http.post("/fn/shop.order", json={"tag": "a"}, headers=headers)
            assert answer.status_code < 500, answer.text


async def test_metrics_are_text_that_prometheus_reads(nats, space):
    async with gateway(nats, space, shop()) as (http, _):
        await http.post("/fn/shop.order", json={})
        answer = await http.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "# TYPE " in answer.text
