"""When a failed attempt is repeated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trine import GiveUp, Retry, RetryLater
from trine.errors import ConflictError, DeadlineError, InvalidInputError, WriteConflictError


def test_the_delay_grows_up_to_its_cap():
    retry = Retry(attempts=9, delay_seconds=1, factor=2, cap_seconds=5, jitter=0)
    assert [retry.delay(n, ValueError()) for n in range(1, 6)] == [1, 2, 4, 5, 5]


@given(st.integers(1, 1000), st.floats(0, 1))
def test_jitter_spreads_by_its_share(attempt, jitter):
    retry = Retry(attempts=2000, delay_seconds=1, cap_seconds=10, jitter=jitter)
    delay = retry.delay(attempt, ValueError())
    assert delay is not None
    plain = min(10, 2.0 ** (attempt - 1))
    assert plain * (1 - jitter) - 1e-9 <= delay <= plain * (1 + jitter) + 1e-9


def test_the_last_attempt_is_the_last():
    assert Retry(attempts=3).delay(2, ValueError()) is not None
    assert Retry(attempts=3).delay(3, ValueError()) is None


@pytest.mark.parametrize("error", [GiveUp("no"), InvalidInputError("x"), ConflictError("x")])
def test_what_repeating_cannot_mend_is_given_up(error):
    assert Retry().delay(1, error) is None


@pytest.mark.parametrize("error", [WriteConflictError("x"), DeadlineError("x"), OSError()])
def test_what_may_pass_is_repeated(error):
    assert Retry().delay(1, error) is not None


def test_retry_later_decides_for_itself():
    assert Retry(attempts=1).delay(100, RetryLater(after=7)) == 7


def test_only_the_errors_that_are_named_are_repeated():
    retry = Retry(on=(OSError, ConflictError))
    assert retry.delay(1, ConnectionError()) is not None
    assert retry.delay(1, ConflictError("named, though repeating seldom mends it")) is not None
    assert retry.delay(1, ValueError()) is None
    assert retry.delay(1, InvalidInputError("x")) is None
    assert retry.delay(1, GiveUp("no")) is None
    assert retry.delay(1, RetryLater(after=3)) == 3
