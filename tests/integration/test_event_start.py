"""Event triggers: where they begin, what live means, and that kill -9 loses nothing."""

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from pydantic import ValidationError

from trine import App, Client, Context, EventModel
from trine_triggers import Event

pytestmark = pytest.mark.anyio


class Happened(EventModel, type="thing.happened", key="n"):
    n: int


class Got:
    def __init__(self, name: str, *triggers: Event) -> None:
        self.items: list[int] = []
        self.sequences: list[int] = []
        self._changed = anyio.Event()
        self.app = App(name)

        async def take(ctx: Context, event: Happened) -> None:
            self.items.append(event.n)
            self.sequences.append(ctx.invocation.facts["sequence"])
            self._changed.set()

        function = self.app.function(f"{name}.take")(take)
        for trigger in triggers:
            self.app.on(trigger)(function)

    async def wait(self, count: int, seconds: float = 15) -> None:
        with anyio.fail_after(seconds):
            while len(self.items) < count:
                self._changed = anyio.Event()
                await self._changed.wait()


async def emit(client: Client, *numbers: int) -> None:
    for n in numbers:
        await client.emit(Happened(n=n))


async def test_a_first_start_can_begin_with_all_that_is_kept(serve):
    every = Got("every", Event("thing.*", start="all"))
    new = Got("new", Event("thing.*"))
    async with serve() as client:
        await emit(client, 1, 2)
        async with serve(every.app, new.app):
            await emit(client, 3)
            await every.wait(3)
            await new.wait(1)
        async with serve(every.app, new.app):  # a later start goes on where it was
            await emit(client, 4)
            await every.wait(4)
            await new.wait(2)
    assert (sorted(every.items), new.items) == ([1, 2, 3, 4], [3, 4])


async def test_a_first_start_can_begin_at_a_sequence_or_at_a_time(serve):
    async with serve() as client:
        probe = Got("probe", Event("thing.*", start="all"))
        await emit(client, 1, 2)
        async with serve(probe.app):
            await probe.wait(2)
        names = client.bus.names
        [second] = await client.bus.latest(names.events, [names.event("thing.happened", "2", "*")])
        sequence = probe.sequences[probe.items.index(2)]
        assert sequence == second.sequence
        moment = datetime.now(UTC)
        await emit(client, 3)
        by_sequence = Got("sequence", Event("thing.*", start=sequence))
        by_time = Got("time", Event("thing.*", start=moment))
        async with serve(by_sequence.app, by_time.app):
            await by_sequence.wait(2)
            await by_time.wait(1)
    assert sorted(by_sequence.items) == [2, 3]
    assert by_time.items == [3]


async def test_a_live_trigger_gets_nothing_that_was_emitted_while_no_replica_ran(serve):
    live = Got("live", Event("thing.*", durable=False))
    durable = Got("durable", Event("thing.*"))
    async with serve() as client:
        async with serve(live.app, durable.app):
            await emit(client, 1)
            await live.wait(1)
        await emit(client, 2)
        async with serve(live.app, durable.app):
            await emit(client, 3)
            await live.wait(2)
            await durable.wait(3)
    assert live.items == [1, 3]
    assert sorted(durable.items) == [1, 2, 3]


async def test_the_replicas_of_a_live_trigger_share_and_one_that_joins_disturbs_nothing(serve):
    live = Got("live", Event("thing.*", durable=False))
    async with serve(live.app) as client:
        await emit(client, *range(20))
        async with serve(live.app):
            await emit(client, *range(20, 60))
            await live.wait(60)
    assert sorted(live.items) == list(range(60))


async def test_every_function_gets_its_copy_and_every_binding_too(serve):
    one = Got("one", Event("thing.*"), Event("thing.happened", where={"n": {"ge": 2}}))
    two = Got("two", Event("*.happened"))
    async with serve(one.app, two.app) as client:
        await emit(client, 1, 2)
        await one.wait(3)
        await two.wait(2)
    assert sorted(one.items) == [1, 2, 2]
    assert sorted(two.items) == [1, 2]


def round_trip(trigger: Event) -> Event:
    return Event.model_validate_json(trigger.model_dump_json())


@pytest.mark.parametrize("start", ["new", "all", 7, datetime(2026, 1, 1, tzinfo=UTC)])
def test_where_it_begins_survives_json(start):
    assert round_trip(Event("a.b", start=start)).start == start


@pytest.mark.parametrize(
    "settings",
    [
        {"start": 0},
        {"start": "old"},
        {"start": datetime(2026, 1, 1)},  # noqa: DTZ001 - whose midnight?
        {"durable": False, "start": "all"},
        {"where": {"a": {"like": 1}}},
    ],
)
def test_a_beginning_that_means_nothing_is_refused(settings: dict[str, Any]):
    with pytest.raises(ValidationError):
        Event("a.b", **settings)


KILLED = """
import anyio, json, os
from trine import App, EventModel
from trine_triggers import Event

app = App("killed")

class Happened(EventModel, type="thing.happened", key="n"):
    n: int

@app.on(Event("thing.happened"))
@app.function("killed.take")
async def take(event: Happened) -> None:
    print(json.dumps({"n": event.n}), flush=True)
    if os.environ.get("HANG"):
        await anyio.sleep_forever()
"""


@pytest.mark.timeout(120)
async def test_events_in_the_hands_of_a_killed_replica_run_in_another(trine, nats, space):
    file = trine.directory / "killed.py"
    file.write_text(KILLED)
    async with Client.connect(nats, namespace=space) as client:
        async with trine.start("serve", f"{file}:app", "--json", HANG="1") as victim:
            assert "worker" in await victim.line()
            await emit(client, *range(10))
            taken = [(await victim.line())["n"] for _ in range(10)]
            victim.signal(9)
            await victim.wait()
        await emit(client, *range(10, 20))  # nobody is there
        handled: set[int] = set()
        async with trine.start("serve", f"{file}:app", "--json") as other:
            with anyio.fail_after(60):
                while len(handled) < 20:
                    line = await other.line(60)
                    handled |= {line["n"]} if "n" in line else set()
    assert sorted(taken) == list(range(10))
    assert handled == set(range(20))
