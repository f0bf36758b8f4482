"""Durable jobs against a bare nats-py request echo, at each way of syncing to disk."""

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
from trine.settings import Durability

ROUNDS = 5
SECONDS = 1.5
PROGRAM = Path(__file__).with_name("job_program.py")


def measure(role: str, url: str) -> dict[str, float]:
    """Return what a fresh caller process measured."""
    said = subprocess.run(
        [sys.executable, str(PROGRAM), role, url, str(SECONDS)], check=True, stdout=subprocess.PIPE
    )
    measured: dict[str, float] = json.loads(said.stdout)
    return measured


def rows() -> list[Row]:
    found: list[Row] = []

    def rates(durability: str, url: str) -> None:
        kept = {role: [] for role in ("bare", "jobs", "results")}  # type: dict[str, list[float]]
        for _ in range(ROUNDS):
            for role, values in kept.items():
                values.append(measure(role, url)["rate"])
        bare = statistics.median(kept["bare"])
        for role, what in (("jobs", "keep=0"), ("results", "result kept")):
            ours = statistics.median(kept[role])
            ratio = ours / bare
            goal, met = (">= 0.5 x", ratio >= 0.5) if durability == "fast" else ("-", True)
            name = f"job, enqueue to ack, {what}, sync {durability}"
            found.append(Row(name, ours, "jobs/s", bare, ratio, goal, met))

    def idle(_: str, url: str) -> None:
        bare, ours = [], []
        for _ in range(ROUNDS):
            bare.append(measure("bare-1", url)["p50"])
            ours.append(measure("latency", url)["p50"])
        one, other = statistics.median(bare), statistics.median(ours)
        ratio = other / one
        name = "idle job, enqueue to start, p50"
        found.append(Row(name, other * 1e6, "us", one * 1e6, ratio, "<= 3 x", ratio <= 3))

    with_server("fast", rates)
    with_server("fast", idle)
    with_server("100ms", rates)
    with_server("always", rates)
    return found


def with_server(durability: Durability, run: Callable[[str, str], None]) -> None:
    """Run a server and one process that works, and measure against them."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as store:
            async with nats_server(Path(store), durability) as url:
                worker = subprocess.Popen(
                    [sys.executable, str(PROGRAM), "serve", url, "0"], stdout=subprocess.PIPE
                )
                try:
                    assert worker.stdout is not None
                    worker.stdout.readline()
                    await anyio.to_thread.run_sync(run, durability, url)
                finally:
                    worker.terminate()
                    worker.wait()

    anyio.run(main)
