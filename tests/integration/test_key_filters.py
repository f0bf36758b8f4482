"""Key triggers: which changes they let through, and how they calm a hot key."""

import itertools
from collections import defaultdict
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, ValidationError

from trine import App, Scope
from trine.leases import Lease
from trine_triggers import Key, KeyChange

pytestmark = pytest.mark.anyio


class Value(BaseModel):
    n: int
    state: str = "new"


recorded = Scope("recorded", Value, changes=True)
plain = Scope("plain", Value)


class Got:
    def __init__(self, trigger: Key) -> None:
        self.items: list[tuple[float, KeyChange]] = []
        self._changed = anyio.Event()
        self.fail = 0
        self.app = App("got")

        async def take(change: KeyChange) -> None:
            self.items.append((anyio.current_time(), change))
            self._changed.set()
            if self.fail:
                self.fail -= 1
                raise RuntimeError("told to fail")

        self.app.on(trigger)(self.app.function("got.take")(take))

    @property
    def changes(self) -> list[KeyChange]:
        return [change for _, change in self.items]

    async def wait(self, reached: Any, seconds: float = 20) -> None:
        with anyio.fail_after(seconds):
            while not reached(self.changes):
                self._changed = anyio.Event()
                await self._changed.wait()


def has(key: str, n: int) -> Any:
    return lambda changes: any(c.key == key and c.new and c.new["n"] == n for c in changes)


async def test_where_compares_the_old_and_the_new_value(serve):
    where = {"old.state": "new", "new.state": {"in": ["kept", "best"]}, "new.n": {"gt": 1}}
    got = Got(Key(recorded, where=where))
    async with serve(got.app) as client:
        store = client.state(recorded)
        await store.put("a", Value(n=5, state="kept"))  # no old value
        await store.put("b", Value(n=1))
        await store.put("b", Value(n=1, state="kept"))  # n is too small
        await store.put("c", Value(n=2))
        await store.put("c", Value(n=2, state="best"))
        await store.put("c", Value(n=3, state="best"))  # was not new
        await store.put("c", Value(n=4))
        await store.put("c", Value(n=5, state="kept"))
        await got.wait(has("c", 5))
    assert [(c.key, c.new["n"]) for c in got.changes] == [("c", 2), ("c", 5)]


async def test_only_the_named_operations_fire(serve):
    got = Got(Key(recorded, on=("delete",)))
    async with serve(got.app) as client:
        await client.state(recorded).put("a", Value(n=1))
        await client.state(recorded).delete("a")
        await got.wait(bool)
    assert [(c.operation, c.old, c.new) for c in got.changes] == [
        ("delete", {"n": 1, "state": "new"}, None)
    ]


@pytest.mark.parametrize("scope", [plain, recorded], ids=lambda scope: scope.name)
async def test_a_hot_key_runs_once_in_a_time_over_two_replicas_and_its_last_value_does(
    serve, scope
):
    got = Got(Key(scope, coalesce=1))
    async with serve(got.app) as client, serve(got.app):
        store = client.state(scope)
        end, n = anyio.current_time() + 2.5, 0
        while anyio.current_time() < end:  # a write that is cut off may be stored after the read
            n += 1
            await store.put("hot", Value(n=n))
            await store.put(f"calm.{n % 3}", Value(n=n))
        last = (await store.get("hot")).value.n
        await got.wait(has("hot", last))
    runs: dict[str, list[float]] = defaultdict(list)
    for moment, change in got.items:
        runs[change.key].append(moment)
    assert last > 20
    assert 2 <= len(runs["hot"]) <= 6
    for moments in runs.values():
        gaps = [b - a for a, b in itertools.pairwise(moments)]
        assert all(gap > 0.9 for gap in gaps), gaps
    latest = {change.key: change.new["n"] for change in got.changes}
    assert latest["hot"] == last


async def test_a_coalesced_change_that_failed_comes_again(serve):
    got = Got(Key(plain, coalesce=1))
    got.fail = 1
    async with serve(got.app) as client:
        await client.state(plain).put("a", Value(n=7))
        await got.wait(lambda changes: len(changes) == 2)
    assert [c.new["n"] for c in got.changes] == [7, 7]


async def test_a_coalesced_change_goes_to_another_replica_when_the_one_where_it_waits_stops(serve):
    got = Got(Key(plain, coalesce=5))
    consumer = got.app.bindings[0].id
    async with serve() as client:
        async with serve(got.app):
            await client.state(plain).put("a", Value(n=1))
            await got.wait(has("a", 1))
            await client.state(plain).put("a", Value(n=2))  # has to wait
            with anyio.fail_after(10):
                info: dict[str, Any] = {}
                while info.get("num_ack_pending") != 1:
                    info = await client.bus.api(
                        f"CONSUMER.INFO.{client.bus.names.record}.{consumer}"
                    )
        assert len(got.changes) == 1  # stopping did not wait
        async with serve(got.app):
            await got.wait(has("a", 2))
    assert [c.new["n"] for c in got.changes] == [1, 2]


async def test_leases_of_a_hot_holder_are_coalesced_too(serve):
    got = Got(Key("leases", "gpu.*", coalesce=1))
    async with serve(got.app) as client:
        lease = Lease(client.bus, "gpu.0", b'{"n": 0}', 30)
        assert await lease.take()
        for n in range(1, 6):
            lease.payload = b'{"n": %d}' % n
            await lease.renew()
        await got.wait(has("gpu.0", 5))
    assert len(got.changes) <= 3


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Key(plain, on=("expire",)), "leases"),
        (lambda: Key(plain, where={"old.n": 1}), "old values"),
        (lambda: Key(recorded, where={"old.n": 1}, coalesce=1), "old values"),
        (lambda: Key(plain, where={"new.n": {"above": 1}}), "no operator 'above'"),
        (lambda: Key(plain, coalesce=0.1), "coalesce"),
        (lambda: Key(plain, on=()), "on"),
    ],
)
def test_what_cannot_be_kept_is_refused_where_it_is_written(make, reason):
    with pytest.raises(ValidationError, match=reason):
        make()
