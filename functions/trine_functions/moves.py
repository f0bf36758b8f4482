"""Proposals: one-knob moves around the best, chosen by what has paid off. Pure: values in and out.

A move that was kept is made again in its direction; one that was not is tried the other way, and
later with half the step. Knobs declared first in the script come first: that order is the prior.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trine_functions.contracts import KnobValue
from trine_functions.knobs import Knob

_BASELINES = 2  # two runs of the start: what differs between them is noise
_MAX_HALVINGS = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """An experiment as the search sees it; ``value`` is None while it runs or when it crashed."""

    id: str
    knobs: dict[str, KnobValue]
    operator: str
    value: float | None
    running: bool
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change to try: *knobs* against the base, from *parent*, and why."""

    knobs: dict[str, KnobValue]
    operator: str
    category: str
    hypothesis: str
    description: str
    reason: str
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class _Move:
    knob: Knob
    direction: int
    value: KnobValue
    score: float
    why: str


def propose(knobs: Sequence[Knob], trials: Sequence[Trial], seed: int) -> Proposal | None:
    """Return the next change, or None when every move around the best has been tried."""
    baselines = [trial for trial in trials if trial.operator == "baseline"]
    if len(baselines) < _BASELINES:
        again = len(baselines) > 0
        return Proposal(
            knobs={},
            operator="baseline",
            category="other",
            hypothesis="the same run again differs by noise only"
            if again
            else "the starting point",
            description="baseline, repeated" if again else "baseline",
            reason="how large is the noise?" if again else "where do we start?",
        )
    done = [trial for trial in trials if trial.value is not None]
    best = min(done, key=lambda trial: trial.value or 0.0) if done else None
    current = dict(best.knobs) if best else {}
    chance = random.Random(f"{seed}:{len(trials)}")  # noqa: S311 - repeatable, not secret
    moves = [
        move
        for rank, knob in enumerate(knob for knob in knobs if knob.searched)
        for move in _moves(knob, rank, current, best, trials, chance)
    ]
    if not moves:
        return None
    move = max(moves, key=lambda one: one.score)
    name, old = move.knob.name, current.get(move.knob.name, move.knob.value)
    changed = {**current, name: move.value}
    if move.value == move.knob.value:
        changed.pop(name)  # back at the base: no difference to record
    return Proposal(
        knobs=changed,
        operator="one-knob",
        category=move.knob.category,
        hypothesis=f"{name} {old} → {move.value} lowers val_bpb",
        description=f"{name} = {move.value}",
        reason=move.why,
        parent=best.id if best else None,
    )


def _moves(
    knob: Knob,
    rank: int,
    current: dict[str, KnobValue],
    best: Trial | None,
    trials: Sequence[Trial],
    chance: random.Random,
) -> Iterable[_Move]:
    """Give every new value of *knob* next to the current one, with its score."""
    here = current.get(knob.name, knob.value)
    asked = any(
        trial.running and trial.knobs.get(knob.name, knob.value) != here for trial in trials
    )
    prior = 1.0 / (1.0 + 0.25 * rank)
    for direction, value, halvings in _neighbours(knob, here, current, trials):
        gained, failed, opposite = _evidence(knob, direction, here, best, trials)
        score = prior * chance.uniform(0.8, 1.2)
        why = f"{knob.name} has not been moved this way"
        if failed:
            score *= 0.15**failed
            why = f"a smaller step of {knob.name} may pay where a larger did not"
            if not halvings:
                why = f"{knob.name} did not pay before, from another point"
        elif gained:
            score += 3.0
            why = f"moving {knob.name} this way paid off: go on"
        elif opposite:
            score *= 1.5
            why = f"{knob.name} the other way was worse: try this way"
        if asked:  # its answer is on the way: rather ask about another knob
            score *= 0.02
        yield _Move(knob, direction, value, score, why)


def _evidence(
    knob: Knob, direction: int, here: KnobValue, best: Trial | None, trials: Sequence[Trial]
) -> tuple[bool, int, int]:
    """Whether this direction made the best what it is; how often it, and the other, failed."""
    if best is None:
        return False, 0, 0
    gained = False
    by_id = {trial.id: trial for trial in trials}
    if best.parent in by_id:
        before = by_id[best.parent].knobs.get(knob.name, knob.value)
        gained = before != here and _sign(before, here) == direction
    failed = opposite = 0
    for trial in trials:
        there = trial.knobs.get(knob.name, knob.value)
        if trial.running or there == here or trial.parent not in by_id:
            continue
        before = by_id[trial.parent].knobs.get(knob.name, knob.value)
        parent = by_id[trial.parent].value
        worse = trial.value is None or (parent is not None and trial.value >= parent)
        if before != there and worse:  # this trial asked about this knob
            if _sign(before, there) == direction:
                failed += 1
            else:
                opposite += 1
    return gained, failed, opposite


def _sign(old: KnobValue, new: KnobValue) -> int:
    if isinstance(old, str) or isinstance(new, str):
        return 0
    return 1 if new > old else -1


def _neighbours(
    knob: Knob, here: KnobValue, current: dict[str, KnobValue], trials: Sequence[Trial]
) -> Iterable[tuple[int, KnobValue, int]]:
    """Give (direction, value, halvings of the step) of the values to try next."""
    tried = [trial.knobs for trial in trials]

    def is_new(value: KnobValue) -> bool:
        changed = {**current, knob.name: value}
        if value == knob.value:
            changed.pop(knob.name)
        return changed not in tried

    if knob.choices:
        for choice in knob.choices:
            if choice != here and is_new(choice):
                yield 0, choice, 0
        return
    if isinstance(here, str) or knob.low is None or knob.high is None:
        return
    for direction in (-1, 1):
        for halvings in range(_MAX_HALVINGS + 1):
            value = _step(knob, float(here), direction, halvings)
            if value is None:
                break
            if value != here and is_new(value):
                yield direction, value, halvings
                break


def _step(knob: Knob, here: float, direction: int, halvings: int) -> KnobValue | None:
    """Return the value one step away, within the range; None when there is none."""
    assert knob.low is not None
    assert knob.high is not None
    if knob.log:
        if knob.pow2 and halvings:
            return None
        value = here * math.pow(2.0, direction * 0.5**halvings)
    else:
        width = knob.step or (knob.high - knob.low) / 5
        if knob.step and halvings:
            return None
        value = here + direction * width * 0.5**halvings
    value = min(max(value, knob.low), knob.high)
    if isinstance(knob.value, int) and not isinstance(knob.value, bool):
        return round(value)
    return float(f"{value:.6g}")
