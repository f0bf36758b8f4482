"""The arithmetic of rates: a pure function of what was and what is the time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trine import Rate

rates = st.builds(
    Rate,
    count=st.integers(1, 20),
    seconds=st.floats(0.1, 100),
    burst=st.none() | st.integers(1, 30),
)


def runs(rate: Rate, times: list[float]) -> list[float]:
    """Return those of *times* at which a run was let in."""
    arrival, admitted = 0.0, []
    for now in sorted(times):
        arrival, wait = rate.take(arrival, now)
        if wait == 0:
            admitted.append(now)
    return admitted


@given(rates, st.lists(st.floats(1000, 1100), min_size=1, max_size=200))
def test_no_window_ever_has_more_runs_than_the_burst_and_the_rate_allow(rate, times):
    admitted = runs(rate, times)
    burst, step = rate.burst or rate.count, rate.seconds / rate.count
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            window = admitted[last] - admitted[first]
            assert last - first + 1 <= burst + window / step + 1e-6


@given(rates, st.lists(st.floats(1000, 1100), min_size=1, max_size=50))
def test_whoever_waits_as_long_as_told_is_let_in(rate, times):
    arrival = 0.0
    for now in sorted(times):
        arrival, wait = rate.take(arrival, now)
        if wait > 0:
            _, again = rate.take(arrival, now + wait)
            assert again <= 1e-6


@given(rates)
def test_a_fresh_limit_lets_a_whole_burst_in_at_once(rate):
    burst = rate.burst or rate.count
    assert len(runs(rate, [1000.0] * (burst + 5))) == burst


@pytest.mark.parametrize("count", [1, 5])
def test_at_the_steady_rate_nobody_is_refused(count):
    rate = Rate(count, 1.0, burst=1)
    assert len(runs(rate, [1000 + n / count for n in range(100)])) == 100
