"""The numbers that the report, the page and the view share."""

from typing import Any

import pytest

from trine_functions.contracts import Experiment
from trine_functions.outcome import (
    Outcome,
    against_best_before,
    in_order_of_finish,
    knob_changes,
    label,
    one_line,
    what_and_why,
)


def experiment(place: int, status: str, value: float | None = None, **more: Any) -> Experiment:
    finished = None if status == "running" else f"2026-03-11T00:{place:02}:30"
    return Experiment(
        **{
            "id": f"exp-{place}",
            "tag": "t",
            "status": status,
            "val_bpb": value,
            "started_at": f"2026-03-11T00:{place:02}:00",
            "finished_at": finished,
            **more,
        }
    )


def test_nothing_yet_has_no_numbers() -> None:
    outcome = Outcome.of([])
    assert (outcome.baseline, outcome.best, outcome.improvement_percent) == (None, None, None)
    assert outcome.within_noise is None
    assert outcome.headline == "no experiments yet"
    assert outcome.remark == ""


def test_crashes_alone_are_no_result() -> None:
    outcome = Outcome.of([experiment(1, "crash"), experiment(2, "crash"), experiment(3, "running")])
    assert (outcome.crashed, outcome.running, outcome.finished, outcome.total) == (2, 1, 2, 3)
    assert outcome.best is None
    assert outcome.headline == "no result yet: 0 kept, 0 discarded, 2 crashed, 1 running"


def test_without_a_named_baseline_the_first_to_finish_is_it() -> None:
    late = experiment(1, "keep", 0.9, finished_at="2026-03-11T01:00:00")
    outcome = Outcome.of([late, experiment(2, "keep", 1.0), experiment(3, "discard", 1.2)])
    assert outcome.baseline == 1.0
    assert outcome.baseline_spread is None
    assert (outcome.best, outcome.best_id) == (0.9, "exp-1")
    assert outcome.improvement_percent == pytest.approx(10)
    assert outcome.within_noise is None
    assert "noise is unknown" in outcome.remark
    assert outcome.headline == "val_bpb 1.0000 → 0.9000 (10.00 % better)"


def test_repeated_baselines_are_averaged_and_their_spread_is_the_noise() -> None:
    runs = [
        experiment(1, "keep", 1.00, operator="baseline"),
        experiment(2, "discard", 1.02, operator="baseline"),
        experiment(3, "crash", operator="baseline"),
    ]
    small = Outcome.of([*runs, experiment(4, "keep", 0.995)])
    assert small.baseline == pytest.approx(1.01)
    assert small.baseline_spread == pytest.approx(0.02)
    assert small.within_noise is True
    assert "may be noise" in small.remark
    large = Outcome.of([*runs, experiment(4, "keep", 0.9)])
    assert large.within_noise is False
    assert "is larger" in large.remark
    assert large.kept == 2


def test_a_baseline_alone_is_no_change() -> None:
    outcome = Outcome.of([experiment(1, "keep", 1.0, operator="baseline")])
    assert outcome.improvement_percent == 0
    assert "no change" in outcome.headline


def test_results_are_compared_with_the_best_before_them() -> None:
    found = [
        experiment(1, "keep", 1.0),
        experiment(2, "crash"),
        experiment(3, "keep", 0.9),
        experiment(4, "discard", 0.95),
        experiment(5, "running"),
    ]
    assert against_best_before(found) == pytest.approx({"exp-3": -0.1, "exp-4": 0.05})
    assert [one.id for one in in_order_of_finish(reversed(found))] == [
        "exp-1", "exp-2", "exp-3", "exp-4",
    ]  # fmt: skip


def test_knobs_are_told_against_the_parent() -> None:
    parent = experiment(1, "keep", knobs={"LR": 0.1, "DEPTH": 4, "TIED": True})
    child = experiment(2, "keep", knobs={"LR": 0.25, "DEPTH": 4, "WIDTH": 8})
    assert knob_changes(child, parent) == [
        "LR 0.1 → 0.25", "TIED True → as in the base", "WIDTH = 8",
    ]  # fmt: skip
    assert knob_changes(parent, None) == ["DEPTH = 4", "LR = 0.1", "TIED = True"]
    assert knob_changes(child, child) == []


def test_a_label_is_short_and_one_line() -> None:
    assert label(experiment(1, "keep", knobs={"LR": 0.5}), None) == "LR = 0.5"
    assert label(experiment(1, "keep", description="a\nb\t" + "c" * 80), None).startswith("a b ccc")
    assert len(label(experiment(1, "keep", description="c" * 80), None)) == 40
    assert label(experiment(1, "keep"), None) == "other"


def test_text_of_agents_loses_its_control_characters() -> None:
    assert one_line("a\x1b[31m\u202eb\r\n c") == "a [31m b c"
    assert one_line("abcdef", 4) == "abc…"
    assert what_and_why(experiment(1, "keep", hypothesis="because\n", description="x")) == "because"
    assert what_and_why(experiment(1, "keep", description="x")) == "x"
