"""What came of the experiments of a tag: the numbers that report, page and view share."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from trine_functions.contracts import Experiment, KnobValue


@dataclass(frozen=True, slots=True)
class Outcome:
    """Baseline against best, with what the repeated baselines say about the noise.

    The baseline is the mean of the finished experiments of the operator ``baseline``, else the
    first result. ``within_noise`` is None when the baseline ran once: nothing is known then.
    """

    baseline: float | None
    baseline_runs: int
    baseline_spread: float | None  # highest minus lowest of the repeated baselines
    best: float | None
    best_id: str | None
    improvement_percent: float | None
    within_noise: bool | None
    kept: int
    discarded: int
    crashed: int
    running: int

    @classmethod
    def of(cls, experiments: Iterable[Experiment]) -> Self:
        """Return the outcome of *experiments*, in whatever order they come."""
        found = list(experiments)
        results = [one for one in in_order_of_finish(found) if one.val_bpb is not None]
        values = _baselines(results)
        leader = min(results, key=lambda one: one.val_bpb or math.inf, default=None)
        baseline = sum(values) / len(values) if values else None
        spread = max(values) - min(values) if len(values) > 1 else None
        best = leader.val_bpb if leader else None
        gain = baseline - best if baseline is not None and best is not None else None
        return cls(
            baseline=baseline,
            baseline_runs=len(values),
            baseline_spread=spread,
            best=best,
            best_id=leader.id if leader else None,
            improvement_percent=gain / baseline * 100 if gain is not None and baseline else None,
            within_noise=gain <= spread if gain is not None and spread is not None else None,
            kept=sum(one.status == "keep" for one in found),
            discarded=sum(one.status == "discard" for one in found),
            crashed=sum(one.status == "crash" for one in found),
            running=sum(one.status == "running" for one in found),
        )

    @property
    def total(self) -> int:
        return self.finished + self.running

    @property
    def finished(self) -> int:
        return self.kept + self.discarded + self.crashed

    @property
    def headline(self) -> str:
        """Baseline, best and the change, in one line."""
        if self.baseline is None or self.best is None or self.improvement_percent is None:
            return f"no result yet: {self.counts}" if self.total else "no experiments yet"
        change = in_percent(self.improvement_percent)
        return f"val_bpb {self.baseline:.4f} → {self.best:.4f} ({change})"

    @property
    def counts(self) -> str:
        words = f"{self.kept} kept, {self.discarded} discarded, {self.crashed} crashed"
        return f"{words}, {self.running} running" if self.running else words

    @property
    def noise(self) -> str:
        """The remark in a few words, for a picture."""
        if self.baseline is None:
            return "no result"
        if self.baseline_spread is None:
            return "single runs, the noise is unknown"
        verdict = "within that" if self.within_noise else "larger"
        runs = f"{self.baseline_runs} baseline runs differ by {self.baseline_spread:.4f}"
        return f"{runs}, the improvement is {verdict}"

    @property
    def remark(self) -> str:
        """What the headline is worth, in one or two sentences; empty without a result."""
        if self.baseline is None or self.best is None:
            return ""
        if self.baseline_spread is None:
            return (
                "Baseline and best are single runs, so the noise is unknown: "
                "run the baseline more than once to judge the difference."
            )
        gain = self.baseline - self.best
        runs = (
            f"{self.baseline_runs} runs of the baseline differ by up to {self.baseline_spread:.4f}"
        )
        if self.within_noise:
            return f"{runs}; the improvement of {gain:.4f} is within that: it may be noise."
        return f"{runs}; the improvement of {gain:.4f} is larger. The best itself is a single run."


def _baselines(results: list[Experiment]) -> list[float]:
    named = [one for one in results if one.operator == "baseline"]
    return [one.val_bpb for one in named or results[:1] if one.val_bpb is not None]


def in_percent(improvement: float) -> str:
    """Say an improvement in words: positive is better, as val_bpb is to be low."""
    if abs(improvement) < 0.005:
        return "no change"
    return f"{abs(improvement):.2f} % {'better' if improvement > 0 else 'worse'}"


def in_order_of_finish(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Return those that have ended, the earliest first: the order in which the best moved."""
    ended = [one for one in experiments if one.status != "running"]
    return sorted(ended, key=lambda one: (one.finished_at or "", one.started_at, one.id))


def against_best_before(experiments: Iterable[Experiment]) -> dict[str, float]:
    """Return, by id, each result minus the best before it; below zero is better."""
    differences: dict[str, float] = {}
    best: float | None = None
    for one in in_order_of_finish(experiments):
        if one.val_bpb is None:
            continue
        if best is not None:
            differences[one.id] = one.val_bpb - best
        best = one.val_bpb if best is None else min(best, one.val_bpb)
    return differences


def knob_changes(one: Experiment, parent: Experiment | None) -> list[str]:
    """Say which knobs differ from those of the parent, or from the base tree without one."""
    before = parent.knobs if parent else {}
    changes = []
    for name in sorted({*before, *one.knobs}):
        if before.get(name) == one.knobs.get(name) and (name in before) == (name in one.knobs):
            continue
        new = knob_text(one.knobs[name]) if name in one.knobs else "as in the base"
        old = f"{knob_text(before[name])} → " if name in before else ""
        changes.append(f"{name} {old}{new}" if old else f"{name} = {new}")
    return changes


def knob_text(value: KnobValue) -> str:
    """Return the value of a knob as a reader expects it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def one_line(text: str, width: int | None = None) -> str:
    """Return *text* without line breaks and control characters, cut to *width* with an ellipsis."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if width is None or len(line) <= width else line[: width - 1].rstrip() + "…"


def what_and_why(one: Experiment) -> str:
    """Return in one line what an experiment tries and why: its hypothesis, if it has one."""
    return one_line(one.hypothesis) or one_line(one.description) or one.category


def label(one: Experiment, parent: Experiment | None) -> str:
    """Return a few words for a picture: the knob that moved and its value, or the description."""
    before = parent.knobs if parent else {}
    moved = [name for name, value in one.knobs.items() if before.get(name) != value]
    if len(moved) == 1 and not before.keys() - one.knobs.keys():
        return f"{moved[0]} = {one.knobs[moved[0]]}"
    return one_line(one.description or one.hypothesis or one.category, 40)
