"""Quantiles of histograms, and what happened between two readings."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trine.observability.rates import rates
from trine.observability.readings import FunctionReading, Reading
from trine.observability.stats import BOUNDS, Stats, quantile


@given(st.lists(st.floats(1e-6, 250), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_run_that_it_means(seconds, share):
    stats = Stats()
    for one in seconds:
        stats.ended(int(one * 1e9))
    found = quantile(stats.buckets, share)
    rank = max(0, -(-int(share * len(seconds) * 1e9) // 1_000_000_000) - 1)
    meant = int(sorted(seconds)[rank] * 1e9) / 1e9
    assert found is not None
    assert abs(bisect_left(BOUNDS, found) - bisect_left(BOUNDS, meant)) <= 1


def test_there_is_no_quantile_of_nothing_and_the_last_bucket_has_its_bound():
    assert quantile(Stats().buckets, 0.5) is None
    assert quantile([], 0.5) is None
    stats = Stats()
    stats.ended(10**15)
    assert quantile(stats.buckets, 0.99) == BOUNDS[-1]


def reading(at: float, *functions: FunctionReading) -> Reading:
    return Reading(at, [], list(functions), [], [], 0)


def done(worker: str, runs: int, errors: int = 0, *, function: str = "f") -> FunctionReading:
    stats = Stats()
    for _ in range(runs):
        stats.ended(2_000_000)
    return FunctionReading(function, worker, runs, errors, 1, 0.0, tuple(stats.buckets), {})


def test_rates_add_up_the_workers_that_were_there_before():
    (one,) = rates(
        reading(10, done("a", 5), done("b", 7, 1)),
        reading(12, done("a", 9), done("b", 7, 4), done("new", 1000)),
    )
    assert (one.rate, one.errors_rate) == (2.0, 1.5)
    assert (one.runs, one.errors, one.running, one.workers) == (1016, 4, 3, 3)
    assert one.p50_seconds == pytest.approx(0.00175)
    assert one.p50_seconds < one.p99_seconds <= 0.0025


def test_a_worker_that_started_anew_is_no_negative_rate():
    (one,) = rates(reading(0, done("a", 50)), reading(1, done("a", 3)))
    assert one.rate == 0
    assert one.p50_seconds is None


def test_the_first_reading_has_no_rates_and_the_busiest_comes_first():
    (one,) = rates(None, reading(0, done("a", 5)))
    assert (one.rate, one.p50_seconds, one.runs) == (None, None, 5)
    found = rates(
        reading(0, done("a", 0), done("a", 0, function="busy")),
        reading(1, done("a", 0), done("a", 9, function="busy")),
    )
    assert [one.function for one in found] == ["busy", "f"]


def test_services_that_count_no_buckets_have_no_quantiles():
    foreign = FunctionReading("f", "x", 4, 0, 0, 1.0, None, {})
    more = FunctionReading("f", "x", 6, 0, 0, 1.5, None, {})
    (one,) = rates(reading(0, foreign), reading(1, more))
    assert (one.rate, one.p50_seconds) == (2.0, None)
