"""The ledger: experiments are registered, completed and crashed, each in one transaction."""

import uuid
from typing import Any

from pydantic import BaseModel, Field

from trine import App, Context, Retry, Transaction
from trine.errors import BadRequestError, ConflictError, NotFoundError
from trine_functions.conclude import conclude
from trine_functions.contracts import (
    Category,
    CrashClass,
    Experiment,
    ExperimentFinished,
    Link,
    Metrics,
    Tag,
    TagName,
    Target,
    experiments,
    lineage,
    now,
    tags,
)
from trine_triggers import Event, Http

app = App("ledger")

_RETRY = Retry(attempts=40)  # the counters of a tag are written by every experiment of it


def new_experiment_id() -> str:
    return f"exp-{uuid.uuid4().hex[:12]}"


class Setup(BaseModel):
    tag: TagName
    target: Target | None = None


@app.on(Http("POST", "/api/experiment/setup"))
@app.function("experiment.setup", retry=_RETRY)
async def setup(ctx: Context, request: Setup) -> dict[str, Any]:
    """Start a research line; exactly one of many simultaneous setups of a tag succeeds."""
    async with ctx.transaction() as tx:
        existing = await tx.find(tags, request.tag)
        if existing is not None:
            raise BadRequestError(
                f"tag {request.tag!r} exists", existing=existing.model_dump(mode="json")
            )
        tag = Tag(
            name=request.tag,
            branch=f"autoresearch/{request.tag}",
            created_at=now(),
            target=request.target,
        )
        tx.create(tags, request.tag, tag)
    return {"tag": tag.model_dump(mode="json"), "branch": tag.branch}


class Register(BaseModel):
    tag: TagName
    commit_sha: str = Field(max_length=200)
    description: str = Field(max_length=10_000)
    hypothesis: str = Field(max_length=10_000)
    category: Category
    diff_summary: str = Field(max_length=50_000)
    parent_id: str | None = None
    gpu_id: str = Field(default="gpu-0", max_length=200)


@app.on(Http("POST", "/api/experiment/register"))
@app.function("experiment.register", retry=_RETRY)
async def register(ctx: Context, request: Register) -> dict[str, Any]:
    """Record an experiment that an agent is about to run by itself."""
    async with ctx.transaction() as tx:
        record = Experiment(id=new_experiment_id(), started_at=now(), **request.model_dump())
        await enter(tx, record)
    return {"experiment_id": record.id, "status": "registered"}


async def enter(tx: Transaction, record: Experiment) -> Tag:
    """Write a new experiment and its place in the tag; `NotFoundError` for an unknown tag."""
    tag = await tx.find(tags, record.tag)
    if tag is None:
        raise NotFoundError(f"no tag {record.tag!r}", tag=record.tag)
    if record.parent_id is not None and await tx.find(experiments, record.parent_id) is None:
        raise NotFoundError(f"no experiment {record.parent_id!r}", parent_id=record.parent_id)
    tag = tag.model_copy(update={"total_experiments": tag.total_experiments + 1})
    tx.put(tags, tag.name, tag)
    tx.create(experiments, record.id, record)
    link = Link(experiment_id=record.id, parent_id=record.parent_id)
    tx.create(lineage, f"{tag.name}.{record.id}", link)
    return tag


class Complete(Metrics):
    experiment_id: str


@app.on(Http("POST", "/api/experiment/complete"))
@app.function("experiment.complete", retry=_RETRY)
async def complete(ctx: Context, result: Complete) -> dict[str, Any]:
    """Keep the result if it beats the best so far. The same call again gets the same reply."""
    metrics = Metrics.model_validate(result.model_dump(exclude={"experiment_id"}))
    return await conclude(ctx, result.experiment_id, metrics)


class CrashReport(BaseModel):
    experiment_id: str
    error: str = Field(max_length=200_000)
    crash_class: CrashClass = "error"


@app.on(Http("POST", "/api/experiment/crash"))
@app.function("experiment.crash", retry=_RETRY)
async def crash(ctx: Context, report: CrashReport) -> dict[str, Any]:
    """Record that an experiment failed. The same call again gets the same reply."""
    return await conclude(ctx, report.experiment_id, None, report.error, report.crash_class)


@app.on(Event("experiment.finished"))
@app.function("experiment.settle", retry=_RETRY)
async def settle(ctx: Context, report: ExperimentFinished) -> dict[str, Any]:
    """Record what a worker reports, once, and only from the attempt that holds the experiment."""
    try:
        return await conclude(
            ctx,
            report.experiment_id,
            report.metrics if report.outcome == "success" else None,
            report.error or report.outcome,
            report.crash_class or "error",
            attempt=report.attempt,
            facts={"gpu_id": report.gpu_id, "log": report.log},
        )
    except ConflictError as error:
        if error.retryable:
            raise
        ctx.log.warning("late_result_refused", experiment=report.experiment_id, why=error.message)
        return {"refused": error.message}
