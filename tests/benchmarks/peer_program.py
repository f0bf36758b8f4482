"""What the program of every peer does: serve, call, or send jobs, and say what it saw.

``peer_NAME.py serve|call|send URL SPACE AMOUNT``: JOBS for ``serve`` and ``send``, seconds for
``call``. *SPACE* keeps one measurement's streams apart from those of the others. Each line of the
output is JSON; whatever goes wrong ends the program with a traceback and a status that is not 0.
"""

import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import anyio
import anyio.to_thread

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo, of_size

IN_FLIGHT = 64
SIZE = 100
WARM_UP = 128  # calls

# What a framework prints goes to stderr: the lines on stdout are ours alone.
report = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

Call = Callable[[Echo], Awaitable[Echo | bytes]]
Send = Callable[[Echo], Awaitable[object]]


class Ledger:
    """Says when each of *jobs* has run; they are numbered from 0."""

    def __init__(self, jobs: int) -> None:
        self._missing = set(range(jobs))

    def ran(self, value: Echo) -> None:
        """Tell of a run; called by the peer's job handler."""
        if value.id in self._missing:
            self._missing.remove(value.id)
            if not self._missing:
                say(last=time.monotonic())


@dataclass(frozen=True)
class Peer:
    """How one peer does it: each opens with the URL and the space, ready when entered."""

    serve: Callable[[str, str, Ledger], AbstractAsyncContextManager[None]]
    call: Callable[[str, str], AbstractAsyncContextManager[Call]]
    send: Callable[[str, str], AbstractAsyncContextManager[Send]] | None = None
    most_calls: int = sys.maxsize  # what the peer survives in one measurement


def say(**values: object) -> None:
    print(json.dumps(values), file=report, flush=True)


async def serve(peer: Peer, url: str, space: str, jobs: int) -> None:
    """Serve until standard input ends, which it also does when the benchmark dies."""
    async with peer.serve(url, space, Ledger(jobs)):
        say(ready=True)
        await anyio.to_thread.run_sync(sys.stdin.buffer.read)


async def call(peer: Peer, url: str, space: str, seconds: float) -> None:
    """Say the rate of calls with `IN_FLIGHT` under way, until *seconds* or the most calls."""
    value = of_size(SIZE)
    calls = 0
    async with peer.call(url, space) as one:

        async def until(end: float, most: int) -> None:
            nonlocal calls
            while time.perf_counter() < end and calls < most:
                calls += 1
                await one(value)

        async def load(end: float, most: int) -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(IN_FLIGHT):
                    tasks.start_soon(until, end, most)

        answer = await one(value)
        answered = answer if isinstance(answer, Echo) else Echo.model_validate_json(answer)
        assert answered == value, answered
        await load(time.perf_counter() + 10, WARM_UP)
        before, started = calls, time.perf_counter()
        await load(started + seconds, peer.most_calls)
        took = time.perf_counter() - started
        say(calls=calls - before, rate=(calls - before) / took)


async def send(peer: Peer, url: str, space: str, jobs: int) -> None:
    """Send *jobs*, each with a number of its own, `IN_FLIGHT` at a time; say when it began."""
    assert peer.send is not None
    value = of_size(SIZE)
    numbers = iter(range(jobs))
    async with peer.send(url, space) as one:

        async def some() -> None:
            for number in numbers:
                await one(value.model_copy(update={"id": number}))

        first = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.start_soon(some)
        say(first=first)


def main(peer: Peer) -> None:
    """Do what the command line says, on uvloop."""
    role, url, space, amount = sys.argv[1:]

    async def run() -> None:
        if role == "serve":
            await serve(peer, url, space, int(amount))
        elif role == "call":
            await call(peer, url, space, float(amount))
        elif role == "send":
            await send(peer, url, space, int(amount))
        else:
            raise SystemExit(f"no such role: {role}")

    anyio.run(run, backend_options={"use_uvloop": True})
