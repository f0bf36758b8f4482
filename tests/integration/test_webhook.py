"""Webhooks: nothing runs unless the sender knows the secret."""

import hashlib
import hmac
import json
import time

import pytest
from gateways import gateway
from pydantic import BaseModel

from trine import App
from trine.catalogue import directory
from trine.errors import UnauthorizedError
from trine_triggers import Webhook
from trine_triggers.webhook import sign

pytestmark = pytest.mark.anyio
SECRET = "a secret that is in no catalogue"
BODY = b'{"action": "opened",  "number": 7}'


class Hook(BaseModel):
    action: str
    number: int
    event: str = ""


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)


def hooks(runs: list[Hook]) -> App:
    app = App("hooks")

    @app.on(Webhook("/hooks/own", secret_env="HOOK_SECRET", tolerance=60))
    @app.on(
        Webhook(
            "/hooks/github",
            secret_env="HOOK_SECRET",
            scheme="github",
            headers={"X-GitHub-Event": "event"},
        )
    )
    @app.on(Webhook("/hooks/unset", secret_env="NO_SUCH_SECRET"))
    @app.function("hooks.take")
    async def take(hook: Hook) -> str:
        runs.append(hook)
        return hook.action

    return app


def github(body: bytes, secret: str = SECRET) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"x-hub-signature-256": f"sha256={digest}", "x-github-event": "issues"}


async def test_a_request_signed_as_github_does_runs_the_function(nats, space):
    runs: list[Hook] = []
    async with gateway(nats, space, hooks(runs)) as (http, _):
        answer = await http.post("/hooks/github", content=BODY, headers=github(BODY))
        assert (answer.status_code, answer.json()) == (200, "opened")
        assert runs == [Hook(action="opened", number=7, event="issues")]


async def test_a_signature_with_a_time_is_accepted_once_by_all_gateways_together(nats, space):
    runs: list[Hook] = []
    signed = {"trine-signature": sign(SECRET, BODY)}
    async with gateway(nats, space, hooks(runs)) as (http, _):
        assert (await http.post("/hooks/own", content=BODY, headers=signed)).status_code == 200
        again = await http.post("/hooks/own", content=BODY, headers=signed)
        assert (again.status_code, again.json()["code"]) == (401, "unauthorized")
        async with gateway(nats, space) as (other, _):
            again = await other.post("/hooks/own", content=BODY, headers=signed)
            assert again.status_code == 401
    assert len(runs) == 1


async def test_what_is_not_signed_rightly_is_a_401_and_runs_nothing(nats, space):
    runs: list[Hook] = []
    now = int(time.time())
    good = sign(SECRET, BODY).rpartition("=")[2]
    async with gateway(nats, space, hooks(runs)) as (http, _):
        for signature in (
            None,
            "",
            "t=1,v1=",
            f"t={now},v1={'0' * 64}",
            f"t={now + 1},v1={good}",  # of another time
            sign("another secret", BODY),
            sign(SECRET, BODY + b" "),
            sign(SECRET, BODY, at=now - 120),
            sign(SECRET, BODY, at=now + 120),
            "t=" + "9" * 400 + ",v1=" + "0" * 64,
            "ü",
        ):
            headers = {} if signature is None else {"trine-signature": signature.encode()}
            answer = await http.post("/hooks/own", content=BODY, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), signature
            assert answer.headers["www-authenticate"]
        for headers in ({}, github(BODY + b" "), github(BODY, "another secret")):
            answer = await http.post("/hooks/github", content=BODY, headers=headers)
            assert answer.status_code == 401
        for kind in ("multipart/form-data; boundary=b", "application/x-www-form-urlencoded"):
            answer = await http.post("/hooks/own", content=BODY, headers={"content-type": kind})
            assert answer.status_code == 401
    assert runs == []


async def test_without_its_secret_a_gateway_accepts_nothing(nats, space):
    runs: list[Hook] = []
    async with gateway(nats, space, hooks(runs)) as (http, _):
        signed = {"trine-signature": sign("", BODY)}
        answer = await http.post("/hooks/unset", content=BODY, headers=signed)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "NO_SUCH_SECRET" in answer.json()["message"]
    assert runs == []


async def test_the_secret_is_in_no_catalogue_and_the_route_is_described(nats, space):
    async with gateway(nats, space, hooks([])) as (http, system):
        seen = json.dumps(
            [one.model_dump() for one in (await directory.functions(system.client.bus)).values()]
        )
        assert "HOOK_SECRET" in seen
        assert SECRET not in seen
        assert SECRET not in (await http.get("/routes")).text
        assert "/hooks/own" in (await http.get("/openapi.json")).json()["paths"]
        assert (await http.get("/hooks/own")).status_code == 405


def test_an_unauthorized_error_is_a_401():
    assert UnauthorizedError("x").status == 401
