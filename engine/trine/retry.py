"""When a failed attempt is repeated."""

import random
from dataclasses import dataclass

from trine.errors import GiveUp, RetryLater, TrineError

_GENERAL = (BaseException, Exception, TrineError)


@dataclass(frozen=True, slots=True)
class Retry:
    """At most *attempts* attempts, apart by an exponential delay with jitter and a cap.

    Durable work (jobs, events, ticks, changes) repeats after any failure but a `GiveUp` and errors
    that repeating cannot mend (their status is 4xx and they are not ``retryable``). A plain call
    repeats, at once and in the same process, only after a `WriteConflictError`.

    *on*: the errors that are repeated, others are given up; one that is named here is repeated even
    if repeating it could not mend it. An attempt that ended with the death of its worker counts.
    """

    attempts: int = 5
    delay_seconds: float = 0.5
    factor: float = 2.0
    cap_seconds: float = 60.0
    jitter: float = 0.2  # each delay is spread by up to this share
    on: tuple[type[BaseException], ...] = (Exception,)

    def delay(self, attempt: int, error: BaseException) -> float | None:
        """Return the seconds to wait after failed *attempt*, counted from 1; None: give up."""
        if isinstance(error, RetryLater):
            return error.after
        if isinstance(error, GiveUp) or attempt >= self.attempts or not self.repeats(error):
            return None
        plain = min(self.cap_seconds, self.delay_seconds * self.factor ** (attempt - 1))
        return plain * (1 + self.jitter * (2 * random.random() - 1))  # noqa: S311 - no secret

    def repeats(self, error: BaseException) -> bool:
        """Whether this kind of error is repeated at all."""
        if not isinstance(error, self.on):
            return False
        hopeless = isinstance(error, TrineError) and error.status < 500 and not error.retryable
        named = tuple(one for one in self.on if one not in _GENERAL)
        return not hopeless or isinstance(error, named)
