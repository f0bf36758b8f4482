"""Many timers on one."""

import anyio
import pytest

from trine.transport.deadlines import Deadlines

pytestmark = pytest.mark.anyio


async def test_each_is_called_in_the_order_of_its_time():
    deadlines = Deadlines()
    called: list[str] = []
    done = anyio.Event()
    deadlines.add(0.03, called.append, "third")
    deadlines.add(0.01, called.append, "first")
    deadlines.add(0.02, called.append, "second")
    deadlines.add(0.04, lambda _: done.set(), None)
    with anyio.fail_after(5):
        await done.wait()
    assert called == ["first", "second", "third"]
    assert len(deadlines) == 0


async def test_what_was_discarded_is_not_called():
    deadlines = Deadlines()
    called: list[str] = []
    done = anyio.Event()
    kept = deadlines.add(0.01, called.append, "discarded")
    deadlines.add(0.02, lambda _: done.set(), None)
    deadlines.discard(kept)
    deadlines.discard(kept)
    with anyio.fail_after(5):
        await done.wait()
    assert called == []


async def test_one_may_be_added_by_another_and_one_that_raises_stops_none():
    deadlines = Deadlines()
    done = anyio.Event()

    def again(left: int) -> None:
        if left:
            deadlines.add(0, again, left - 1)
            raise ValueError(left)
        done.set()

    later = anyio.Event()
    deadlines.add(0, again, 3)
    deadlines.add(0.05, lambda _: later.set(), None)
    with anyio.fail_after(5):
        await done.wait()
        await later.wait()


async def test_memory_is_bounded_by_what_is_waited_for():
    deadlines = Deadlines()
    waiting = [deadlines.add(3600, print, n) for n in range(10)]
    for n in range(10_000):
        deadlines.discard(deadlines.add(3600, print, n))
    assert len(deadlines) == 10
    assert len(deadlines._heap) <= 4 * len(waiting) + 65
    deadlines.close()
    assert (len(deadlines), len(deadlines._heap)) == (0, 0)
