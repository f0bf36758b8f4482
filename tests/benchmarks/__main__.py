"""``python -m tests.benchmarks``: speed as ratios to a bare baseline of the same run.

Each row is the median over interleaved rounds: baseline, ours, baseline, ours. The machines are
shared and noisy, so a ratio counts and an absolute figure does not.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.benchmarks import calls, events, gateway, jobs, loop, peers, startup, thousand
from tests.benchmarks.row import Row

PARTS = {
    "startup": startup.rows,
    "calls": calls.rows,
    "jobs": jobs.rows,
    "http": gateway.rows,
    "events": events.rows,
    "thousand": thousand.rows,
    "peers": peers.rows,
    "loop": loop.rows,
}


def main() -> None:
    wanted = sys.argv[1:] or list(PARTS)
    rows: list[Row] = []
    for part in wanted:
        rows += PARTS[part]()
    Path("bench.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    table = Table("row", "value", "unit", "baseline", "ratio", "goal", "met")
    for row in rows:
        table.add_row(
            row.row,
            f"{row.value:.4g}",
            row.unit,
            "" if row.baseline is None else f"{row.baseline:.4g}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.goal,
            "yes" if row.met else "NO",
        )
    Console(width=120).print(table)


main()
