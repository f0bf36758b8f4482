"""The autonomous loop: a finished experiment triggers the next proposal, until all are done."""

from typing import Any

from pydantic import BaseModel, Field

from trine import App, Client, Context, Retry, Transaction
from trine.errors import BadRequestError, ConflictError, NotFoundError, WriteConflictError
from trine_functions import knobs, trees
from trine_functions.contracts import (
    Experiment,
    LoopState,
    Tag,
    TagName,
    loops,
    now,
    tags,
)
from trine_functions.moves import Proposal, Trial, propose
from trine_functions.queries import ByTag, known_tag, of_tag
from trine_functions.submit import enter_and_enqueue, new_record
from trine_triggers import Event, Http

app = App("loop")

_RETRY = Retry(attempts=40)
_LOOKS = 1000  # at most so many proposals and fresh looks in one step


class Start(BaseModel):
    tag: TagName
    experiments: int = Field(default=12, ge=1, le=1_000_000)
    parallel: int = Field(default=1, ge=1, le=1000)
    seed: int = 0


@app.on(Http("POST", "/api/loop/start"))
@app.function("loop.start", retry=_RETRY)
async def start(ctx: Context, request: Start) -> LoopState:
    """Let the search run experiments on a tag by itself, *parallel* at a time."""
    tag = await known_tag(ctx.client, request.tag)
    if tag.target is None:
        raise BadRequestError(f"tag {tag.name!r} has no target: give experiment.setup one")
    async with ctx.transaction() as tx:
        known = await tx.find(loops, tag.name)
        if known is not None and known.status in ("running", "paused"):
            raise ConflictError(f"the loop of {tag.name!r} is {known.status}", status=known.status)
        state = LoopState(
            status="running", started_at=now(), reason="starting", **request.model_dump()
        )
        tx.put(loops, tag.name, state)
    return await _advance(ctx, tag.name)


@app.on(Event("experiment.completed"))
@app.function("loop.step", retry=_RETRY)
async def step(ctx: Context, request: ByTag) -> LoopState | None:
    """Propose as many experiments as there are free places; ends the loop when it is done."""
    if await ctx.state(loops).find(request.tag) is None:
        return None
    return await _advance(ctx, request.tag)


async def _advance(ctx: Context, name: str) -> LoopState:
    for _ in range(_LOOKS):
        found = await of_tag(ctx.client, name)
        async with ctx.transaction() as tx:
            state = await tx.get(loops, name)
            # The tag counts every experiment: if one was added since they were listed, the
            # transaction would decide on an old picture, so look again.
            tag = await tx.get(tags, name)
            if tag.total_experiments != len(found):
                continue
            if state.status != "running":
                return state
            ours = _proposed(found)
            flying = sum(one.status == "running" for one in ours)
            if len(ours) >= state.experiments and flying == 0:
                return _end(tx, state, f"all {state.experiments} experiments are done")
            if len(ours) >= state.experiments or flying >= state.parallel:
                return state
            proposal = await _propose(ctx, tag, found, state)
            if proposal is None:
                if flying == 0:
                    return _end(tx, state, "every move around the best has been tried")
                return state
            await _submit(ctx, tx, tag, proposal)
            state = state.model_copy(
                update={"reason": f"{proposal.description}: {proposal.reason}"}
            )
            tx.put(loops, name, state)
    raise WriteConflictError(f"tag {name!r} changes too fast to decide on it")


def _proposed(found: list[Experiment]) -> list[Experiment]:
    """The experiments that a loop proposed, not an agent."""
    return [one for one in found if one.operator not in ("", "agent")]


async def known_loop(client: Client, tag: str) -> LoopState:
    """Return the loop of *tag*; `NotFoundError` when it has none."""
    entry = await client.state(loops).find(tag)
    if entry is None:
        raise NotFoundError(f"tag {tag!r} has no loop", tag=tag)
    return entry.value


def _end(tx: Transaction, state: LoopState, reason: str) -> LoopState:
    ended = state.model_copy(update={"status": "finished", "reason": reason, "ended_at": now()})
    tx.put(loops, state.tag, ended)
    return ended


async def _propose(
    ctx: Context, tag: Tag, found: list[Experiment], state: LoopState
) -> Proposal | None:
    assert tag.target is not None
    tree = await trees.load(ctx.client, tag.target.tree)
    source = await trees.text(ctx.client, tree, tag.target.editable)
    trials = [
        Trial(one.id, one.knobs, one.operator, one.val_bpb, one.status == "running", one.parent_id)
        for one in found
    ]
    return propose(knobs.read(source), trials, state.seed)


async def _submit(ctx: Context, tx: Transaction, tag: Tag, proposal: Proposal) -> None:
    assert tag.target is not None
    tree = await trees.changed(
        ctx.client, tag.target.tree, tag.target.editable, set_knobs=proposal.knobs, files={}
    )
    record = new_record(
        tag,
        tree,
        hypothesis=proposal.hypothesis,
        description=proposal.description,
        diff_summary=proposal.description if proposal.parent else "",
        category=proposal.category,
        parent_id=proposal.parent,
        knobs=proposal.knobs,
        operator=proposal.operator,
    )
    await enter_and_enqueue(tx, record)


async def _set(ctx: Context, tag: str, status: str, allowed: tuple[str, ...]) -> LoopState:
    def change(old: LoopState) -> LoopState:
        if old.status == status:
            return old
        if old.status not in allowed:
            raise ConflictError(f"the loop of {tag!r} is {old.status}", status=old.status)
        ended = now() if status == "stopped" else None
        return old.model_copy(update={"status": status, "ended_at": ended, "reason": status})

    known = await known_loop(ctx.client, tag)
    return await ctx.state(loops).change(tag, known, change)


@app.on(Http("POST", "/api/loop/stop"))
@app.function("loop.stop")
async def stop(ctx: Context, request: ByTag) -> LoopState:
    """End the loop; what runs is finished and recorded."""
    return await _set(ctx, request.tag, "stopped", ("running", "paused"))


@app.on(Http("POST", "/api/loop/pause"))
@app.function("loop.pause")
async def pause(ctx: Context, request: ByTag) -> LoopState:
    """Propose nothing more until `loop.resume`; what runs is finished and recorded."""
    return await _set(ctx, request.tag, "paused", ("running",))


class Resume(BaseModel):
    tag: TagName
    experiments: int | None = Field(default=None, ge=1)  # a new total


@app.on(Http("POST", "/api/loop/resume"))
@app.function("loop.resume", retry=_RETRY)
async def resume(ctx: Context, request: Resume) -> LoopState:
    """Go on where a paused, stopped or interrupted loop was; *experiments* is a new total."""

    def change(old: LoopState) -> LoopState:
        total = request.experiments or old.experiments
        return old.model_copy(update={"status": "running", "experiments": total, "ended_at": None})

    known = await known_loop(ctx.client, request.tag)
    await ctx.state(loops).change(request.tag, known, change)
    return await _advance(ctx, request.tag)


@app.on(Http("POST", "/api/loop/status"))
@app.function("loop.status")
async def status(ctx: Context, request: ByTag) -> dict[str, Any]:
    """Return what the loop of a tag does, why, and what remains."""
    known = await known_loop(ctx.client, request.tag)
    ours = _proposed(await of_tag(ctx.client, request.tag))
    running = [one for one in ours if one.status == "running"]
    return {
        **known.model_dump(mode="json"),
        "proposed": len(ours),
        "done": len(ours) - len(running),
        "remaining": max(0, known.experiments - len(ours)) + len(running),
        "in_flight": [
            {"experiment_id": one.id, "phase": one.phase, "hypothesis": one.hypothesis}
            for one in running
        ],
    }
