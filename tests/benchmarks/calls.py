"""Typed calls against a bare nats-py request echo: one server, one serving process, one caller."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio
from tests.benchmarks.row import Row

from trine.embedded import nats_server

ROUNDS = 5
SECONDS = 2.0
SERVER = Path(__file__).with_name("echo_server.py")
CALLER = Path(__file__).with_name("echo_caller.py")


def measure(kind: str, url: str, in_flight: int, size: int) -> dict[str, float]:
    """Return ``rate`` (calls a second) and ``p50`` (seconds) as a fresh caller process saw them."""
    arguments = [kind, url, str(in_flight), str(size), str(SECONDS)]
    said = subprocess.run(
        [sys.executable, str(CALLER), *arguments], check=True, stdout=subprocess.PIPE
    )
    measured: dict[str, float] = json.loads(said.stdout)
    return measured


def compare(url: str, in_flight: int, size: int) -> tuple[list[float], list[float]]:
    """Return (bare, ours) of the interleaved rounds: rates, or for one in flight the p50s."""
    key = "rate" if in_flight > 1 else "p50"
    bare, ours = [], []
    for _ in range(ROUNDS):
        bare.append(measure("bare", url, in_flight, size)[key])
        ours.append(measure("trine", url, in_flight, size)[key])
    return bare, ours


def rows() -> list[Row]:
    found = []

    def run(url: str) -> None:
        for size in (100, 4096):
            bare, ours = map(statistics.median, compare(url, 64, size))
            ratio = ours / bare
            name = f"typed call, 64 in flight, {size} B"
            found.append(Row(name, ours, "calls/s", bare, ratio, ">= 1.0 x", ratio >= 1.0))
        bare, ours = map(statistics.median, compare(url, 1, 100))
        ratio = ours / bare
        name = "typed call, 1 in flight, p50"
        found.append(Row(name, ours * 1e6, "us", bare * 1e6, ratio, "<= 1.25 x", ratio <= 1.25))

    with_server(run)
    return found


def with_server(run: Callable[[str], None]) -> None:
    """Run a server and one process that answers both kinds of call."""

    def serving(url: str) -> None:
        server = subprocess.Popen([sys.executable, str(SERVER), url], stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            server.stdout.readline()
            run(url)
        finally:
            server.terminate()
            server.wait()

    with_embedded(serving)


def with_embedded(run: Callable[[str], None]) -> None:
    """Run a NATS server of its own, and *run* with its URL."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as store:
            async with nats_server(Path(store), "fast") as url:
                await anyio.to_thread.run_sync(run, url)

    anyio.run(main)
