"""HTTP to a function and back as JSON, against the same handler on bare Starlette and uvicorn.

Debian and Ubuntu have the load generator as the package ``wrk``.
"""

import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
from tests.benchmarks.echo_model import of_size
from tests.benchmarks.row import Row

from trine.embedded import nats_server

ROUNDS = 5
SECONDS = 3
CONNECTIONS = 32
HERE = Path(__file__).parent


def wrk(url: str, script: Path) -> float:
    """Return requests a second; every reply must have been a 200."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    said = subprocess.run(
        [program, "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(script), url],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    found = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    if found is None or "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"wrk: {said}")
    return float(found[1])


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[str]:
    """Run one of the programs beside this file and give the first line that it says."""
    command = [sys.executable, str(HERE / arguments[0]), *arguments[1:]]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = next((line for line in process.stdout if line.startswith(("http", "ready"))), "")
            if not said:
                raise SystemExit(f"{' '.join(arguments)} ended")
            yield said.strip()
        finally:
            process.terminate()


def compare(url: str) -> list[Row]:
    """Return the rows: the function in the gateway's process, and in another one."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        script = Path(scratch) / "post.lua"
        body = of_size(200).model_dump_json()
        script.write_text(
            'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
            f"wrk.body = [[{body}]]\n"
        )
        bare = stack.enter_context(program("gateway_baseline.py"))
        here = stack.enter_context(program("gateway_server.py", "here", url))
        stack.enter_context(program("gateway_server.py", "worker", url))
        alone = stack.enter_context(program("gateway_server.py", "alone", url))
        rates: dict[str, list[float]] = {bare: [], here: [], alone: []}
        for one in rates:
            wrk(f"{one}/bench/echo", script)  # warm
        for _ in range(ROUNDS):
            for one, seen in rates.items():
                seen.append(wrk(f"{one}/bench/echo", script))
    base = statistics.median(rates[bare])
    found = []
    for name, one, goal in (
        ("HTTP -> function in the gateway's process", here, 0.8),
        ("HTTP -> function in another process", alone, 0.5),
    ):
        rate = statistics.median(rates[one])
        ratio = rate / base
        title = f"{name}, {CONNECTIONS} connections"
        found.append(Row(title, rate, "requests/s", base, ratio, f">= {goal} x", ratio >= goal))
    return found


def rows() -> list[Row]:
    found: list[Row] = []

    def run(url: str) -> None:
        found.extend(compare(url))

    with_server(run)
    return found


def with_server(run: Callable[[str], None]) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as store:
            async with nats_server(Path(store), "fast") as url:
                await anyio.to_thread.run_sync(run, url)

    anyio.run(main)
