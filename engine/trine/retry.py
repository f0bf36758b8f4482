"""When a failed attempt is repeated."""

import random
from dataclasses import dataclass

from trine.errors import GiveUp, RetryLater, TrineError


@dataclass(frozen=True, slots=True)
class Retry:
    """At most *attempts* attempts, apart by an exponential delay with jitter and a cap.

    Durable work (jobs, events, ticks, changes) repeats after any failure but a `GiveUp` and errors
    that repeating cannot mend (their status is 4xx and they are not ``retryable``). A plain call
    repeats, at once and in the same process, only after a `WriteConflictError`.
    """

    attempts: int = 5
    delay_seconds: float = 0.5
    factor: float = 2.0
    cap_seconds: float = 60.0
    jitter: float = 0.2  # each delay is spread by up to this share

    def delay(self, attempt: int, error: BaseException) -> float | None:
        """Return the seconds to wait after failed *attempt*, counted from 1; None: give up."""
        if isinstance(error, RetryLater):
            return error.after
        if isinstance(error, GiveUp) or attempt >= self.attempts:
            return None
        if isinstance(error, TrineError) and error.status < 500 and not error.retryable:
            return None
        plain = min(self.cap_seconds, self.delay_seconds * self.factor ** (attempt - 1))
        return plain * (1 + self.jitter * (2 * random.random() - 1))  # noqa: S311 - no secret
