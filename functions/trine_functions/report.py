"""Reports on a tag: numbers, the table, a comparison of two, the chart, and one page of it all."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import anyio.to_process
from pydantic import BaseModel

from trine import App, Context
from trine_functions import chart, page
from trine_functions.contracts import (
    Experiment,
    Strategy,
    TagName,
    best,
    gpu_pool,
    strategy,
    tags,
)
from trine_functions.outcome import Outcome, in_order_of_finish, label, one_line
from trine_functions.queries import ByTag, known_experiment, known_tag, of_tag
from trine_triggers import Http

app = App("report")


@app.on(Http("POST", "/api/report/summary"))
@app.function("report.summary")
async def summary(ctx: Context, request: ByTag) -> dict[str, Any]:
    """Return the best result of a tag, its counts, the kept results in order, and the pool."""
    tag = await known_tag(ctx.client, request.tag)
    leader = await ctx.state(best).find(tag.name)
    chosen = await ctx.state(strategy).find(tag.name)
    gpus = [entry.value.status for entry in await ctx.state(gpu_pool).entries()]
    found = await of_tag(ctx.client, tag.name)
    outcome = Outcome.of(found)
    kept = [one for one in in_order_of_finish(found) if one.status == "keep"]
    seconds = sum(one.training_seconds or 0 for one in found)
    return {
        "tag": tag.name,
        "branch": tag.branch,
        "best": {
            "val_bpb": leader.value.val_bpb,
            "commit": leader.value.commit_sha,
            "experiment_id": leader.value.experiment_id,
        }
        if leader
        else None,
        "stats": {
            "total": outcome.total,
            "kept": outcome.kept,
            "discarded": outcome.discarded,
            "crashed": outcome.crashed,
            "running": outcome.running,
            "keep_rate": outcome.kept / outcome.total if outcome.total else 0,
        },
        "categories": dict(Counter(one.category for one in found)),
        "bpb_progression": [
            {
                "id": one.id,
                "val_bpb": one.val_bpb,
                "description": one.description,
                "category": one.category,
                "at": one.finished_at,
            }
            for one in kept
        ],
        "total_training_minutes": round(seconds / 60, 1),
        "strategy": (chosen.value if chosen else Strategy()).mode,
        "gpu_pool": {
            "total": len(gpus),
            "idle": gpus.count("idle"),
            "training": gpus.count("training"),
        },
        "headline": outcome.headline,
        "remark": outcome.remark,
    }


@app.on(Http("POST", "/api/report/tsv"))
@app.function("report.tsv")
async def tsv(ctx: Context, request: ByTag) -> dict[str, Any]:
    """Return what has ended as the table that autoresearch writes, by the time it started."""
    await known_tag(ctx.client, request.tag)
    rows = [_row(one) for one in await of_tag(ctx.client, request.tag) if one.status != "running"]
    header = "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
    return {"tsv": "\n".join([header, *rows]), "count": len(rows)}


def _row(one: Experiment) -> str:
    crashed = one.status == "crash"
    value = 0.0 if crashed else one.val_bpb or 0.0
    memory = 0.0 if crashed else (one.peak_vram_mb or 0.0) / 1024
    words = one_line(one.description)  # a tab or a line break in it would break the table
    return f"{one_line(one.commit_sha[:7])}\t{value:.6f}\t{memory:.1f}\t{one.status}\t{words}"


class Pair(BaseModel):
    experiment_a: str
    experiment_b: str


@app.on(Http("POST", "/api/report/diff"))
@app.function("report.diff")
async def diff(ctx: Context, request: Pair) -> dict[str, Any]:
    """Compare two experiments: b minus a, null where one of them has no such number."""
    a = await known_experiment(ctx.client, request.experiment_a)
    b = await known_experiment(ctx.client, request.experiment_b)
    return {
        "a": a.model_dump(mode="json"),
        "b": b.model_dump(mode="json"),
        "delta_bpb": _minus(b.val_bpb, a.val_bpb),
        "delta_params_m": _minus(b.num_params_m, a.num_params_m),
        "delta_vram_mb": _minus(b.peak_vram_mb, a.peak_vram_mb),
    }


def _minus(b: float | None, a: float | None) -> float | None:
    return None if a is None or b is None else b - a


@app.on(Http("GET", "/api/report/tags"))
@app.function("report.tags")
async def list_tags(ctx: Context) -> dict[str, Any]:
    """Return every tag, the newest first."""
    found = [entry.value for entry in await ctx.state(tags).entries()]
    found.sort(key=lambda one: (one.created_at, one.name), reverse=True)
    return {"tags": [one.model_dump(mode="json") for one in found]}


class ChartOf(BaseModel):
    tag: TagName
    format: chart.Format = "png"


@app.on(Http("POST", "/api/report/chart", timeout=60))
@app.function("report.chart")
async def draw(ctx: Context, request: ChartOf) -> dict[str, Any]:
    """Draw the staircase of a tag and return the object that holds the image."""
    await known_tag(ctx.client, request.tag)
    found = await of_tag(ctx.client, request.tag)
    image = await _chart(request.tag, found, request.format)
    return await _stored(ctx, image, chart.MEDIA_TYPES[request.format])


@app.on(Http("POST", "/api/report/html", timeout=60))
@app.function("report.html")
async def html(ctx: Context, request: ByTag) -> dict[str, Any]:
    """Write the report of a tag as one page that needs nothing else; return the object of it."""
    tag = await known_tag(ctx.client, request.tag)
    found = await of_tag(ctx.client, tag.name)
    image = await _chart(tag.name, found, "svg")
    text = page.render(tag, found, image, at=datetime.now(UTC))
    return await _stored(ctx, text.encode(), "text/html; charset=utf-8")


async def _chart(tag: str, found: list[Experiment], image_format: chart.Format) -> bytes:
    outcome = Outcome.of(found)
    title = f"{tag}: {outcome.headline}" if outcome.best is not None else tag
    many = f"{outcome.finished} experiment{'s' if outcome.finished != 1 else ''}"
    # In a helper process: matplotlib is large, slow to load, and holds the interpreter.
    return await anyio.to_process.run_sync(
        chart.render,
        chart_points(found),
        title,
        f"{many}: {outcome.noise}",
        image_format,
        cancellable=True,
    )


def chart_points(found: list[Experiment]) -> list[chart.Point]:
    """Return the points of the staircase, numbered in the order of finish."""
    by_id = {one.id: one for one in found}
    return [
        chart.Point(number, one.val_bpb, one.status, label(one, by_id.get(one.parent_id or "")))
        for number, one in enumerate(in_order_of_finish(found), 1)
    ]


async def _stored(ctx: Context, content: bytes, media_type: str) -> dict[str, Any]:
    digest = await ctx.client.objects.put(content)
    return {"object": digest, "media_type": media_type, "bytes": len(content)}
