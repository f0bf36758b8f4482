"""A loop that goes on while its workers, its engine and its server are killed again and again."""

import random
import signal
from collections import Counter
from datetime import datetime
from itertools import pairwise
from typing import Any

import anyio
import pytest

from trine import Client
from trine_functions.contracts import (
    MAX_ATTEMPTS,
    Experiment,
    LoopState,
    best,
    crashes,
    loops,
    tags,
)
from trine_functions.queries import of_tag

pytestmark = [pytest.mark.anyio, pytest.mark.long]

SEED = 7
EXPERIMENTS = 30
BUDGET_SECONDS = 1.0
WORKERS = ("worker-1", "worker-2", "worker-3")
PAUSE_SECONDS = (1.0, 3.0)  # between two kills
AWAY_SECONDS = (0.0, 1.0)  # between a kill and the start that follows
TURN = ("worker", "worker", "engine", "worker", "server")  # each time in another order
LIMIT_SECONDS = 360
WORKER = ("worker", "gpu", "--devices", "cpu", "--quiet")


async def harm(swarm: Any, kills: Counter[str]) -> None:
    """Kill something and start it again, until cancelled."""
    dice = random.Random(SEED)
    turn: list[str] = []
    while True:
        await anyio.sleep(dice.uniform(*PAUSE_SECONDS))
        turn = turn or dice.sample(TURN, len(TURN))
        kind = turn.pop()
        name = dice.choice(WORKERS) if kind == "worker" else kind
        swarm.kill(name)
        kills[kind] += 1
        await anyio.sleep(dice.uniform(*AWAY_SECONDS))
        swarm.start(name)


async def finished(client: Client, tag: str, patient: Any) -> LoopState:
    """Return the state of the loop once it has ended; asking stands in for a watch here.

    What the test believes must not rest on the watches, which are killed with the server.
    """
    with anyio.fail_after(LIMIT_SECONDS):
        while True:
            entry = await patient(lambda: client.state(loops).find(tag))
            if entry.value.status not in ("running", "paused"):
                return entry.value
            await anyio.sleep(0.3)


async def waiting_jobs(client: Client) -> int:
    info = await client.bus.api(f"STREAM.INFO.{client.bus.names.jobs}")
    return int(info["state"]["messages"])


async def verdicts(client: Client) -> Counter[str]:
    """Return how many verdicts the events tell of, for each experiment."""
    pattern = client.bus.names.event("experiment.completed", "*", "*")
    subjects = await client.bus.subjects(client.bus.names.events, pattern)
    return Counter(subject.split(".")[-2] for subject in subjects)


def longest_gap(found: list[Experiment]) -> float:
    ends = sorted(datetime.fromisoformat(one.finished_at or "") for one in found)
    return max((later - earlier).total_seconds() for earlier, later in pairwise(ends))


async def test_no_experiment_is_lost_or_counted_twice_whatever_is_killed(
    swarm: Any, patient: Any, set_up: Any, evidence: Any, trine_command: Any
) -> None:
    swarm.add("engine", *trine_command, "up", "--workers", "0", "--port", "0")
    kills: Counter[str] = Counter()
    async with Client.connect(swarm.url) as client:
        await patient(lambda: set_up(client, "chaos", "quick", BUDGET_SECONDS))
        for name in WORKERS:
            swarm.add(name, *trine_command, *WORKER)
        plan = {"experiments": EXPERIMENTS, "parallel": len(WORKERS), "seed": SEED}
        await client.call("loop.start", {"tag": "chaos", **plan})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(harm, swarm, kills)
            state = await finished(client, "chaos", patient)
            tasks.cancel_scope.cancel()
        swarm.resume()
        with anyio.fail_after(60):
            while await patient(lambda: waiting_jobs(client)):
                await anyio.sleep(0.1)
        found = await patient(lambda: of_tag(client, "chaos"))
        counted = (await client.state(tags).get("chaos")).value
        leader = (await client.state(best).get("chaos")).value
        told = await verdicts(client)
        lost = [entry.value for entry in await client.state(crashes).entries("chaos")]
        dead = await client.bus.api(f"STREAM.INFO.{client.bus.names.dead}")
    codes = swarm.end()
    left = swarm.left()

    facts = {
        "seed": SEED,
        "kills": dict(sorted(kills.items())),
        "experiments": len(found),
        "statuses": dict(Counter(one.status for one in found)),
        "attempts_per_experiment": dict(sorted(Counter(one.attempt for one in found).items())),
        "lost": EXPERIMENTS - len({one.id for one in found if one.status != "running"}),
        "duplicated": sum(told.values()) - len(told),
        "given_up_after_3_dead_workers": len(lost),
        "dead_letters": dead["state"]["messages"],
        "longest_gap_seconds": round(longest_gap(found), 1),
        "processes_left": len(left),
    }
    evidence("chaos", "A loop of 30 experiments under kill -9", facts)
    assert state.status == "finished", state
    assert len(found) == len({one.id for one in found}) == EXPERIMENTS
    assert all(one.status in ("keep", "discard") or one.attempt == MAX_ATTEMPTS for one in found)
    assert all(one.crash_class == "lost" for one in lost), "a run failed that nobody killed"
    assert told == {one.id: 1 for one in found}, "an experiment was judged twice, or never"
    assert (
        counted.total_experiments,
        counted.kept_experiments,
        counted.discarded_experiments,
        counted.crashed_experiments,
    ) == (
        EXPERIMENTS,
        *(sum(one.status == status for one in found) for status in ("keep", "discard", "crash")),
    )
    lowest = min(one.val_bpb for one in found if one.status == "keep" and one.val_bpb is not None)
    assert leader.val_bpb == lowest == counted.best_val_bpb
    assert kills.keys() == set(TURN), "something was never killed"
    assert set(codes.values()) <= {0, -signal.SIGTERM}, codes  # the latter: it was starting
    assert left == []
