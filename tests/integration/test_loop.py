"""The autonomous loop, with real workers on a target whose truth is known."""

import signal
from typing import Any

import anyio
import pytest

from trine import Entry
from trine.errors import BadRequestError, ConflictError, NotFoundError
from trine_functions.contracts import LoopState, loops

pytestmark = pytest.mark.anyio
WORKER = ("worker", "gpu", "--devices", "cpu", "--quiet")


async def until(client: Any, tag: str, status: str, seconds: float = 50) -> LoopState:
    with anyio.fail_after(seconds):
        async for entry in client.state(loops).watch():
            if isinstance(entry, Entry) and entry.key == tag and entry.value.status == status:
                return entry.value
    raise AssertionError("unreachable")


async def test_the_loop_improves_the_target_and_ends_by_itself(lab: Any, trine: Any) -> None:
    cache = str(trine.directory)
    async with (
        lab() as it,
        trine.start(*WORKER, TRINE_CACHE=cache),
        trine.start(*WORKER, TRINE_CACHE=cache),
    ):
        await it.slots(2)
        tag = await it.tag("self")
        started = await it.client.call("loop.start", {"tag": tag, "experiments": 10, "parallel": 2})
        assert started["status"] == "running"
        await until(it.client, tag, "finished")
        history = (await it.client.call("experiment.history", {"tag": tag}))["experiments"]
        assert len(history) == 10
        assert all(one["status"] in ("keep", "discard") for one in history)
        assert {one["worker"] for one in history} == {
            info["worker"] for info in (await it.client.call("pool.list"))["workers"]
        }, "both workers had work"
        baseline = next(one["val_bpb"] for one in history if one["operator"] == "baseline")
        best = (await it.client.call("experiment.best", {"tag": tag}))["best"]["val_bpb"]
        assert best < baseline - 0.05
        assert all(one["hypothesis"] for one in history)
        status = await it.client.call("loop.status", {"tag": tag})
        assert (status["done"], status["remaining"], status["in_flight"]) == (10, 0, [])


async def test_pause_resume_and_a_new_total(lab: Any, trine: Any) -> None:
    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
        tag = await it.tag("paused")
        await it.client.call("loop.start", {"tag": tag, "experiments": 6, "parallel": 1})
        with pytest.raises(ConflictError, match="is running"):
            await it.client.call("loop.start", {"tag": tag})
        assert (await it.client.call("loop.pause", {"tag": tag}))["status"] == "paused"
        assert (await it.client.call("loop.pause", {"tag": tag}))["status"] == "paused"
        await it.client.call("loop.resume", {"tag": tag, "experiments": 4})
        await until(it.client, tag, "finished")
        status = await it.client.call("loop.status", {"tag": tag})
        assert status["proposed"] == 4
        with pytest.raises(ConflictError, match="is finished"):
            await it.client.call("loop.pause", {"tag": tag})


async def test_the_loop_goes_on_though_every_change_crashes(lab: Any, trine: Any) -> None:
    source = (
        "LR = 0.1  # optimizer: 0.001..1.0 log\n"
        "if LR != 0.1: raise SystemExit(1)\nprint('val_bpb: 1.0')\n"
    )
    async with lab() as it, trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
        tag = await it.tag("fragile", source)
        await it.client.call("loop.start", {"tag": tag, "experiments": 6})
        await until(it.client, tag, "finished")
        summary = await it.client.call("report.summary", {"tag": tag})
        assert summary["stats"]["crashed"] == 4
        assert summary["best"]["val_bpb"] == 1.0


async def test_two_replicas_never_propose_more_than_there_are_places(lab: Any, trine: Any) -> None:
    async with lab() as it, lab(), trine.start(*WORKER, TRINE_CACHE=str(trine.directory)):
        tag = await it.tag("replicas")
        await it.client.call("loop.start", {"tag": tag, "experiments": 8, "parallel": 1})
        await until(it.client, tag, "finished")
        history = (await it.client.call("experiment.history", {"tag": tag}))["experiments"]
        assert len(history) == 8
        knobs = [tuple(sorted(one["knobs"].items())) for one in history[2:]]
        assert len(set(knobs)) == len(knobs), "nothing was proposed twice"


async def test_a_loop_needs_a_target_and_an_unknown_tag_is_404(lab: Any) -> None:
    async with lab() as it:
        await it.client.call("experiment.setup", {"tag": "none"})
        with pytest.raises(BadRequestError, match="no target"):
            await it.client.call("loop.start", {"tag": "none"})
        for verb in ("status", "pause", "stop", "resume"):
            with pytest.raises(NotFoundError, match="no loop"):
                await it.client.call(f"loop.{verb}", {"tag": "none"})


async def test_a_worker_killed_in_a_loop_costs_no_experiment(lab: Any, trine: Any) -> None:
    cache = str(trine.directory)
    async with (
        lab() as it,
        trine.start(*WORKER, TRINE_CACHE=cache),
        trine.start(*WORKER, TRINE_CACHE=cache) as victim,
    ):
        await it.slots(2)
        tag = await it.tag("robust", budget_seconds=0.5)
        await it.client.call("loop.start", {"tag": tag, "experiments": 6, "parallel": 2})
        status = await it.client.call("loop.status", {"tag": tag})
        flying = [one["experiment_id"] for one in status["in_flight"]]
        for one in flying:
            await it.until(one, lambda record: record.attempt > 0)
        victim.signal(signal.SIGKILL)
        await until(it.client, tag, "finished")
        history = (await it.client.call("experiment.history", {"tag": tag}))["experiments"]
        assert len(history) == 6
        assert all(one["status"] in ("keep", "discard") for one in history)
        assert max(one["attempt"] for one in history) == 2, "the killed one ran again"
