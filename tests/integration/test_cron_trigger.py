"""Cron, over a real server's schedules."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import anyio
import pytest

from trine import App, Context, wire
from trine.testing import serving
from trine_triggers import Cron, CronTick, cron_ticks

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


class Steered:
    """A function that runs for as long as the test wants, in any number of replicas."""

    def __init__(self, trigger: Cron, name: str = "steered") -> None:
        self.ticks: list[tuple[int, CronTick, int]] = []  # number, tick, attempt
        self.together = 0
        self.most = 0
        self.go_on = anyio.Event()
        self._changed = anyio.Event()
        self.app = App(name)

        async def run(ctx: Context, tick: CronTick) -> None:
            self.together += 1
            self.most = max(self.most, self.together)
            self.ticks.append((ctx.invocation.facts["tick"], tick, ctx.attempt))
            self._changed.set()
            try:
                await self.go_on.wait()
            finally:
                self.together -= 1

        self.app.on(trigger)(self.app.function(f"{name}.run")(run))
        self.binding = self.app.bindings[0]

    async def wait(self, count: int, seconds: float = 20) -> None:
        with anyio.fail_after(seconds):
            while len(self.ticks) < count:
                self._changed = anyio.Event()
                await self._changed.wait()


def once(*offsets: int) -> tuple[str, datetime]:
    """An expression for these seconds from now, not due again within a year, and the last one."""
    start = datetime.now(UTC).replace(microsecond=0)
    moments = [start + timedelta(seconds=offset) for offset in offsets]
    if len({moment.minute for moment in moments}) > 1:  # they have to be in one minute
        moments = [moment + timedelta(seconds=60 - moments[0].second) for moment in moments]
    last = moments[-1]
    seconds = ",".join(str(moment.second) for moment in moments)
    return f"{seconds} {last.minute} {last.hour} {last.day} {last.month} *", last


async def made(client: Any, binding: Any, count: int, seconds: float = 70) -> int:
    """Wait until the server has made *count* ticks for *binding*; return the last one's number."""
    names = client.bus.names
    subject = names.event("schedule", binding.id, "tick")
    numbers: set[int] = set()
    with anyio.fail_after(seconds):
        while len(numbers) < count:
            found = await client.bus.last(names.events, subject)
            numbers |= {found.sequence} if found else set()
            await anyio.sleep(0.05)
    return max(numbers)


async def settled(client: Any, binding: Any) -> None:
    """Wait until every tick of *binding* has been taken and answered."""
    with anyio.fail_after(20):
        while True:
            info = await client.bus.api(f"CONSUMER.INFO.{client.bus.names.events}.{binding.id}")
            if info["num_pending"] == 0 and info["num_ack_pending"] == 0:
                return
            await anyio.sleep(0.05)


@pytest.mark.timeout(150)
async def test_of_ticks_that_nobody_took_the_last_one_runs_or_none(serve):
    expression, last = once(6, 7, 8)
    latest = Steered(Cron(expression, catch_up="last"), name="latest")
    none = Steered(Cron(expression, catch_up="none"), name="none")
    latest.go_on.set()
    none.go_on.set()
    async with serve() as client:
        async with serve(latest.app, none.app):
            pass  # the schedules are there from now on, and nobody is
        assert latest.ticks == []
        await made(client, latest.binding, 3)
        await made(client, none.binding, 1)
        with anyio.fail_after(20):  # a few seconds late is not missed
            while datetime.now(UTC) < last + timedelta(seconds=6):
                await anyio.sleep(0.1)
        async with serve(latest.app, none.app):
            await settled(client, latest.binding)
            await settled(client, none.binding)
    assert [(tick.scheduled_at, attempt) for _, tick, attempt in latest.ticks] == [(last, 1)]
    assert none.ticks == []


async def test_ticks_wait_for_the_run_before_them_in_whichever_replica(serve):
    steered = Steered(Cron("* * * * * *", overlap="queue"))
    async with serve(steered.app) as client, serve(steered.app):
        await steered.wait(1)
        await made(client, steered.binding, 4)
        assert len(steered.ticks) == 1
        steered.go_on.set()
        await steered.wait(5)
    assert steered.most == 1
    moments = [tick.scheduled_at for _, tick, _ in steered.ticks]
    seconds = [(b - a).total_seconds() for a, b in pairwise(moments)]
    assert seconds == [1.0] * len(seconds)


async def test_ticks_that_fall_due_during_a_run_in_any_replica_are_skipped(serve):
    steered = Steered(Cron("* * * * * *", overlap="skip"))
    async with serve(steered.app) as client, serve(steered.app):
        await steered.wait(1)
        last = await made(client, steered.binding, 4)
        steered.go_on.set()
        await steered.wait(3)
    assert steered.most == 1
    first, *rest = [number for number, _, _ in steered.ticks]
    assert first < last < rest[0]


async def test_parallel_ticks_run_beside_each_other(serve):
    steered = Steered(Cron("* * * * * *", overlap="parallel"))
    async with serve(steered.app):
        await steered.wait(3)
        steered.go_on.set()
    assert steered.most >= 3


async def test_a_tick_that_waits_out_its_jitter_goes_to_another_replica_when_its_own_stops(serve):
    patient = Steered(Cron("* * * * * *", jitter=3600))
    patient.go_on.set()
    async with serve() as client:
        async with serve(patient.app):
            await made(client, patient.binding, 2)
            with anyio.fail_after(20):
                info: dict[str, Any] = {}
                while not info.get("num_ack_pending"):
                    info = await client.bus.api(
                        f"CONSUMER.INFO.{client.bus.names.events}.{patient.binding.id}"
                    )
            assert patient.ticks == []
        async with serve(patient.app):
            await patient.wait(1)
    assert patient.ticks[0][2] == 2  # the second attempt: it has waited


async def test_a_binding_that_is_gone_takes_its_schedule_with_it(serve):
    app = App("clock")
    app.function("clock.tick")(lambda: None)
    other = App("other")
    other.on(Cron("0 0 5 * * *"))(other.function("other.tick")(lambda: None))
    async with serve(Ticking(Cron("0 0 4 * * *")).app) as client, serve(other):
        assert await schedules(client) == ["0 0 4 * * *", "0 0 5 * * *"]
        async with serve(app):
            assert await schedules(client) == ["0 0 5 * * *"]


async def test_what_the_server_passes_over_is_fired_all_the_same(serve):
    """The server says after a tick when it fires next; here it says that it leaves one out."""
    expression, last = once(4)
    steered = Steered(Cron(expression, zone="UTC"))
    steered.go_on.set()
    async with serve(steered.app) as client:
        bus, names = client.bus, client.bus.names
        await bus.api(f"STREAM.PURGE.{names.record}", {"filter": names.schedule(">")})
        subject = names.event("schedule", steered.binding.id, "tick")
        said = (last + timedelta(days=3650)).isoformat()
        await bus.store(subject, b"{}", {wire.MENDED: said})
        await steered.wait(2, 75)
    assert [tick.scheduled_at for _, tick, _ in steered.ticks][1] == last
    assert steered.ticks[0][1].scheduled_at < last


KILLED = """
import anyio, json, os
from trine import App, Context, wire
from trine.testing import serving
from trine_triggers import Cron, CronTick, cron_ticks

app = App("killed")

@app.on(Cron("@every 1s"))
@app.function("killed.take")
async def take(ctx: Context, tick: CronTick) -> None:
    facts = {"tick": ctx.invocation.facts["tick"], "attempt": ctx.attempt, "pid": os.getpid()}
    print(json.dumps(facts), flush=True)
    if os.environ.get("HANG"):
        await anyio.sleep_forever()
"""


async def test_a_tick_in_the_hands_of_a_killed_replica_runs_in_another(trine):
    file = trine.directory / "killed.py"
    file.write_text(KILLED)
    async with trine.start("serve", f"{file}:app", "--json", HANG="1") as first:
        assert "worker" in await first.line()
        taken = await first.line()
        async with trine.start("serve", f"{file}:app", "--json") as second:
            assert "worker" in await second.line()
            first.signal(9)
            lines = [await second.line(20) for _ in range(3)]
    assert (taken["attempt"], lines[0]["tick"]) == (1, taken["tick"])
    assert [line["attempt"] for line in lines] == [2, 1, 1]
    numbers = [line["tick"] for line in lines]
    assert numbers == sorted(set(numbers))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("end", ["kill", "terminate"])
async def test_of_ticks_while_the_server_was_down_the_last_one_runs_or_none(
    own_server, monkeypatch, end
):
    """A server that was stopped fires one of them itself, a killed one none: both are one run."""
    monkeypatch.setattr(cron_ticks, "_LOOK_SECONDS", 3.0)
    expression, last = once(8, 9, 31)
    latest = Steered(Cron(expression, catch_up="last"), name="latest")
    none = Steered(Cron(expression, catch_up="none"), name="none")
    for one in (latest, none):
        one.go_on.set()
    apps = (latest.app, none.app)
    async with (
        serving(*apps, url=own_server.url, namespace="down"),
        serving(*apps, url=own_server.url, namespace="down"),
    ):
        getattr(own_server.process, end)()
        own_server.process.wait()
        assert datetime.now(UTC) < last - timedelta(seconds=23)
        with anyio.fail_after(90):
            while datetime.now(UTC) < last - timedelta(seconds=22 - 6):
                await anyio.sleep(0.1)
        own_server.start()
        await latest.wait(2, 60)
        await none.wait(1, 60)
    assert [tick.scheduled_at for _, tick, _ in latest.ticks] == [
        last - timedelta(seconds=22),
        last,
    ]
    assert [tick.scheduled_at for _, tick, _ in none.ticks] == [last]
