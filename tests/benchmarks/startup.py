"""From the command ``trine up`` to its first answered call."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.benchmarks.row import Row

GOAL_SECONDS = 1.5
ROUNDS = 5


def once() -> tuple[float, float]:
    """Return the seconds to the first answer, and the resident memory of the engine in MiB."""
    with tempfile.TemporaryDirectory() as store:
        started = time.perf_counter()
        command = [sys.executable, "-m", "trine", "up", "--json", "--port", "0", "--workers", "0"]
        with subprocess.Popen(
            [*command, "--store", store], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as program:
            assert program.stdout is not None
            url = json.loads(program.stdout.readline())["http"][0]
            request = urllib.request.Request(f"{url}/api/report/tags")
            with urllib.request.urlopen(request) as answer:
                assert json.load(answer) == {"tags": []}
            seconds = time.perf_counter() - started
            memory = 0.0
            with suppress(OSError):
                lines = Path(f"/proc/{program.pid}/status").read_text().splitlines()
                memory = next(int(x.split()[1]) / 1024 for x in lines if x.startswith("VmRSS"))
            program.terminate()
    return seconds, memory


def rows() -> list[Row]:
    rounds = [once() for _ in range(ROUNDS)]
    seconds = statistics.median(one[0] for one in rounds)
    memory = statistics.median(one[1] for one in rounds)
    return [
        Row(
            "trine up: command to first answered call",
            seconds,
            "s",
            None,
            None,
            f"<= {GOAL_SECONDS}",
            seconds <= GOAL_SECONDS,
        ),
        Row("idle engine, resident", memory, "MiB", None, None, "<= 120", memory <= 120),
    ]
