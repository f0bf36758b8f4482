"""``trine top`` on a running system: as a table, as JSON, and live on a terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from trine import App, Client, Context
from trine.errors import InternalError
from trine_triggers import Queue

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def busy(serve: Any) -> AsyncIterator[Client]:
    """Serve functions of which one has an end only when the test has."""
    app, over = App("busy"), anyio.Event()

    @app.function("busy.work")
    async def work(ok: bool = True) -> None:
        if not ok:
            raise ValueError("not ok")

    @app.function("busy.with_a_name_that_is_longer_than_a_line_of_the_table_is_wide")
    async def long() -> None: ...

    @app.on(Queue("chores"))
    @app.function("busy.chore")
    async def chore(ctx: Context) -> None:
        await over.wait()

    async with serve(app) as client:
        try:
            yield client
        finally:
            over.set()


async def test_one_reading_as_json_tells_rates_quantiles_and_queues(serve, trine):
    async with busy(serve) as client, anyio.create_task_group() as tasks:

        async def load() -> None:
            number = 0
            while True:
                number += 1
                with suppress(InternalError):
                    await client.call("busy.work", {"ok": number % 4 > 0})

        tasks.start_soon(load)
        for _ in range(3):
            await client.enqueue("chores")
        code, out, err = await trine.run("top", "--once", "--json", "--interval", "0.3")
        tasks.cancel_scope.cancel()
    assert code == 0, err
    said = json.loads(out)
    work = next(one for one in said["functions"] if one["function"] == "busy.work")
    assert said["functions"][0] == work  # the busiest
    assert work["rate"] > 1
    assert 0 < work["errors_rate"] < work["rate"]
    assert 0 < work["p50_seconds"] <= work["p99_seconds"]
    assert (work["workers"], said["workers"], said["dead_letters"]) == (1, 1, 0)
    queues = {one["queue"]: (one["waiting"], one["running"]) for one in said["queues"]}
    assert queues["chores"] == (2, 1)


async def test_the_table_fits_eighty_columns(serve, trine):
    async with busy(serve) as client:
        await client.enqueue("chores")
        await client.enqueue("chores")
        code, out, err = await trine.run("top", "--once", "--interval", "0.1", COLUMNS="80")
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "1 worker, 3 functions, 0 dead letters" in lines[0]
    assert lines[2].split() == ["FUNCTION", "RUNS/S", "P50", "P99", "ERR/S", "NOW", "WORKERS"]
    (row,) = [line for line in lines if line.startswith("busy.chore")]
    assert row.split() == ["busy.chore", "0", "-", "-", "0", "1", "1"]
    assert lines[-1].split() == ["chores", "1", "1"]


async def test_without_a_system_it_is_an_error(trine):
    trine.environment["TRINE_NATS"] = "nats://127.0.0.1:9"
    code, out, err = await trine.run("top", "--once")
    assert (code, out) == (1, "")
    assert "cannot reach NATS" in err


class Terminal:
    """A program on a terminal of 24 lines."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.program = subprocess.Popen(
            [sys.executable, "-m", "trine", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(slave)
        self.shown = b""

    def until(self, text: bytes, seconds: float = 20) -> None:
        limit = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0, limit - time.monotonic()))
            assert ready, self.shown
            try:
                self.shown += os.read(self._master, 65536)
            except OSError:  # the program has closed it
                assert text in self.shown, self.shown
                return

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self._master)


async def test_live_it_follows_until_ctrl_c_and_leaves_the_screen_as_it_was(serve, trine):
    async with busy(serve) as client:
        terminal = Terminal(trine.environment, "top", "--interval", "0.1")
        try:
            await anyio.to_thread.run_sync(terminal.until, b"busy.work")
            assert b"\x1b[?1049h" in terminal.shown  # a screen of its own
            await client.enqueue("chores")
            await anyio.to_thread.run_sync(terminal.until, b"chores")
            terminal.program.send_signal(signal.SIGINT)
            await anyio.to_thread.run_sync(terminal.until, b"\x1b[?1049l")
            code = await anyio.to_thread.run_sync(lambda: terminal.program.wait(10))
        finally:
            terminal.close()
    assert code == 0
    assert b"Traceback" not in terminal.shown
    assert terminal.shown.endswith(b"\x1b[?25h\x1b[?1049l")  # the cursor and the screen are back
