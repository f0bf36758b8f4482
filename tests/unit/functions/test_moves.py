"""The search: pure, so that its decisions can be told from a history alone."""

from trine_functions.contracts import KnobValue
from trine_functions.knobs import Knob
from trine_functions.moves import Proposal, Trial, propose

KNOBS = [
    Knob("RATE", 0.1, "optimizer", 0.001, 1.0, log=True),
    Knob("WIDTH", 8, "architecture", 2, 64, log=True, pow2=True),
    Knob("MODE", "a", "other", choices=("a", "b")),
    Knob("SEED", 1),
]


def trial(number: int, proposal: Proposal, value: float | None, *, running: bool = False) -> Trial:
    return Trial(str(number), proposal.knobs, proposal.operator, value, running, proposal.parent)


def search(truth, count: int, seed: int = 0) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(count):
        proposal = propose(KNOBS, trials, seed)
        if proposal is None:
            break
        trials.append(trial(number, proposal, truth(proposal.knobs)))
    return trials


def smooth(knobs: dict[str, KnobValue]) -> float:
    rate, width = float(knobs.get("RATE", 0.1)), float(knobs.get("WIDTH", 8))
    return 1 + abs(rate - 0.0125) + abs(width - 32) / 100 + (0.2 if knobs.get("MODE") == "b" else 0)


def test_the_baseline_is_run_twice_first() -> None:
    first = propose(KNOBS, [], 0)
    assert first is not None
    assert (first.operator, first.knobs) == ("baseline", {})
    second = propose(KNOBS, [trial(0, first, None, running=True)], 0)
    assert second is not None
    assert second.operator == "baseline"


def test_every_other_proposal_changes_one_knob_of_the_best_within_its_range() -> None:
    trials = search(smooth, 14)
    by_id = {one.id: one for one in trials}
    for one in trials[2:]:
        assert one.parent is not None
        parent = by_id[one.parent].knobs
        names = {n for n in {*one.knobs, *parent} if one.knobs.get(n) != parent.get(n)}
        assert len(names) == 1
        assert "SEED" not in one.knobs
        assert 0.001 <= float(one.knobs.get("RATE", 0.1)) <= 1.0
        assert int(one.knobs.get("WIDTH", 8)) in (2, 4, 8, 16, 32, 64)


def test_nothing_is_tried_twice() -> None:
    trials = search(smooth, 30)
    tried = [tuple(sorted(one.knobs.items())) for one in trials[2:]]
    assert len(tried) == len(set(tried))


def test_it_finds_the_optimum_of_a_smooth_function() -> None:
    for seed in range(5):
        trials = search(smooth, 16, seed)
        assert min(one.value for one in trials if one.value) < smooth({}) - 0.25


def test_what_paid_off_is_done_again() -> None:
    base = [Trial("0", {}, "baseline", 1.0, False), Trial("1", {}, "baseline", 1.0, False)]
    gained = Trial("2", {"WIDTH": 16}, "one-knob", 0.8, False, "0")
    proposal = propose(KNOBS, [*base, gained], 0)
    assert proposal is not None
    assert proposal.knobs == {"WIDTH": 32}
    assert proposal.parent == "2"
    assert "paid off" in proposal.reason


def test_a_knob_that_is_being_tried_is_left_alone_while_there_are_others() -> None:
    base = [Trial("0", {}, "baseline", 1.0, False), Trial("1", {}, "baseline", 1.0, False)]
    for seed in range(10):
        flying = Trial("2", {"RATE": 0.05}, "one-knob", None, True, "0")
        proposal = propose(KNOBS, [*base, flying], seed)
        assert proposal is not None
        assert "RATE" not in proposal.knobs


def test_no_worker_is_left_idle_though_every_knob_is_being_tried() -> None:
    only = [Knob("RATE", 0.1, "optimizer", 0.001, 1.0, log=True)]
    base = [Trial("0", {}, "baseline", 1.0, False), Trial("1", {}, "baseline", 1.0, False)]
    flying = Trial("2", {"RATE": 0.05}, "one-knob", None, True, "0")
    proposal = propose(only, [*base, flying], 0)
    assert proposal is not None
    assert proposal.knobs["RATE"] not in (0.1, 0.05)


def test_it_ends_when_every_neighbour_has_been_tried() -> None:
    only = [Knob("MODE", "a", "other", choices=("a", "b"))]
    trials = [Trial("0", {}, "baseline", 1.0, False), Trial("1", {}, "baseline", 1.0, False)]
    proposal = propose(only, trials, 0)
    assert proposal is not None
    trials.append(trial(2, proposal, 2.0))
    assert propose(only, trials, 0) is None


def test_crashes_count_as_failures_and_the_search_goes_on() -> None:
    trials = search(lambda knobs: 1.0 if not knobs else None, 12)  # type: ignore[arg-type,return-value]
    assert len(trials) >= 8
