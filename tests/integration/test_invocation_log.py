"""One line for each invocation, where somebody wants to see it."""

import json
import subprocess
import sys
from contextlib import suppress

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from structlog.testing import capture_logs

from trine import App, Client, Context, Retry
from trine.errors import ConflictError
from trine.middleware.logging import logging
from trine.middleware.tracing import tracing

pytestmark = pytest.mark.anyio

SOURCE = """
from trine import App, Context
app = App("tale")

@app.function("tale.tell")
async def tell(ctx: Context) -> str:
    return ctx.id
"""
TRACE = "c" * 32
HEAD = {"traceparent": f"00-{TRACE}-{'d' * 16}-01"}


async def test_a_line_names_what_ran_why_how_long_and_how_it_ended(serve):
    app = App("tale", middleware=[tracing(), logging])

    @app.function("tale.tell")
    async def tell(ctx: Context) -> None:
        await ctx.send("tale.write")

    @app.function("tale.fail")
    async def fail() -> None:
        raise ConflictError("twice\nthe same")

    @app.function("tale.write", retry=Retry(2, delay_seconds=0.02))
    async def write(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError("no ink")

    async with serve(app) as client:
        with capture_logs() as lines:
            await client.call_bytes("tale.tell", b"", headers=HEAD)
            with pytest.raises(ConflictError):
                await client.call("tale.fail")
            job = await client.send("tale.write")
            await job.result()
            with anyio.fail_after(10):
                while sum(line["event"] == "invocation_ended" for line in lines) < 6:
                    await anyio.sleep(0.01)
    told = [line for line in lines if line["event"] == "invocation_ended"]
    (first,) = [line for line in told if line["function"] == "tale.tell"]
    assert (first["outcome"], first["trigger"], first["attempt"]) == ("ok", "call", 1)
    assert first["trace"] == TRACE
    assert first["milliseconds"] > 0
    assert first["invocation"]
    assert first["log_level"] == "info"
    (failed,) = [line for line in told if line["function"] == "tale.fail"]
    assert (failed["outcome"], failed["log_level"]) == ("conflict", "warning")
    assert "trace" not in failed
    written = [line for line in told if line["function"] == "tale.write"]
    assert sorted((line["attempt"], line["outcome"]) for line in written) == [
        (1, "internal"), (1, "internal"), (2, "ok"), (2, "ok"),
    ]  # fmt: skip
    assert {line["trigger"] for line in written} == {"job"}
    assert TRACE in {line["trace"] for line in written}
    assert len({line["trace"] for line in written}) == 2


@pytest.mark.parametrize("level", ["info", "warning"])
async def test_trine_serve_tells_them_at_info_and_not_above(trine, nats, space, level):
    file = trine.directory / "tale.py"
    await anyio.Path(file).write_text(SOURCE)
    process = await anyio.open_process(
        [sys.executable, "-m", "trine", "serve", f"{file}:app", "--log-level", level],
        env=trine.environment,
        stdin=subprocess.DEVNULL,
    )
    async with process, Client.connect(nats, namespace=space) as client:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            with anyio.fail_after(20):
                said = await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 1000)
                assert said == b"serving tale.tell"
                invocation = await client.call("tale.tell")
                process.terminate()
                heard = b"".join([chunk async for chunk in process.stderr])
                await process.wait()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
    lines = [json.loads(line) for line in heard.splitlines()]
    told = [line for line in lines if line["event"] == "invocation_ended"]
    if level == "warning":
        assert told == []
    else:
        (line,) = told
        assert (line["function"], line["outcome"]) == ("tale.tell", "ok")
        assert line["invocation"] == invocation


async def test_a_bare_worker_tells_nothing(serve):
    app = App("quiet")

    @app.function("quiet.one")
    async def one() -> None: ...

    with capture_logs() as lines:
        async with serve(app) as client:
            await client.call("quiet.one")
    assert [line for line in lines if line["event"] == "invocation_ended"] == []
