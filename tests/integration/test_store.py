"""Typed state, over a real server."""

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from trine import App, Client, Gone, Scope
from trine.errors import (
    ConflictError,
    InternalError,
    KeyMissingError,
    TooLargeError,
    UsageError,
    WriteConflictError,
)

pytestmark = pytest.mark.anyio


class Best(BaseModel):
    value: float
    by: str = ""


best = Scope("best", Best)
recorded = Scope("recorded", Best, changes=True)
counters = Scope("counters", int)
both = pytest.mark.parametrize("scope", [best, recorded], ids=["plain", "recorded"])


@both
async def test_what_was_put_is_what_is_read(serve, scope):
    async with serve() as client:
        store = client.state(scope)
        await store.put("mar11.a", Best(value=1.5, by="gpu-1"))
        entry = await store.get("mar11.a")
        assert (entry.key, entry.value) == ("mar11.a", Best(value=1.5, by="gpu-1"))
        assert entry.revision > 0


@both
async def test_an_absent_and_a_deleted_key_are_missing(serve, scope):
    async with serve() as client:
        store = client.state(scope)
        with pytest.raises(KeyMissingError, match="nothing-here"):
            await store.get("nothing-here")
        await store.put("k", Best(value=1))
        await store.delete("k")
        assert await store.find("k") is None
        await store.delete("k")


@both
async def test_create_wants_the_key_to_be_free(serve, scope):
    async with serve() as client:
        store = client.state(scope)
        await store.create("k", Best(value=1))
        with pytest.raises(ConflictError, match="k"):
            await store.create("k", Best(value=2))
        await store.delete("k")
        await store.create("k", Best(value=3))
        assert (await store.get("k")).value.value == 3


@both
async def test_replace_refuses_what_was_read_before_another_write(serve, scope):
    async with serve() as client:
        store = client.state(scope)
        await store.put("k", Best(value=1))
        entry = await store.get("k")
        await store.replace(entry, Best(value=2))
        with pytest.raises(WriteConflictError):
            await store.replace(entry, Best(value=3))
        assert (await store.get("k")).value.value == 2


@both
async def test_entries_are_those_below_the_prefix(serve, scope):
    async with serve() as client:
        store = client.state(scope)
        for n, key in enumerate(["a", "a.x", "a.y", "ab.z", "gone"]):
            await store.put(key, Best(value=n))
        await store.delete("gone")
        assert [entry.key for entry in await store.entries()] == ["a", "a.x", "a.y", "ab.z"]
        assert [entry.key for entry in await store.entries("a")] == ["a.x", "a.y"]
        assert await store.entries("nothing") == []
        assert [one.key for one in await store.many(["a.y", "a", "gone", "b"])] == ["a", "a.y"]
        assert await store.many([]) == []


async def test_more_keys_than_the_server_gives_at_once_are_all_there(serve):
    async with serve() as client:
        store = client.state(counters)
        async with anyio.create_task_group() as tasks:
            for n in range(1150):
                tasks.start_soon(store.put, f"k.{n}", n)
        entries = await store.entries()
        assert sorted(entry.value for entry in entries) == list(range(1150))
        assert len(await store.entries("k")) == 1150
        assert len(await store.many([f"k.{n}" for n in range(1150)])) == 1150
        seen = set()
        with anyio.fail_after(10):
            async for entry in store.watch():
                seen.add(entry.value)
                if len(seen) == 1150:
                    break


@pytest.mark.parametrize(
    "key", ["", ".", "a..b", ".a", "a.", "a b", "a*", "a.>", "ä", "a:b", "x" * 257]
)
async def test_a_key_that_the_server_cannot_hold_is_refused(serve, key):
    async with serve() as client:
        with pytest.raises(UsageError, match="key"):
            await client.state(counters).put(key, 1)


async def test_a_value_that_does_not_fit_the_model_is_said_to_be_unreadable(serve):
    async with serve() as client:
        await client.state(Scope("best", str)).put("k", "text")
        with pytest.raises(InternalError, match="best"):
            await client.state(best).get("k")


async def test_a_value_above_the_servers_limit_is_refused_and_harms_nothing(serve):
    async with serve() as client:
        store = client.state(best)
        with pytest.raises(TooLargeError):
            await store.put("k", Best(value=1, by="x" * 1_100_000))
        await store.put("k", Best(value=1, by="x" * 1_000_000))
        assert len((await store.get("k")).value.by) == 1_000_000


async def test_change_starts_from_the_default(serve):
    async with serve() as client:
        store = client.state(counters)
        assert await store.change("n", 10, lambda n: n + 1) == 11
        assert await store.change("n", 10, lambda n: n + 1) == 12


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(writers=st.lists(st.integers(1, 6), min_size=2, max_size=5), changes=st.booleans())
async def test_change_never_loses_an_update(nats, space, serve, writers, changes):
    scope = Scope("counters", list[int], changes=changes)
    async with serve() as client, Client.connect(nats, namespace=space) as other:
        await client.state(scope).delete("n")

        async def write(number: int, times: int) -> None:
            store = (client if number % 2 else other).state(scope)
            for _ in range(times):
                await store.change("n", [], lambda seen: [*seen, number])
                await anyio.sleep(0)

        async with anyio.create_task_group() as tasks:
            for number, times in enumerate(writers):
                tasks.start_soon(write, number, times)
        final = (await client.state(scope).get("n")).value
    assert sorted(final) == sorted(n for n, times in enumerate(writers) for _ in range(times))


@both
async def test_a_watch_gives_what_is_there_then_every_later_change(serve, scope):
    async with serve() as client:
        store = client.state(scope)
        await store.put("a.1", Best(value=1))
        await store.put("a.2", Best(value=2))
        await store.put("b.1", Best(value=3))
        await store.put("a.old", Best(value=0))
        await store.delete("a.old")
        watch = store.watch("a")
        with anyio.fail_after(10):
            there = [await anext(watch), await anext(watch)]
            assert [entry.key for entry in there] == ["a.1", "a.2"]
            for n in range(20):
                await store.put("a.1", Best(value=n))
                entry = await anext(watch)
                assert not isinstance(entry, Gone)
                assert entry.value.value == n
                assert entry.revision == (await store.get("a.1")).revision
            await store.delete("a.1")
            gone = await anext(watch)
            assert isinstance(gone, Gone)
            assert gone.key == "a.1"
        await watch.aclose()


async def test_a_watch_sees_a_transaction_only_once_it_is_committed(serve):
    async with serve() as client:
        store = client.state(best)
        await store.put("a", Best(value=0))
        watch = store.watch()
        with anyio.fail_after(10):
            await anext(watch)
            for n in range(1, 20):
                doomed = client.transaction()
                doomed.put(best, "a", Best(value=-1))
                doomed.replace(best, "b", 999_999, Best(value=-1))
                with pytest.raises(WriteConflictError):
                    await doomed.commit()
                async with client.transaction() as tx:
                    tx.put(best, "a", Best(value=n))
                    tx.put(best, "c", Best(value=n))
                got = [await anext(watch), await anext(watch)]
                assert {(entry.key, entry.value.value) for entry in got} == {("a", n), ("c", n)}
        await watch.aclose()


async def test_a_slow_watcher_gets_the_latest_of_each_key(serve):
    async with serve() as client:
        store = client.state(counters)
        watch = store.watch()
        await store.put("a", 0)
        with anyio.fail_after(10):
            assert (await anext(watch)).value == 0
            for n in range(1, 50):
                await store.put("a", n)
            last = 0
            while last != 49:
                entry = await anext(watch)
                assert entry.value > last
                last = entry.value
        await watch.aclose()


async def test_objects_are_found_by_their_hash(serve):
    from trine.errors import NotFoundError

    async with serve(App("empty")) as client:
        content = bytes(range(256)) * 4096
        digest = await client.objects.put(content)
        assert await client.objects.put(content) == digest
        assert await client.objects.get(digest) == content
        with pytest.raises(NotFoundError):
            await client.objects.get("0" * 64)
