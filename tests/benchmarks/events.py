"""Events to eight functions, and changed keys to one, against bare JetStream consumers."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.calls import with_embedded
from tests.benchmarks.row import Row

ROUNDS = 5
PROGRAM = Path(__file__).with_name("event_programs.py")


def measure(kind: str, url: str) -> float:
    said = subprocess.run(
        [sys.executable, str(PROGRAM), kind, url], check=True, stdout=subprocess.PIPE
    )
    return float(json.loads(said.stdout.splitlines()[-1])["value"])  # the log comes before


def rows() -> list[Row]:
    found: list[Row] = []

    def run(url: str) -> None:
        bare, ours = [], []
        for _ in range(ROUNDS):
            bare.append(measure("bare-fanout", url))
            ours.append(measure("trine-fanout", url))
        base, value = statistics.median(bare), statistics.median(ours)
        ratio = value / base
        name = "event fan-out to 8 functions"
        found.append(Row(name, value, "runs/s", base, ratio, ">= 0.5 x", ratio >= 0.5))
        for kind, name in (
            ("key", "key change to function, p50"),
            ("key-durable", "the same, changes=True, p50"),
        ):
            took = statistics.median(measure(kind, url) for _ in range(ROUNDS)) * 1000
            found.append(Row(name, took, "ms", None, None, "<= 3 ms", took <= 3))

    with_embedded(run)
    return found
