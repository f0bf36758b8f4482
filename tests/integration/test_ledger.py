"""The ledger's contract: what an agent that trains by itself relies on."""

import json
from typing import Any

import anyio
import pytest

from trine.errors import BadRequestError, ConflictError, InvalidInputError, NotFoundError

pytestmark = pytest.mark.anyio
PLAN = {
    "commit_sha": "abcdef0123",
    "description": "try",
    "hypothesis": "it helps",
    "category": "optimizer",
    "diff_summary": "LR",
}


async def begin(client: Any, tag: str, **more: Any) -> str:
    said = await client.call("experiment.register", {"tag": tag, **PLAN, **more})
    assert said["status"] == "registered"
    return str(said["experiment_id"])


async def test_an_agent_registers_completes_and_gets_the_old_replies(lab: Any) -> None:
    async with lab() as it:
        call = it.client.call
        made = await call("experiment.setup", {"tag": "mar11"})
        assert made["branch"] == "autoresearch/mar11"
        assert made["tag"]["total_experiments"] == 0
        first = await begin(it.client, "mar11")
        done = await call("experiment.complete", {"experiment_id": first, "val_bpb": 1.0})
        assert done == {
            "experiment_id": first,
            "status": "keep",
            "val_bpb": 1.0,
            "improved": True,
            "delta": 0.0,
            "best_val_bpb": 1.0,
            "action": "keep_commit",
        }
        second = await begin(it.client, "mar11", parent_id=first)
        worse = await call("experiment.complete", {"experiment_id": second, "val_bpb": 1.001})
        assert worse["action"] == "git_reset"
        assert worse["delta"] == pytest.approx(-0.001)
        near = await call("experiment.near_misses", {"tag": "mar11"})
        assert [one["experiment_id"] for one in near["near_misses"]] == [second]
        third = await begin(it.client, "mar11")
        better = await call("experiment.complete", {"experiment_id": third, "val_bpb": 0.9})
        assert better["delta"] == pytest.approx(0.1)
        leader = await call("experiment.best", {"tag": "mar11"})
        assert leader["best"]["experiment_id"] == third
        assert leader["experiment"]["val_bpb"] == 0.9
        history = await call("experiment.history", {"tag": "mar11", "limit": 2})
        assert [one["id"] for one in history["experiments"]] == [second, third]
        assert history["total"] == 3


async def test_three_crashes_in_a_row_ask_to_abort_and_a_result_resets_the_count(lab: Any) -> None:
    async with lab() as it:
        await it.client.call("experiment.setup", {"tag": "c"})
        said = []
        for _ in range(3):
            one = await begin(it.client, "c")
            report = {"experiment_id": one, "error": "OOM"}
            said.append(await it.client.call("experiment.crash", report))
        assert [one["should_abort"] for one in said] == [False, False, True]
        one = await begin(it.client, "c")
        await it.client.call("experiment.complete", {"experiment_id": one, "val_bpb": 1.0})
        one = await begin(it.client, "c")
        last = await it.client.call("experiment.crash", {"experiment_id": one, "error": "x"})
        assert last["consecutive_crashes"] == 1


async def test_a_repeated_call_gets_the_same_reply_and_a_contradicting_one_409(lab: Any) -> None:
    async with lab() as it:
        await it.client.call("experiment.setup", {"tag": "r"})
        one = await begin(it.client, "r")
        request = {"experiment_id": one, "val_bpb": 1.0}
        first = await it.client.call("experiment.complete", request)
        assert await it.client.call("experiment.complete", request) == first
        with pytest.raises(ConflictError, match="ended as keep"):
            await it.client.call("experiment.complete", {"experiment_id": one, "val_bpb": 0.5})
        with pytest.raises(ConflictError):
            await it.client.call("experiment.crash", {"experiment_id": one, "error": "late"})
        summary = await it.client.call("report.summary", {"tag": "r"})
        assert summary["stats"]["kept"] == 1


async def test_of_many_simultaneous_setups_one_succeeds(lab: Any) -> None:
    async with lab() as it:
        outcomes: list[str] = []

        async def setup() -> None:
            try:
                await it.client.call("experiment.setup", {"tag": "one"})
                outcomes.append("made")
            except BadRequestError as error:
                outcomes.append(error.details["existing"]["name"] + " exists")

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(setup)
        assert sorted(outcomes) == ["made"] + ["one exists"] * 7


async def test_counters_are_exact_and_best_is_the_minimum_under_concurrency(lab: Any) -> None:
    async with lab() as it:
        await it.client.call("experiment.setup", {"tag": "many"})
        values = [1.0 + ((7 * i) % 20) / 100 for i in range(20)]

        async def one(value: float) -> None:
            id = await begin(it.client, "many")
            await it.client.call("experiment.complete", {"experiment_id": id, "val_bpb": value})

        async with anyio.create_task_group() as tasks:
            for value in values:
                tasks.start_soon(one, value)
        tags = (await it.client.call("report.tags"))["tags"]
        tag = next(one for one in tags if one["name"] == "many")
        assert tag["total_experiments"] == 20
        assert tag["kept_experiments"] + tag["discarded_experiments"] == 20
        best = (await it.client.call("experiment.best", {"tag": "many"}))["best"]
        assert best["val_bpb"] == min(values)
        # However the calls interleaved: what was kept was below everything kept before it.
        history = (await it.client.call("experiment.history", {"tag": "many"}))["experiments"]
        kept = [e for e in history if e["status"] == "keep"]
        in_order = sorted(kept, key=lambda e: e["verdict"]["best_val_bpb"], reverse=True)
        assert all(e["val_bpb"] == e["verdict"]["best_val_bpb"] for e in in_order)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "0", '"0.5"', "null", "true"])
async def test_an_absurd_metric_is_refused_and_changes_nothing(lab: Any, value: str) -> None:
    async with lab() as it:
        await it.client.call("experiment.setup", {"tag": "m"})
        one = await begin(it.client, "m")
        body = f'{{"experiment_id": "{one}", "val_bpb": {value}}}'.encode()
        with pytest.raises(InvalidInputError, match="val_bpb"):
            await it.client.call("experiment.complete", body)
        record = await it.client.call("experiment.get", {"experiment_id": one})
        assert record["status"] == "running"


async def test_what_does_not_exist_is_404_and_a_missing_field_is_named(lab: Any) -> None:
    async with lab() as it:
        call = it.client.call
        with pytest.raises(NotFoundError, match="no tag 'nope'"):
            await begin(it.client, "nope")
        with pytest.raises(NotFoundError):
            await call("experiment.complete", {"experiment_id": "exp-0", "val_bpb": 1.0})
        with pytest.raises(NotFoundError):
            await call("experiment.best", {"tag": "nope"})
        with pytest.raises(InvalidInputError, match="tag"):
            await call("experiment.setup", {})
        await call("experiment.setup", {"tag": "self"})
        with pytest.raises(BadRequestError, match="no target"):
            await it.submit("self", knobs={"LR": 1})


async def test_the_pool_leases_each_device_once(lab: Any) -> None:
    async with lab() as it:
        call = it.client.call
        for index in range(2):
            gpu = {"gpu_id": f"g{index}", "gpu_index": index, "gpu_name": "X", "vram_mb": 80000}
            await call("pool.register_gpu", gpu)
        said: list[Any] = []

        async def acquire(name: str) -> None:
            said.append(await call("pool.acquire", {"experiment_id": name}))

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(acquire, f"e{number}")
        taken = [one["gpu_id"] for one in said if one["acquired"]]
        assert sorted(taken) == ["g0", "g1"]
        refused = next(one for one in said if not one["acquired"])
        assert refused["gpu_id"] is None
        assert refused["reason"]
        with pytest.raises(BadRequestError):
            await call("pool.release", {"gpu_id": "g0", "experiment_id": "somebody-else"})
        assert await call("pool.release", {"gpu_id": "g0"}) == {"released": True}
        listed = await call("pool.list")
        assert (listed["total"], listed["idle"], listed["training"]) == (2, 1, 1)
        assert await call("pool.heartbeat", {"gpu_id": "g1"}) == {"ok": True}
        with pytest.raises(NotFoundError):
            await call("pool.heartbeat", {"gpu_id": "g9"})
        assert await call("pool.deregister", {"gpu_id": "g1"}) == {"deregistered": True}


async def test_a_lost_lease_frees_the_device_and_records_the_loss(lab: Any) -> None:
    from trine import wire

    async with lab() as it:
        call = it.client.call
        gpu = {"gpu_id": "g", "gpu_index": 0, "gpu_name": "X", "vram_mb": 1}
        await call("pool.register_gpu", gpu)
        await call("experiment.setup", {"tag": "l"})
        one = await begin(it.client, "l", gpu_id="g")
        await call("pool.acquire", {"experiment_id": one})
        bus = it.client.bus  # let the lease run out in a second instead of 900
        await bus.store(bus.names.lease("gpu.g"), b"{}", {wire.TTL: "1s"})
        record = await it.ended(one, seconds=15)
        assert (record.status, record.crash_class) == ("crash", "lost")
        assert (await call("pool.list"))["idle"] == 1


async def test_a_strategy_set_by_hand_holds(lab: Any) -> None:
    async with lab() as it:
        call = it.client.call
        await call("experiment.setup", {"tag": "s"})
        assert (await call("search.strategy", {"tag": "s"}))["mode"] == "explore"
        request = {"tag": "s", "mode": "ablation", "reason": "a person says so"}
        await call("search.set_strategy", request)
        one = await begin(it.client, "s")
        await call("experiment.complete", {"experiment_id": one, "val_bpb": 1.0})
        assert (await call("search.adapt", {"tag": "s"}))["mode"] == "ablation"
        suggested = await call("search.suggest_direction", {"tag": "s"})
        assert suggested["category_stats"] == {"optimizer": {"total": 1, "kept": 1}}
        assert suggested["suggestions"]
        assert json.dumps(suggested)
