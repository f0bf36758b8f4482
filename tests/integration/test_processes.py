"""``trine serve --processes``: real processes, really killed."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from trine import Client
from trine.catalogue import workers
from trine.errors import DeadlineError, TrineError, UnavailableError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

# A handler that keeps a processor busy, in the event loop, until the other one is busy as well:
# it ends only if two processes run it at the same time.
APP = """
import os
import time
from pathlib import Path

from trine import App

app = App("busy")


@app.function("busy.pid")
async def pid() -> int:
    return os.getpid()


@app.function("busy.meet")
async def meet(place: str, number: int) -> int:
    Path(place, str(number)).touch()
    limit = time.monotonic() + 20
    while not Path(place, str(1 - number)).exists():
        assert time.monotonic() < limit, "the other call does not run beside this one"
    return os.getpid()


@app.function("busy.wait")
async def wait(place: str) -> str:
    import anyio
    Path(place, "began").touch()
    while not Path(place, "go").exists():
        await anyio.sleep(0.01)
    return "answered"
"""


@pytest.fixture
def app(tmp_path) -> str:
    (tmp_path / "busy.py").write_text(APP)
    return "busy.py:app"


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and is not collected yet does not."""
    try:
        with Path(f"/proc/{pid}/stat").open() as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def ended(pids: list[int], seconds: float = 15) -> None:
    with anyio.fail_after(seconds):
        while any(alive(pid) for pid in pids):
            await anyio.sleep(0.02)


async def pids(client: Client, count: int, seconds: float = 30) -> list[int]:
    """Return the processes that serve, once there are *count* of them."""
    with anyio.fail_after(seconds):
        while True:
            found = [info.pid for info in await workers(client.bus) if alive(info.pid)]
            if len(found) == count:
                return found
            await anyio.sleep(0.02)


async def test_two_calls_that_keep_a_processor_busy_run_in_two_processes(
    trine, nats, space, app, tmp_path
):
    async with (
        trine.start("serve", app, "--processes", "2", "--json") as parent,
        Client.connect(nats, namespace=space) as client,
    ):
        said = await parent.line(40)
        assert len(set(said["workers"])) == 2
        assert said["functions"] == ["busy.meet", "busy.pid", "busy.wait"]
        served = await pids(client, 2)
        assert parent.process.pid not in served
        assert sorted(info.id for info in await workers(client.bus)) == sorted(said["workers"])
        first, second = said["workers"]
        met = await asyncio.gather(
            client.call("busy.meet", {"place": str(tmp_path), "number": 0}, worker=first),
            client.call("busy.meet", {"place": str(tmp_path), "number": 1}, worker=second),
        )
        assert sorted(met) == sorted(served)


async def test_a_process_that_is_killed_is_replaced_and_the_other_goes_on(trine, nats, space, app):
    async with (
        trine.start("serve", app, "--processes", "2", "--json") as parent,
        Client.connect(nats, namespace=space) as client,
    ):
        await parent.line(40)
        killed, kept = await pids(client, 2)
        os.kill(killed, signal.SIGKILL)
        await ended([killed])
        with anyio.fail_after(20):
            while True:
                with suppress(DeadlineError, UnavailableError):  # not noticed yet: repeat it
                    assert await client.call("busy.pid", timeout=2) != killed
                    break
        now = await pids(client, 2)
        assert kept in now
        assert killed not in now


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_the_parent_lets_the_processes_end_what_runs(
    trine, nats, space, app, tmp_path, number
):
    async with (
        trine.start("serve", app, "--processes", "2", "--json") as parent,
        Client.connect(nats, namespace=space) as client,
    ):
        await parent.line(40)
        served = await pids(client, 2)
        answer: list[str] = []

        async def call() -> None:
            answer.append(await client.call("busy.wait", {"place": str(tmp_path)}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            with anyio.fail_after(10):
                while not (tmp_path / "began").exists():
                    await anyio.sleep(0.01)
            parent.signal(number)
            with anyio.fail_after(10):  # no new work is taken
                while True:
                    try:
                        await client.call("busy.pid", timeout=1)
                    except TrineError:
                        break
            (tmp_path / "go").touch()
        assert answer == ["answered"]
        assert await parent.wait() == 0
        await ended(served)


async def test_no_process_is_left_when_the_parent_is_killed(trine, nats, space, app):
    async with (
        trine.start("serve", app, "--processes", "3", "--json") as parent,
        Client.connect(nats, namespace=space) as client,
    ):
        await parent.line(40)
        served = await pids(client, 3)
        try:
            parent.signal(signal.SIGKILL)
            await parent.wait()
            await ended(served)
        finally:
            for pid in served:  # of our own, if the test fails
                if alive(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


async def test_what_is_wrong_at_the_start_is_said_once(trine, tmp_path):
    (tmp_path / "broken.py").write_text("app = 3\n")
    status, out, err = await trine.run("serve", "broken.py:app", "--processes", "3")
    assert (status, out) == (2, "")
    assert err.count("is not an App") == 1
    status, _, err = await trine.run("serve", "broken.py:app", "--processes", "0")
    assert (status, "--processes" in err) == (2, True)
