"""A tick each second over two programs, which are killed again and again, in turn."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from trine import Client, Scope

pytestmark = [pytest.mark.anyio, pytest.mark.long]

SECONDS = int(os.environ.get("TICKS_SECONDS", "600"))
KILL_SECONDS = (7.3, 11.9, 9.4)  # from one kill to the next, at other parts of a second each
WORK_SECONDS = 0.3  # what a tick takes: some kills hit one at work
PROGRAMS = ("one", "two")
SOURCE = f"""
import os

import anyio

from trine import App, Context, Scope
from trine_triggers import Cron
from trine_triggers.cron import CronTick

app = App("ticks")
runs = Scope("runs", dict)

@app.on(Cron("* * * * * *"))
@app.function("tick.take")
async def take(ctx: Context, tick: CronTick) -> None:
    await anyio.sleep({WORK_SECONDS})
    key = f"{{ctx.invocation.facts['tick']}}.{{ctx.attempt}}.{{os.getpid()}}"
    value = {{"second": int(tick.scheduled_at.timestamp()), "attempt": ctx.attempt}}
    await ctx.state(runs).put(key, value)
"""
runs = Scope("runs", dict)  # <sequence>.<attempt>.<process> of each run that ended


async def server_ticks(client: Client) -> dict[int, int]:
    """Return the second of each tick that the server made, by its sequence."""
    names = client.bus.names
    info = await client.bus.api(f"STREAM.INFO.{names.events}")
    state = info["state"]
    found = {}
    jetstream = client.bus.connection.jetstream()
    for sequence in range(state["first_seq"], state["last_seq"] + 1):
        message = await jetstream.get_msg(names.events, sequence)
        if ".schedule." in message.subject:
            found[sequence] = int(message.time.timestamp())
    return found


async def test_no_tick_is_lost_or_doubled(
    swarm: Any, patient: Any, evidence: Any, trine_command: Any, tmp_path: Path
) -> None:
    (tmp_path / "ticks.py").write_text(SOURCE)
    for name in PROGRAMS:
        swarm.add(name, *trine_command, "serve", "ticks.py:app")
    kills = 0
    async with Client.connect(swarm.url) as client:
        with anyio.fail_after(30):
            while not await patient(lambda: client.state(runs).entries()):
                await anyio.sleep(0.05)
        ends = time.monotonic() + SECONDS
        while (left := ends - time.monotonic()) > 0:
            await anyio.sleep(min(left, KILL_SECONDS[kills % len(KILL_SECONDS)]))
            if time.monotonic() < ends:
                victim = PROGRAMS[kills % 2]
                swarm.kill(victim)
                kills += 1
                swarm.start(victim)
        with anyio.move_on_after(45):  # what a killed program had in hand comes back after 10 s
            consumer = await _consumer(client)
            while consumer["num_ack_pending"] > 1:
                await anyio.sleep(0.2)
                consumer = await _consumer(client)
        made = await server_ticks(client)
        entries = await client.state(runs).entries()
    codes = swarm.end()

    last = max(int(entry.key.split(".")[0]) for entry in entries)
    made = {sequence: second for sequence, second in made.items() if sequence < last}
    ran = Counter(int(entry.key.split(".")[0]) for entry in entries)
    first_runs = Counter(
        int(entry.key.split(".")[0]) for entry in entries if entry.value["attempt"] == 1
    )
    seconds = Counter(made.values())
    missing = [second for second in range(min(seconds), max(seconds)) if second not in seconds]
    lost = sorted(set(made) - set(ran))
    untrue = [
        entry.key
        for entry in entries
        if entry.value["second"] != made.get(int(entry.key.split(".")[0]), entry.value["second"])
    ]
    facts = {
        "ticks": len(made),
        "kills": kills,
        "seconds_without_a_tick": len(missing),
        "seconds_with_two_ticks": sum(count > 1 for count in seconds.values()),
        "lost": len(lost),
        "doubled": sum(count > 1 for count in first_runs.values()),
        "with_a_wrong_time": len(untrue),
        "run_again_after_a_kill": sum(
            entry.value["attempt"] > 1 and int(entry.key.split(".")[0]) in made for entry in entries
        ),
    }
    evidence("ticks", "A tick each second over two programs under kill -9", facts)
    assert len(made) >= SECONDS
    assert missing == []
    assert facts["seconds_with_two_ticks"] == 0
    assert lost == [], "ticks that no program ran to its end"
    assert facts["doubled"] == 0
    assert untrue == [], "ticks whose scheduled_at is not the second in which they were due"
    assert kills >= SECONDS // 12
    assert set(codes.values()) == {0}


async def _consumer(client: Client) -> Any:
    names = client.bus.names
    listed = await client.bus.api(f"CONSUMER.LIST.{names.events}", {"offset": 0})
    (one,) = listed["consumers"]
    return one
