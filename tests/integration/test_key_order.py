"""Changes of a key arrive in their order, over replicas, failures and kill -9; none is lost."""

import json
import random
from collections import defaultdict
from pathlib import Path

import anyio
import pytest
from pydantic import BaseModel

from trine import Client, Scope
from trine.events import PARTITIONS, partition

pytestmark = pytest.mark.anyio

KEYS = [f"k.{number}" for number in range(12)]
CHANGES = 12
SOURCE = """
import json, os, random
from pydantic import BaseModel
from trine import App, Context, Retry, Scope
from trine_triggers import Key, KeyChange

app = App("order")
runs = []

class Value(BaseModel):
    n: int

@app.on(Key(Scope("counted", Value, changes=True), "k.*"))
@app.function("order.note", retry=Retry(attempts=50, delay_seconds=0.02, cap_seconds=0.1))
async def note(ctx: Context, change: KeyChange) -> None:
    runs.append(change)
    if os.environ.get("DIE") and len(runs) == 8:
        os.kill(os.getpid(), 9)  # with this change in its hands, and maybe others
    if random.random() < 0.15:
        raise RuntimeError("now and then")
    line = {"key": change.key, "n": change.new["n"], "old": change.old and change.old["n"],
            "pid": os.getpid(), "attempt": ctx.attempt}
    with open("handled.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")
"""


class Value(BaseModel):
    n: int


counted = Scope("counted", Value, changes=True)


def handled(file: Path) -> list[dict]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


async def until(file: Path, reached, seconds: float) -> list[dict]:
    with anyio.fail_after(seconds):
        while not reached(lines := handled(file)):
            await anyio.sleep(0.05)
    return lines


def complete(lines: list[dict]) -> bool:
    return len({(line["key"], line["n"]) for line in lines}) == len(KEYS) * CHANGES


async def write(client: Client) -> None:
    """Write every key from 0 on, the keys in any order."""
    store = client.state(counted)
    todo = [key for key in KEYS for _ in range(CHANGES)]
    random.shuffle(todo)
    count: dict[str, int] = defaultdict(int)
    for key in todo:
        await store.put(key, Value(n=count[key]))
        count[key] += 1


def test_the_keys_of_the_proof_are_in_every_partition():
    assert {partition(key) for key in KEYS} == set(range(PARTITIONS))


@pytest.mark.timeout(120)
async def test_each_keys_changes_succeed_in_order_over_two_replicas_one_of_which_is_killed(
    trine, nats, space
):
    file = trine.directory / "handled.jsonl"
    program = trine.directory / "victim.py"
    program.write_text(SOURCE)
    async with (
        Client.connect(nats, namespace=space) as client,
        trine.start("serve", f"{program}:app", DIE="1") as victim,
        trine.serve(SOURCE),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(write, client)
        assert await victim.wait(30) == -9
        before = len(handled(file))
        lines = await until(file, complete, 60)
        assert len(lines) > before
    by_key: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        if line["n"] not in [seen["n"] for seen in by_key[line["key"]]]:  # the first success counts
            by_key[line["key"]].append(line)
    for key in KEYS:
        assert [line["n"] for line in by_key[key]] == list(range(CHANGES)), key
        assert [line["old"] for line in by_key[key]] == [None, *range(CHANGES - 1)], key
    assert any(line["attempt"] > 1 for line in lines)  # some had failed before


@pytest.mark.timeout(120)
async def test_changes_made_while_no_replica_runs_arrive_in_order_when_one_does(trine, nats, space):
    file = trine.directory / "handled.jsonl"
    async with Client.connect(nats, namespace=space) as client:
        async with trine.serve(SOURCE) as program:
            await client.state(counted).put("k.first", Value(n=0))
            await until(file, bool, 20)
            program.signal(9)
            await program.wait()
        await write(client)
        assert len(handled(file)) == 1
        async with trine.serve(SOURCE):
            lines = await until(file, lambda lines: complete(lines[1:]), 60)
    order: dict[str, list[int]] = defaultdict(list)
    for line in lines[1:]:
        order[line["key"]].append(line["n"])
    assert all(order[key] == list(range(CHANGES)) for key in KEYS)
