"""Submitting: an experiment whose change the workers run."""

from typing import Any

from pydantic import BaseModel, Field

from trine import App, Context, Retry, Transaction
from trine.errors import BadRequestError, NotFoundError
from trine_functions import trees
from trine_functions.contracts import (
    TRAIN_QUEUE,
    Category,
    Experiment,
    KnobValue,
    Tag,
    TagName,
    TrainJob,
    experiments,
    now,
)
from trine_functions.ledger import enter, new_experiment_id
from trine_functions.queries import known_tag
from trine_triggers import Http

app = App("submit")


class Submit(BaseModel):
    """A change: knobs, whole files, or both, against the parent's tree or the tag's base."""

    tag: TagName
    knobs: dict[str, KnobValue] = {}
    files: dict[str, str] = {}
    hypothesis: str = Field(default="", max_length=10_000)
    description: str = Field(default="", max_length=10_000)
    category: Category = "other"
    parent_id: str | None = None


@app.on(Http("POST", "/api/experiment/submit"))
@app.function("experiment.submit", retry=Retry(attempts=40))
async def submit(ctx: Context, request: Submit) -> dict[str, Any]:
    """Queue an experiment for the workers: no GPU, checkout or shell is needed here."""
    tag = await known_tag(ctx.client, request.tag)
    base, inherited = await _start(ctx, tag, request.parent_id)
    assert tag.target is not None
    tree = await trees.changed(
        ctx.client, base, tag.target.editable, set_knobs=request.knobs, files=request.files
    )
    summary = [f"{name} = {value}" for name, value in request.knobs.items()]
    summary += [f"{path} replaced" for path in request.files]
    record = new_record(
        tag,
        tree,
        hypothesis=request.hypothesis,
        description=request.description or ", ".join(summary) or "no change",
        diff_summary=", ".join(summary),
        category=request.category,
        parent_id=request.parent_id,
        knobs={**inherited, **request.knobs},
        operator="agent",
    )
    async with ctx.transaction() as tx:
        await enter_and_enqueue(tx, record)
    return {"experiment_id": record.id, "status": "queued", "tree": tree}


async def _start(ctx: Context, tag: Tag, parent_id: str | None) -> tuple[str, dict[str, KnobValue]]:
    """Return the tree to change, and the knobs that it has already."""
    if tag.target is None:
        raise BadRequestError(
            f"tag {tag.name!r} has no target: its agents train by themselves", tag=tag.name
        )
    if parent_id is None:
        return tag.target.tree, {}
    parent = await ctx.state(experiments).find(parent_id)
    if parent is None:
        raise NotFoundError(f"no experiment {parent_id!r}", parent_id=parent_id)
    return parent.value.tree or tag.target.tree, parent.value.knobs


def new_record(tag: Tag, tree: str, **facts: Any) -> Experiment:
    """Return the record of an experiment that is about to be queued."""
    return Experiment(
        id=new_experiment_id(),
        tag=tag.name,
        tree=tree,
        commit_sha=tree[:40],
        phase="queued",
        gpu_id="",
        started_at=now(),
        **facts,
    )


async def enter_and_enqueue(tx: Transaction, record: Experiment) -> None:
    """Write the experiment and its job, in the caller's transaction."""
    tag = await enter(tx, record)
    target = tag.target
    assert target is not None
    assert record.tree is not None
    job = TrainJob(
        experiment_id=record.id,
        tag=record.tag,
        tree=record.tree,
        command=target.command,
        budget_seconds=target.budget_seconds,
        startup_seconds=target.startup_seconds,
    )
    tx.enqueue(TRAIN_QUEUE, job, id=record.id, requirement=target.requirement)
