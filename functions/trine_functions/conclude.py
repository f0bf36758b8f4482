"""Ending an experiment: one transaction that moves everything which depends on it."""

from typing import Any

from trine import Context, Transaction
from trine.errors import ConflictError, NotFoundError
from trine_functions.contracts import (
    Best,
    Crash,
    CrashClass,
    Experiment,
    ExperimentCompleted,
    Metrics,
    NearMiss,
    Status,
    Tag,
    best,
    crashes,
    experiments,
    near_misses,
    now,
    tags,
)

NEAR_MISS = 0.002  # worse by less than this: worth another look
ABORT_AFTER = 3  # crashes in a row


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
