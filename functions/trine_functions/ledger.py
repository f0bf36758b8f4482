"""The ledger: experiments are registered, completed and crashed, each in one transaction."""

import uuid
from typing import Any

from pydantic import BaseModel, Field

from trine import App, Context, Retry, Transaction
from trine.errors import BadRequestError, ConflictError, NotFoundError
from trine_functions.contracts import (
    Best,
    Category,
    Crash,
    CrashClass,
    Experiment,
    ExperimentCompleted,
    ExperimentFinished,
    Link,
    Metrics,
    NearMiss,
    Status,
    Tag,
    TagName,
    Target,
    best,
    crashes,
    experiments,
    lineage,
    near_misses,
    now,
    tags,
)
from trine_triggers import Event, Http

app = App("ledger")

NEAR_MISS = 0.002  # worse by less than this: worth another look
ABORT_AFTER = 3  # crashes in a row
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


async def conclude(
    ctx: Context,
    experiment_id: str,
    metrics: Metrics | None,
    error: str = "",
    crash_class: CrashClass = "error",
    *,
    attempt: int | None = None,
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """End an experiment, by result or by crash, and move everything that depends on it."""
    async with ctx.transaction() as tx:
        record = await tx.find(experiments, experiment_id)
        if record is None:
            raise NotFoundError(f"no experiment {experiment_id!r}", experiment_id=experiment_id)
        if attempt is not None and attempt != record.attempt:
            raise ConflictError(
                f"attempt {attempt} of {experiment_id} lost it to attempt {record.attempt}",
                experiment_id=experiment_id,
            )
        if record.status != "running":
            return _again(record, metrics, attempt)
        tag = await tx.get(tags, record.tag)
        leader = await tx.find(best, record.tag)
        record = record.model_copy(
            update={**(facts or {}), "finished_at": now(), "phase": "finished"}
        )
        if metrics is not None:
            event, verdict = _result(tx, tag, leader, record, metrics)
        else:
            event, verdict = _crash(tx, tag, leader, record, error, crash_class)
        tx.emit(event, id=f"{record.id}-{record.attempt}")
    return verdict


def _again(record: Experiment, metrics: Metrics | None, attempt: int | None) -> dict[str, Any]:
    """The reply of before, if this is the call of before; else a conflict that shows both."""
    crashed = record.status == "crash"
    same = crashed if metrics is None else not crashed and metrics.val_bpb == record.val_bpb
    if not same or record.verdict is None or (attempt is None and record.attempt > 0):
        raise ConflictError(
            f"{record.id} has ended as {record.status} already",
            experiment_id=record.id,
            recorded=record.verdict,
            refused={"val_bpb": metrics.val_bpb} if metrics else {"status": "crash"},
        )
    return record.verdict


def _result(
    tx: Transaction, tag: Tag, leader: Best | None, record: Experiment, metrics: Metrics
) -> tuple[ExperimentCompleted, dict[str, Any]]:
    value = metrics.val_bpb
    improved = leader is None or value < leader.val_bpb
    delta = 0.0 if leader is None else leader.val_bpb - value
    best_value = value if improved or leader is None else leader.val_bpb
    status: Status = "keep" if improved else "discard"
    verdict = {
        "experiment_id": record.id,
        "status": status,
        "val_bpb": value,
        "improved": improved,
        "delta": delta,
        "best_val_bpb": best_value,
        "action": "keep_commit" if improved else "git_reset",
    }
    record = record.model_copy(
        update={**metrics.model_dump(), "status": status, "verdict": verdict}
    )
    tx.put(experiments, record.id, record)
    if improved:
        leading = Best(
            experiment_id=record.id,
            val_bpb=value,
            commit_sha=record.commit_sha,
            updated_at=now(),
        )
        tx.put(best, tag.name, leading)
    elif -delta < NEAR_MISS:
        tx.put(near_misses, f"{tag.name}.{record.id}", _near_miss(record, value, delta))
    count = "kept_experiments" if improved else "discarded_experiments"
    changed = {
        "best_val_bpb": best_value,
        "consecutive_crashes": 0,
        count: getattr(tag, count) + 1,
    }
    tx.put(tags, tag.name, tag.model_copy(update=changed))
    event = ExperimentCompleted(
        experiment_id=record.id,
        tag=tag.name,
        status=status,
        val_bpb=value,
        improved=improved,
        delta=delta,
        best_val_bpb=best_value,
    )
    return event, verdict


def _near_miss(record: Experiment, value: float, delta: float) -> NearMiss:
    return NearMiss(
        experiment_id=record.id,
        tag=record.tag,
        val_bpb=value,
        delta=-delta,
        hypothesis=record.hypothesis,
        category=record.category,
        diff_summary=record.diff_summary,
    )


def _crash(
    tx: Transaction,
    tag: Tag,
    leader: Best | None,
    record: Experiment,
    error: str,
    crash_class: CrashClass,
) -> tuple[ExperimentCompleted, dict[str, Any]]:
    in_a_row = tag.consecutive_crashes + 1
    verdict = {
        "experiment_id": record.id,
        "status": "crash",
        "consecutive_crashes": in_a_row,
        "should_abort": in_a_row >= ABORT_AFTER,
        "action": "git_reset",
    }
    changed = {
        "status": "crash",
        "error": error,
        "crash_class": crash_class,
        "verdict": verdict,
    }
    tx.put(experiments, record.id, record.model_copy(update=changed))
    what = Crash(
        experiment_id=record.id, tag=tag.name, error=error, crash_class=crash_class, at=now()
    )
    tx.put(crashes, f"{tag.name}.{record.id}", what)
    counters = {
        "crashed_experiments": tag.crashed_experiments + 1,
        "consecutive_crashes": in_a_row,
    }
    tx.put(tags, tag.name, tag.model_copy(update=counters))
    event = ExperimentCompleted(
        experiment_id=record.id,
        tag=tag.name,
        status="crash",
        val_bpb=None,
        improved=False,
        delta=None,
        best_val_bpb=leader.val_bpb if leader else None,
    )
    return event, verdict
