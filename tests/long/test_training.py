"""The target that comes with the system, trained several times unchanged: it learns, alike."""

from typing import Any

import anyio
import pytest

from trine import Client
from trine_functions.contracts import experiments

pytestmark = [pytest.mark.anyio, pytest.mark.long]

RUNS = 4
BUDGET_SECONDS = 10.0
WORKERS = 2
LEARNED = 3.6  # val_bpb; a model that has learned nothing has 8
SPREAD = 0.06  # of the mean, from the best to the worst


async def test_the_unchanged_target_learns_and_repeats(
    swarm: Any, patient: Any, set_up: Any, evidence: Any, trine_command: Any
) -> None:
    swarm.add("engine", *trine_command, "up", "--workers", "0", "--port", "0")
    async with Client.connect(swarm.url) as client:
        await patient(lambda: set_up(client, "repeat", "nanolm", BUDGET_SECONDS))
        for number in range(WORKERS):
            worker = ("worker", "gpu", "--devices", "cpu", "--quiet")
            swarm.add(f"worker-{number}", *trine_command, *worker)
        said = [await client.call("experiment.submit", {"tag": "repeat"}) for _ in range(RUNS)]
        found = []
        with anyio.fail_after(240):
            for one in said:
                while (record := await _record(client, one)).status == "running":
                    await anyio.sleep(0.2)
                found.append(record)
    codes = swarm.end()

    values = [one.val_bpb for one in found if one.val_bpb is not None]
    assert len(values) == RUNS, [one.error for one in found]
    spread = (max(values) - min(values)) / (sum(values) / RUNS)
    facts = {
        "runs": RUNS,
        "budget_seconds": BUDGET_SECONDS,
        "workers": WORKERS,
        "val_bpb": [round(value, 4) for value in values],
        "steps": [int(one.num_steps or 0) for one in found],
        "spread_percent": round(100 * spread, 2),
        "peak_memory_mb": max(round(one.peak_vram_mb or 0) for one in found),
    }
    evidence("training", "The unchanged nanolm, trained again and again", facts)
    assert len({one.tree for one in found}) == 1, "all were the same program"
    assert max(values) < LEARNED
    assert spread < SPREAD
    assert set(codes.values()) == {0}


async def _record(client: Client, said: dict[str, Any]) -> Any:
    return (await client.state(experiments).get(said["experiment_id"])).value
