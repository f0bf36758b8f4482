"""FastStream, taskiq and nats-py's micro beside Trine: calls, and durable jobs.

Each measurement has a serving process and a caller process of its own; the server is one for all.
Every row is a ratio to the rate of bare nats-py requests of the same run, and sets no goal.
"""

import importlib.util
import json
import select
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.calls import with_embedded
from tests.benchmarks.row import Row

from trine.embedded import die_with_parent

ROUNDS = 5
SECONDS = 2.0
JOBS = 2_000
LIMIT_SECONDS = 60.0  # for a step of a program: more is a hang
NEEDED = ("faststream.nats", "taskiq", "taskiq_nats")
CALLS = {
    "bare": "nats-py request, bytes",
    "trine": "Trine call",
    "micro": "nats.micro request",
    "faststream": "FastStream request",
    "taskiq": "taskiq kiq + wait_result",
}
SENDS = {
    "trine": "Trine send",
    "faststream": "FastStream JetStream pull",
    "taskiq": "taskiq JetStream pull",
}


def rows() -> list[Row]:
    """Measure all of them; nothing that was started is left behind.

    Raises `SystemExit` when a peer is not installed, and `RuntimeError` or `SubprocessError` when
    one fails or hangs: its traceback is on stderr.
    """
    need_peers()
    calls: dict[str, list[float]] = {kind: [] for kind in CALLS}
    sends: dict[str, list[float]] = {kind: [] for kind in SENDS}

    def run(url: str) -> None:
        for number in range(ROUNDS):
            for kind, rates in calls.items():
                rates.append(call_rate(kind, url, f"calls-{kind}-{number}"))
            for kind, rates in sends.items():
                rates.append(job_rate(kind, url, f"jobs-{kind}-{number}"))

    with_embedded(run)
    bare = statistics.median(calls["bare"])

    def row(name: str, rates: list[float], unit: str) -> Row:
        value = statistics.median(rates)
        return Row(name, value, unit, bare, value / bare, "", met=True)

    return [row(f"call, 64 in flight: {CALLS[k]}", v, "calls/s") for k, v in calls.items()] + [
        row(f"job, enqueue to run: {SENDS[k]}", v, "jobs/s") for k, v in sends.items()
    ]


def need_peers() -> None:
    """Raise `SystemExit` with the command that installs what is missing."""
    missing = [name for name in NEEDED if not installed(name)]
    if missing:
        raise SystemExit(
            f"{', '.join(missing)} not installed: the benchmark compares with the peers themselves."
            f" Run: {sys.executable} -m pip install --group bench"
        )


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is not there
        return False


def call_rate(kind: str, url: str, space: str) -> float:
    """Return the calls a second that a fresh caller made of a fresh serving process."""
    with serving(kind, url, space, 0):
        rate: float = ended(kind, "call", url, space, str(SECONDS))["rate"]
        return rate


def job_rate(kind: str, url: str, space: str) -> float:
    """Return jobs a second from the first enqueue to the last run; each of them has run."""
    with serving(kind, url, space, JOBS) as server:
        first = ended(kind, "send", url, space, str(JOBS))["first"]
        last = heard(kind, server)["last"]
        rate: float = JOBS / (last - first)
        return rate


@contextmanager
def serving(kind: str, url: str, space: str, jobs: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the peer's serving process; it is gone afterwards, whatever happened in between."""
    server = subprocess.Popen(
        [*program(kind), "serve", url, space, str(jobs)],
        stdin=subprocess.PIPE,  # its end tells the process to stop, also when we are killed
        stdout=subprocess.PIPE,
        bufsize=0,  # select() knows nothing of lines that were read ahead
    )
    try:
        heard(kind, server)
        yield server
        assert server.stdin is not None
        server.stdin.close()
        if status := server.wait(LIMIT_SECONDS):
            raise RuntimeError(f"{kind}: the serving process ended with status {status}")
    finally:
        server.kill()
        server.wait()


def heard(kind: str, server: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Return the next line that the serving process says."""
    assert server.stdout is not None
    ready, _, _ = select.select([server.stdout], [], [], LIMIT_SECONDS)
    if not ready:
        raise RuntimeError(f"{kind}: the serving process said nothing for {LIMIT_SECONDS:.0f} s")
    line = server.stdout.readline()
    if not line:
        status = server.wait(LIMIT_SECONDS)
        raise RuntimeError(f"{kind}: the serving process ended with status {status}")
    said: dict[str, Any] = json.loads(line)
    return said


def ended(kind: str, *arguments: str) -> dict[str, Any]:
    """Run the peer's caller process to its end and return what it said."""
    said = subprocess.run(
        [*program(kind), *arguments],
        stdout=subprocess.PIPE,
        timeout=LIMIT_SECONDS,
        check=True,
        preexec_fn=die_with_parent,
    )
    result: dict[str, Any] = json.loads(said.stdout)
    return result


def program(kind: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name(f"peer_{kind}.py"))]
