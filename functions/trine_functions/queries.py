"""Reading the ledger: history, best, near-misses, one experiment."""

from typing import Any

from pydantic import BaseModel, Field

from trine import App, Client, Context
from trine.errors import NotFoundError
from trine_functions.contracts import (
    Experiment,
    Status,
    Tag,
    TagName,
    best,
    experiments,
    lineage,
    near_misses,
    tags,
)
from trine_triggers import Http

app = App("queries")


async def of_tag(client: Client, tag: str) -> list[Experiment]:
    """Return every experiment of *tag*, by the time it started."""
    links = await client.state(lineage).entries(tag)
    found = await client.state(experiments).many([link.value.experiment_id for link in links])
    return sorted((entry.value for entry in found), key=lambda one: (one.started_at, one.id))


async def known_tag(client: Client, tag: str) -> Tag:
    """Return the tag; `NotFoundError` when there is none."""
    entry = await client.state(tags).find(tag)
    if entry is None:
        raise NotFoundError(f"no tag {tag!r}", tag=tag)
    return entry.value


async def known_experiment(client: Client, id: str) -> Experiment:
    """Return the experiment; `NotFoundError` when there is none."""
    entry = await client.state(experiments).find(id)
    if entry is None:
        raise NotFoundError(f"no experiment {id!r}", experiment_id=id)
    return entry.value


class ByTag(BaseModel):
    tag: TagName


class HistoryOf(ByTag):
    status: Status | None = None
    limit: int | None = Field(default=None, ge=1)


@app.on(Http("POST", "/api/experiment/history"))
@app.function("experiment.history")
async def history(ctx: Context, request: HistoryOf) -> dict[str, Any]:
    """Return the experiments of a tag, the oldest first; with *limit* the newest so many."""
    found = await of_tag(ctx.client, request.tag)
    chosen = [one for one in found if request.status in (None, one.status)]
    shown = chosen[-request.limit :] if request.limit else chosen
    return {
        "experiments": [one.model_dump(mode="json") for one in shown],
        "total": len(chosen),
    }


@app.on(Http("POST", "/api/experiment/best"))
@app.function("experiment.best")
async def best_of(ctx: Context, request: ByTag) -> dict[str, Any]:
    """Return the best result of a tag and its experiment."""
    leader = await ctx.state(best).find(request.tag)
    if leader is None:
        raise NotFoundError(f"tag {request.tag!r} has no best yet", tag=request.tag)
    record = await ctx.state(experiments).get(leader.value.experiment_id)
    return {
        "best": leader.value.model_dump(mode="json"),
        "experiment": record.value.model_dump(mode="json"),
    }


class NearMissesOf(ByTag):
    limit: int = Field(default=20, ge=1)


@app.on(Http("POST", "/api/experiment/near-misses"))
@app.function("experiment.near_misses")
async def near_misses_of(ctx: Context, request: NearMissesOf) -> dict[str, Any]:
    """Return what was almost kept, the closest first."""
    found = [entry.value for entry in await ctx.state(near_misses).entries(request.tag)]
    found.sort(key=lambda one: one.delta)
    return {
        "near_misses": [one.model_dump(mode="json") for one in found[: request.limit]],
        "total": len(found),
    }


class ById(BaseModel):
    experiment_id: str


@app.on(Http("POST", "/api/experiment/get"))
@app.function("experiment.get")
async def get(ctx: Context, request: ById) -> dict[str, Any]:
    """Return one experiment."""
    found = await known_experiment(ctx.client, request.experiment_id)
    return found.model_dump(mode="json")
