"""The reports, against the contract that agents know and as objects that can be opened."""

import hashlib
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from trine import Client
from trine.errors import InvalidInputError, NotFoundError
from trine_functions import ledger, queries, report, search

pytestmark = pytest.mark.anyio
Serve = Callable[..., AbstractAsyncContextManager[Client]]
APPS = (ledger.app, queries.app, search.app, report.app)


async def begin(client: Client, tag: str, **more: Any) -> str:
    plan = {
        "commit_sha": "abcdef0123",
        "description": "try",
        "hypothesis": "<script>alert(1)</script>",
        "category": "optimizer",
        "diff_summary": "LR",
        **more,
    }
    said = await client.call("experiment.register", {"tag": tag, **plan})
    return str(said["experiment_id"])


async def a_tag(client: Client) -> list[str]:
    """Set up ``mar11`` with a keep, a better one, a worse one, a crash and one that runs."""
    await client.call("experiment.setup", {"tag": "mar11"})
    ids = []
    for value, memory, category in (
        (1.0, 2048.0, "other"),
        (0.9, 3072.0, "optimizer"),
        (1.1, None, "other"),
    ):
        one = await begin(client, "mar11", category=category, description="a\ttab\nand a line")
        result = {"val_bpb": value, "training_seconds": 90, "num_params_m": value * 10}
        await client.call(
            "experiment.complete", {"experiment_id": one, "peak_vram_mb": memory, **result}
        )
        ids.append(one)
    ids.append(await begin(client, "mar11"))
    await client.call("experiment.crash", {"experiment_id": ids[-1], "error": "boom"})
    ids.append(await begin(client, "mar11"))
    return ids


async def test_the_summary_has_every_field_of_the_contract(serve: Serve) -> None:
    async with serve(*APPS) as client:
        ids = await a_tag(client)
        said = await client.call("report.summary", {"tag": "mar11"})
        assert said["tag"] == "mar11"
        assert said["branch"] == "autoresearch/mar11"
        assert said["best"] == {"val_bpb": 0.9, "commit": "abcdef0123", "experiment_id": ids[1]}
        assert said["stats"] == {
            "total": 5, "kept": 2, "discarded": 1, "crashed": 1, "running": 1, "keep_rate": 0.4,
        }  # fmt: skip
        assert said["categories"] == {"other": 2, "optimizer": 3}
        assert [one["id"] for one in said["bpb_progression"]] == ids[:2]
        assert set(said["bpb_progression"][0]) == {"id", "val_bpb", "description", "category", "at"}
        assert said["total_training_minutes"] == 4.5
        assert said["strategy"] == "explore"
        assert said["gpu_pool"] == {"total": 0, "idle": 0, "training": 0}


async def test_the_table_has_one_row_for_each_that_ended(serve: Serve) -> None:
    async with serve(*APPS) as client:
        await a_tag(client)
        said = await client.call("report.tsv", {"tag": "mar11"})
        assert said["count"] == 4
        assert said["tsv"].split("\n") == [
            "commit\tval_bpb\tmemory_gb\tstatus\tdescription",
            "abcdef0\t1.000000\t2.0\tkeep\ta tab and a line",
            "abcdef0\t0.900000\t3.0\tkeep\ta tab and a line",
            "abcdef0\t1.100000\t0.0\tdiscard\ta tab and a line",
            "abcdef0\t0.000000\t0.0\tcrash\ttry",
        ]


async def test_two_experiments_are_compared_b_minus_a(serve: Serve) -> None:
    async with serve(*APPS) as client:
        ids = await a_tag(client)
        said = await client.call("report.diff", {"experiment_a": ids[0], "experiment_b": ids[1]})
        assert said["delta_bpb"] == pytest.approx(-0.1)
        assert said["delta_params_m"] == pytest.approx(-1)
        assert said["delta_vram_mb"] == pytest.approx(1024)
        known = {"id", "val_bpb", "description", "category", "num_params_m", "peak_vram_mb"}
        assert known <= set(said["a"]) & set(said["b"])
        said = await client.call("report.diff", {"experiment_a": ids[0], "experiment_b": ids[3]})
        assert said["delta_bpb"] is None
        with pytest.raises(NotFoundError):
            await client.call("report.diff", {"experiment_a": ids[0], "experiment_b": "exp-0"})


async def test_tags_come_newest_first(serve: Serve) -> None:
    async with serve(*APPS) as client:
        assert await client.call("report.tags") == {"tags": []}
        for tag in ("a", "c", "b"):
            await client.call("experiment.setup", {"tag": tag})
        said = await client.call("report.tags")
        assert [one["name"] for one in said["tags"]] == ["b", "c", "a"]
        assert {"branch", "created_at", "best_val_bpb", "total_experiments"} <= set(said["tags"][0])


async def test_a_report_on_no_tag_is_not_found(serve: Serve) -> None:
    async with serve(*APPS) as client:
        for name in ("summary", "tsv", "chart", "html"):
            with pytest.raises(NotFoundError):
                await client.call(f"report.{name}", {"tag": "never"})
        with pytest.raises(InvalidInputError):
            await client.call("report.chart", {"tag": "never", "format": "gif"})


async def test_chart_and_page_are_objects_drawn_by_another_process(serve: Serve) -> None:
    loaded = "matplotlib" in sys.modules
    async with serve(*APPS) as client:
        await a_tag(client)
        starts = {"png": b"\x89PNG", "svg": b"<?xml", "html": b"<!doctype html>"}
        for kind, start in starts.items():
            function = "report.html" if kind == "html" else "report.chart"
            request = {"tag": "mar11"} if kind == "html" else {"tag": "mar11", "format": kind}
            said = await client.call(function, request)
            content = await client.objects.get(said["object"])
            assert content.startswith(start)
            assert kind in said["media_type"]
            assert said["bytes"] == len(content)
            assert said["object"] == hashlib.sha256(content).hexdigest()
        assert b"<script" not in content
        assert b"10.00 % better" in content
    assert ("matplotlib" in sys.modules) == loaded


async def test_the_routes_are_those_of_the_contract() -> None:
    routes = {
        (binding.trigger.method, binding.trigger.path, binding.function.id)  # type: ignore[attr-defined]
        for binding in report.app.bindings
    }
    assert {
        ("POST", "/api/report/summary", "report.summary"),
        ("POST", "/api/report/tsv", "report.tsv"),
        ("POST", "/api/report/diff", "report.diff"),
        ("GET", "/api/report/tags", "report.tags"),
    } <= routes
