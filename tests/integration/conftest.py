"""A laboratory: the research functions served, a target whose truth is known, real workers."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from trine import App, Client, Entry
from trine_functions import ledger, loop, pool, queries, report, search, submit, trees
from trine_functions.contracts import Experiment, experiments, gpu_pool

# Trains nothing: prints what a run prints, for TRAIN_SECONDS, and a value that its knobs determine.
QUICK = """
import math, os, sys, time
LR = 0.1  # optimizer: 0.001..1.0 log
WIDTH = 8  # architecture: 2..64 log pow2
budget = float(os.environ["TRAIN_SECONDS"])
started = time.monotonic()
step = 0
while (spent := time.monotonic() - started) < budget:
    step += 1
    time.sleep(0.02)
    print(f"\\rstep {step:05d} ({100 * spent / budget:.1f}%) | loss: {3 - step / 100:.2f}"
          f" | tok/sec: 1,000 | mfu: 0.0% | remaining: 1s", end="", flush=True)
value = 1 + 0.1 * abs(math.log10(LR) + 2) + 0.05 * abs(math.log2(WIDTH) - 4)
print(f"\\n---\\nval_bpb: {value:.6f}\\nnum_steps: {step}\\npeak_vram_mb: 12.5")
"""


@pytest.fixture
def quick_source() -> str:
    return QUICK


def research() -> App:
    """Return the research app as it is installed, made anew: bindings belong to one app."""
    app = App("research")
    for part in (ledger, queries, submit, trees, search, pool, report, loop):
        app.include(part.app)
    return app


@dataclass
class Lab:
    client: Client

    async def tag(self, name: str, source: str = QUICK, **target: Any) -> str:
        """Set up a tag whose target is the one script *source*."""
        request = {
            "name": "test",
            "files": {"train.py": source},
            "command": "python train.py",
            "budget_seconds": 0.2,
            "startup_seconds": 20,
            **target,
        }
        stored = await self.client.call("target.add", request)
        await self.client.call("experiment.setup", {"tag": name, "target": stored})
        return name

    async def submit(self, tag: str, **change: Any) -> str:
        said = await self.client.call("experiment.submit", {"tag": tag, **change})
        return str(said["experiment_id"])

    async def until(
        self, experiment: str, reached: Callable[[Experiment], bool], seconds: float = 40
    ) -> Experiment:
        """Wait until the record of *experiment* is as wanted, and return it."""
        with anyio.fail_after(seconds):
            async for entry in self.client.state(experiments).watch():
                if isinstance(entry, Entry) and entry.key == experiment and reached(entry.value):
                    return entry.value
        raise AssertionError("unreachable")

    async def ended(self, experiment: str, seconds: float = 40) -> Experiment:
        return await self.until(experiment, lambda one: one.status != "running", seconds)

    async def slots(self, count: int, seconds: float = 20) -> None:
        """Wait until *count* slots of workers are idle or training."""
        with anyio.fail_after(seconds):
            alive: set[str] = set()
            async for entry in self.client.state(gpu_pool).watch():
                if isinstance(entry, Entry) and entry.value.status != "offline":
                    alive.add(entry.key)
                if len(alive) >= count:
                    return


@pytest.fixture
def lab(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> Any:
    """``async with lab() as it``."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Lab]:
        async with serve(research()) as client:
            yield Lab(client)

    return start
