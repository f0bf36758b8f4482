"""The command line, as programs."""

import json
import signal
import time

import anyio
import pytest

pytestmark = pytest.mark.anyio

SHOP = """
import anyio
from collections.abc import AsyncIterator
from trine import App, Context
from trine.errors import ConflictError
from trine_triggers import Cron

app = App("shop")

@app.on(Cron("0 0 4 * * *"))
@app.function("shop.tidy")
async def tidy() -> None:
    '''Tidy up.'''

@app.function("shop.order")
async def order(n: int, note: str = "") -> dict:
    '''Take an order.'''
    if n < 0:
        raise ConflictError("no such\\nthing", n=n)
    return {"n": n, "note": note}

@app.function("shop.slow")
async def slow() -> None:
    await anyio.sleep(60)

@app.function("shop.count")
async def count(to: int) -> AsyncIterator[int]:
    for n in range(to):
        yield n
"""


async def test_call_prints_the_output_and_exits_by_the_kind_of_error(trine):
    async with trine.serve(SHOP), anyio.create_task_group() as tasks:

        async def expect(*arguments: str, code: int, out=None, err: str = "", **options) -> None:
            ended, stdout, stderr = await trine.run(*arguments, **options)
            assert ended == code, (arguments, stdout, stderr)
            if out is not None:
                assert [json.loads(line) for line in stdout.splitlines()] == out
            assert err in stderr
            if code:
                assert stdout == ""
                assert len(stderr.splitlines()) == 1 or "Usage:" in stderr

        async def group(*cases) -> None:
            for arguments, options in cases:
                await expect(*arguments, **options)

        ordered = [{"n": 2, "note": "x"}]
        tasks.start_soon(
            group,
            (("call", "shop.order", "n=2", "note=x"), {"code": 0, "out": ordered}),
            (("call", "shop.order", '{"n":2,"note":"x"}'), {"code": 0, "out": ordered}),
            (
                ("call", "shop::order", "-"),
                {"code": 0, "out": ordered, "stdin": b'{"n":2,"note":"x"}'},
            ),
            (("call", "shop.count", "to=3", "--stream"), {"code": 0, "out": [0, 1, 2]}),
            (("call", "shop.order", "n=-1"), {"code": 1, "err": "no such thing (conflict)"}),
        )
        tasks.start_soon(
            group,
            (("call", "shop.order", "n=x"), {"code": 1, "err": "(invalid_input)"}),
            (("call", "shop.order", "{"), {"code": 1, "err": "not JSON"}),
            (("call", "shop.order", "noequals"), {"code": 2, "err": "key=value"}),
            (("call", "SHOP"), {"code": 2, "err": "(usage)"}),
            (("call", "shop.ordr"), {"code": 3, "err": "did you mean 'shop.order'"}),
            (("call", "shop.slow", "--timeout", "0.2"), {"code": 4, "err": "(deadline_exceeded)"}),
        )


async def test_a_sent_job_is_named_and_listed(trine, serve):
    async with serve() as client:
        code, out, _ = await trine.run("call", "shop.later", "n=1", "--send")
        assert code == 0
        assert out.strip()
        code, listed, _ = await trine.run("ls", "jobs", "--json")
        assert json.loads(listed) == [{"queue": "fn-shop-later", "requirement": "any", "jobs": 1}]
        assert client.job(out.strip()).ref == out.strip()


async def test_ls_shows_what_is_there(trine):
    async with trine.serve(SHOP):
        code, out, _ = await trine.run("ls", "--json")
        functions = {row["id"]: row for row in json.loads(out)}
        assert code == 0
        assert functions["shop.order"]["doc"] == "Take an order."
        assert functions["shop.order"]["input_schema"]["required"] == ["n"]
        code, out, _ = await trine.run("ls")
        assert "shop.order" in out
        assert "Take an order." in out
        code, out, _ = await trine.run("ls", "triggers", "--json")
        [row] = json.loads(out)
        assert (row["kind"], row["function"]) == ("cron", "shop.tidy")
        code, out, _ = await trine.run("ls", "workers", "--json")
        [row] = json.loads(out)
        assert row["apps"] == "shop"


async def test_state_is_set_read_listed_followed_and_removed(trine, serve):
    async with serve():
        assert (await trine.run("state", "set", "best", "mar.a", '{"v": 1}'))[0] == 0
        assert (await trine.run("state", "set", "best", "mar.b", "2"))[0] == 0
        code, out, _ = await trine.run("state", "get", "best", "mar.a")
        assert (code, json.loads(out)) == (0, {"v": 1})
        code, out, _ = await trine.run("state", "ls", "best", "mar", "--json")
        assert json.loads(out) == {"mar.a": {"v": 1}, "mar.b": 2}
        code, out, _ = await trine.run("state", "ls", "best")
        assert out.splitlines() == ['mar.a\t{"v": 1}', "mar.b\t2"]
        async with trine.start("state", "watch", "best", "--json") as watch:
            assert (await watch.line())["key"] == "mar.a"
            assert (await watch.line())["value"] == 2
            assert (await trine.run("state", "rm", "best", "mar.a"))[0] == 0
            gone = await watch.line()
            assert (gone["key"], gone["value"]) == ("mar.a", None)
            watch.signal(signal.SIGINT)
            assert await watch.wait() == 130
        code, _, err = await trine.run("state", "get", "best", "mar.a")
        assert code == 3
        assert "(key_missing)" in err
        code, _, err = await trine.run("state", "set", "best", "k", "{")
        assert code == 1
        assert "not JSON" in err
        code, _, err = await trine.run("state", "set", "best", "a b", "1")
        assert code == 2


async def test_an_unreachable_server_is_one_line_and_soon(trine):
    started = time.monotonic()
    code, out, err = await trine.run("ls", "--nats", "nats://127.0.0.1:1")
    assert time.monotonic() - started < 6
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    assert "127.0.0.1:1" in line
    assert "(unavailable)" in line


async def test_no_system_at_all_says_how_to_get_one(trine):
    del trine.environment["TRINE_NATS"]
    code, _, err = await trine.run("ls")
    assert code == 1
    assert "trine up" in err


async def test_an_unknown_setting_is_refused(trine):
    code, _, err = await trine.run("ls", TRINE_NAMESPCE="x")
    assert code == 2
    assert "namespce" in err
    assert "TRINE_NAMESPACE" in err


async def test_doctor_reports_each_check(trine):
    code, out, _ = await trine.run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 1, "nobody serves functions"
    assert checks["server"]["ok"]
    assert checks["python"]["ok"]
    assert not checks["system"]["ok"]
    assert "trine serve" in checks["system"]["do"]
    async with trine.serve(SHOP):
        code, out, _ = await trine.run("doctor", "--json")
        assert code == 0, out


async def test_serve_drains_on_sigterm(trine, serve):
    async with serve() as client, trine.serve(SHOP) as program:
        await client.call("shop.order", {"n": 1})
        program.signal(signal.SIGTERM)
        assert await program.wait() == 0


async def test_serving_what_is_not_an_app_is_a_usage_error(trine):
    code, _, err = await trine.run("serve", "no_such_module:app")
    assert code == 2
    assert "no_such_module" in err


async def test_help_names_every_command(trine):
    code, out, _ = await trine.run("--help")
    assert code == 0
    for command in ("up", "serve", "call", "ls", "state", "doctor"):
        assert f"  {command} " in out
