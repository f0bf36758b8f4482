"""How much of the time between the first and the last experiment the workers are busy."""

import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from tests.benchmarks.row import Row

EXPERIMENTS = 12
WORKERS = 2
BUDGET_SECONDS = 10.0  # that of the demo
# Takes as long as a run of the demo and costs no CPU, so that what is measured is the loop.
TARGET = """
import os, time
LR = 0.1  # optimizer: 0.001..1.0 log
WIDTH = 8  # architecture: 2..64 log pow2
time.sleep(float(os.environ["TRAIN_SECONDS"]))
print(f"val_bpb: {1 + LR + WIDTH / 100}")
"""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "target").mkdir()
        (place / "target" / "train.py").write_text(TARGET)
        arguments = ["--target", "target", "--devices", "cpu", "--port", "0", "--out", "runs"]
        budget = ["--budget", str(BUDGET_SECONDS), "--experiments", str(EXPERIMENTS)]
        environment = {**os.environ, "TRINE_CACHE": str(place / "cache")}
        trine = [sys.executable, "-m", "trine"]
        subprocess.run(
            [*trine, "loop", "start", "--tag", "bench", *budget, *arguments],
            cwd=place,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        runs = json.loads((place / "runs" / "bench" / "experiments.json").read_text())
    started = [datetime.fromisoformat(one["run_started_at"]) for one in runs]
    ended = [datetime.fromisoformat(one["finished_at"]) for one in runs]
    busy = sum((e - s).total_seconds() for s, e in zip(started, ended, strict=True))
    share = busy / WORKERS / (max(ended) - min(started)).total_seconds()
    return [Row("workers busy in the loop", share, "share", None, None, ">= 0.9", share >= 0.9)]
