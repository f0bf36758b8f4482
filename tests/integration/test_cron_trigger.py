"""Cron, over a real server's schedules."""

from itertools import pairwise

import anyio
import pytest

from trine import App, Context
from trine_triggers import Cron, CronTick

pytestmark = pytest.mark.anyio


class Ticking:
    def __init__(self, *triggers: Cron) -> None:
        self.ticks: list[CronTick] = []
        self.workers: set[str] = set()
        self.third = anyio.Event()
        self.app = App("clock")

        async def tick(ctx: Context, tick: CronTick) -> None:
            self.ticks.append(tick)
            self.workers.add(ctx.invocation.worker)
            if len(self.ticks) == 3:
                self.third.set()

        function = self.app.function("clock.tick")(tick)
        for trigger in triggers:
            self.app.on(trigger)(function)


async def schedules(client) -> list[str]:
    names = client.bus.names
    found = await client.bus.latest(names.record, [names.schedule(">")])
    return sorted(one.headers["Nats-Schedule"] for one in found)


async def test_each_tick_fires_once_over_two_replicas(serve):
    ticking = Ticking(Cron("* * * * * *"))
    async with serve(ticking.app), serve(ticking.app):
        with anyio.fail_after(10):
            await ticking.third.wait()
    moments = [tick.scheduled_at for tick in ticking.ticks]
    assert len(set(moments)) == len(moments)
    seconds = [(b - a).total_seconds() for a, b in pairwise(moments)]
    assert seconds == [1.0] * len(seconds)
    assert all(
        0 <= (tick.fired_at - tick.scheduled_at).total_seconds() < 1 for tick in ticking.ticks
    )


async def test_a_changed_expression_replaces_the_schedule(serve):
    async with serve(Ticking(Cron("0 0 4 * * *")).app) as client:
        assert await schedules(client) == ["0 0 4 * * *"]
        async with serve(Ticking(Cron("0 0 5 * * *"), Cron("@daily")).app):
            assert await schedules(client) == ["0 0 0 * * *", "0 0 5 * * *"]
        async with serve(Ticking(Cron("0 0 5 * * *")).app):
            assert await schedules(client) == ["0 0 5 * * *"]


async def test_an_unchanged_schedule_keeps_its_place_over_a_restart(serve):
    trigger = Cron("@every 1h")
    async with serve() as client:
        names = client.bus.names
        async with serve(Ticking(trigger).app):
            [before] = await client.bus.latest(names.record, [names.schedule(">")])
        async with serve(Ticking(trigger).app):
            [after] = await client.bus.latest(names.record, [names.schedule(">")])
    assert after.sequence == before.sequence


async def test_a_tick_carries_the_payload_that_was_asked_for(serve):
    app = App("clock")
    got: list[str] = []
    arrived = anyio.Event()

    @app.on(Cron("@every 1s", payload={"tag": "mar11"}))
    @app.function("clock.tag")
    async def tag(tag: str) -> None:
        got.append(tag)
        arrived.set()

    async with serve(app):
        with anyio.fail_after(10):
            await arrived.wait()
    assert got[0] == "mar11"


async def test_a_zone_goes_to_the_server(serve):
    async with serve(Ticking(Cron("0 30 9 * * *", zone="Europe/Amsterdam")).app) as client:
        names = client.bus.names
        [stored] = await client.bus.latest(names.record, [names.schedule(">")])
    assert stored.headers["Nats-Schedule-Time-Zone"] == "Europe/Amsterdam"
