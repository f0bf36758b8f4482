"""How a run ended, in one word, for those who tell about it."""

from trine.errors import DeadlineError, TrineError
from trine.invocation import Invocation

OK = ("ok", "")
_EARLY_SECONDS = 0.02  # a timer may fire a little before the deadline that it stands for


def outcome(invocation: Invocation, error: BaseException) -> tuple[str, str]:
    """Return the code and the text of *error*.

    A run that is stopped sees a cancellation, whatever the reason: the clock tells whether its
    time was over.
    """
    if isinstance(error, TrineError):
        return error.code, error.message
    if isinstance(error, Exception):
        return "internal", f"{type(error).__name__}: {error}"
    remaining = invocation.remaining()
    if remaining is not None and remaining < _EARLY_SECONDS:
        return DeadlineError.code, "its time was over"
    return "cancelled", "stopped by its caller, or with its worker"
