"""The search strategy of a tag: what mode it is in, why, and where to look next."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from trine import App, Context, Retry
from trine_functions.contracts import (
    CATEGORIES,
    Experiment,
    Strategy,
    TagName,
    near_misses,
    now,
    strategy,
)
from trine_functions.queries import ByTag, known_tag, of_tag
from trine_triggers import Event, Http

app = App("search")

Mode = Literal["explore", "exploit", "combine", "ablation"]
_RECENT = 10


@app.on(Http("POST", "/api/search/strategy"))
@app.function("search.strategy")
async def current_strategy(ctx: Context, request: ByTag) -> Strategy:
    """Return the strategy of a tag."""
    found = await ctx.state(strategy).find(request.tag)
    return Strategy(updated_at=now()) if found is None else found.value


class SetStrategy(BaseModel):
    tag: TagName
    mode: Mode
    reason: str = Field(max_length=2000)
    explore_ratio: float | None = Field(default=None, ge=0, le=1)
    temperature: float | None = Field(default=None, gt=0)


@app.on(Http("POST", "/api/search/set-strategy"))
@app.function("search.set_strategy", retry=Retry(20))
async def set_strategy(ctx: Context, request: SetStrategy) -> Strategy:
    """Set the strategy by hand; it holds: `search.adapt` does not overwrite it."""
    await known_tag(ctx.client, request.tag)
    given = request.model_dump(exclude={"tag"}, exclude_none=True)

    def change(old: Strategy) -> Strategy:
        return old.model_copy(update={**given, "updated_at": now(), "held": True})

    return await ctx.state(strategy).change(request.tag, Strategy(), change)


@app.on(Http("POST", "/api/search/adapt"))
@app.on(Event("experiment.completed"))
@app.function("search.adapt", retry=Retry(20))
async def adapt(ctx: Context, request: ByTag) -> Strategy:
    """Choose the mode from what the last experiments brought, and say why."""
    done = [one for one in await of_tag(ctx.client, request.tag) if one.status != "running"]
    available = len(await ctx.state(near_misses).entries(request.tag))
    mode, ratio, reason = choose_mode(done, available)

    def change(old: Strategy) -> Strategy:
        if old.held:
            return old
        return old.model_copy(
            update={
                "mode": mode,
                "explore_ratio": ratio,
                "reason": reason,
                "updated_at": now(),
            }
        )

    return await ctx.state(strategy).change(request.tag, Strategy(), change)


def choose_mode(done: list[Experiment], near: int) -> tuple[Mode, float, str]:
    """The rule of the system before (contract): by crash rate and keep rate of the last ten."""
    if len(done) < 5:
        return "explore", 0.7, f"{len(done)} finished: too few to judge"
    recent = done[-_RECENT:]
    crashed = sum(one.status == "crash" for one in recent) / len(recent)
    kept = sum(one.status == "keep" for one in recent) / len(recent)
    if crashed > 0.5:
        return (
            "exploit",
            0.3,
            f"{crashed:.0%} of the last {len(recent)} crashed: stay near the best",
        )
    if kept == 0 and len(done) > 20:
        if near >= 2:
            return "combine", 0.5, f"none of the last {len(recent)} kept, {near} near-misses"
        return "ablation", 0.3, f"none of the last {len(recent)} kept: look for what can go"
    if kept > 0.3:
        return "exploit", 0.5, f"{kept:.0%} of the last {len(recent)} kept: go on there"
    return "explore", 0.8, f"{kept:.0%} of the last {len(recent)} kept: look wider"


@app.on(Http("POST", "/api/search/suggest"))
@app.function("search.suggest_direction")
async def suggest_direction(ctx: Context, request: ByTag) -> dict[str, Any]:
    """Say where to look next: categories, near-misses, the trend, and suggestions in words."""
    await known_tag(ctx.client, request.tag)
    found = await of_tag(ctx.client, request.tag)
    chosen = await current_strategy(ctx, request)
    near = [entry.value for entry in await ctx.state(near_misses).entries(request.tag)]
    stats: dict[str, dict[str, int]] = {}
    for one in found:
        row = stats.setdefault(one.category, {"total": 0, "kept": 0})
        row["total"] += 1
        row["kept"] += one.status == "keep"
    underexplored = [name for name in CATEGORIES if stats.get(name, {"total": 0})["total"] < 2]
    high_yield = [
        name
        for name, row in stats.items()
        if row["total"] >= 2 and row["kept"] / row["total"] > 0.3
    ]
    near_categories = sorted({one.category for one in near})
    kept = [one for one in found if one.status == "keep"]
    return {
        "strategy": chosen.model_dump(mode="json"),
        "total_experiments": len(found),
        "category_stats": stats,
        "underexplored_categories": underexplored,
        "high_yield_categories": high_yield,
        "near_misses_available": len(near),
        "near_miss_categories": near_categories,
        "recent_bpb_trend": [one.val_bpb for one in kept[-5:]],
        "suggestions": _in_words(chosen.mode, underexplored, high_yield, near_categories),
    }


def _in_words(mode: str, under: list[str], high: list[str], near: list[str]) -> list[str]:
    said = {
        "explore": f"try a category with little evidence: {', '.join(under[:3]) or 'any'}",
        "exploit": f"vary what was kept, above all in {', '.join(high[:3]) or 'the best run'}",
        "combine": f"merge near-misses across categories: {', '.join(near[:3]) or 'none yet'}",
        "ablation": "remove one kept change at a time and see which of them still pays",
    }
    words = [said[mode]]
    if high and mode != "exploit":
        words.append(f"{', '.join(high[:3])} kept more than 30 % of its tries")
    if len(near) >= 2 and mode != "combine":
        words.append("two or more near-misses wait to be combined")
    return words
