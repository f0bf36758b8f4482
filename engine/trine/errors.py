"""Every error that Trine raises: one tree, one code on every road.

The same ``code`` travels in the NATS headers, in the JSON body over HTTP and in the exception, so
that a caller in another process catches the class that the function raised.
"""

from typing import Any, ClassVar


class TrineError(Exception):
    """Base of every error. ``code`` is stable, ``status`` is its HTTP status."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InternalError(TrineError):
    """Raised when a function failed with an exception that is not a `TrineError`."""

    code = "internal"


class UsageError(TrineError):
    """Raised at definition time or on the command line when Trine is used wrongly."""

    code = "usage"
    status = 400


class BadRequestError(TrineError):
    """Raised when a request is well formed and cannot be carried out as it stands."""

    code = "bad_request"
    status = 400


class InvalidInputError(TrineError):
    """Raised when a payload is not what the function's model asks for; names the field."""

    code = "invalid_input"
    status = 422


class UnauthorizedError(TrineError):
    """Raised when a request does not prove that it may be made."""

    code = "unauthorized"
    status = 401


class ConditionNotMetError(TrineError):
    """Raised when a payload does not meet the condition under which a trigger runs its function."""

    code = "condition_not_met"
    status = 422


class RequestTimeoutError(TrineError):
    """Raised when a request does not arrive in full in the time that it may take."""

    code = "request_timeout"
    status = 408
    retryable = True


class NotFoundError(TrineError):
    """Raised when the thing that a request names does not exist."""

    code = "not_found"
    status = 404


class FunctionNotFoundError(NotFoundError):
    """Raised when nobody serves a function."""

    code = "function_not_found"


class KeyMissingError(NotFoundError):
    """Raised by `Store.get` when the key is absent, deleted or expired."""

    code = "key_missing"


class ConflictError(TrineError):
    """Raised when a request contradicts what is already recorded."""

    code = "conflict"
    status = 409


class WriteConflictError(ConflictError):
    """Raised when somebody else wrote first; reading again and repeating is safe."""

    code = "write_conflict"
    retryable = True


class TooLargeError(TrineError):
    """Raised before sending when a payload is above the server's limit."""

    code = "too_large"
    status = 413


class TooManyRequestsError(TrineError):
    """Raised when more is in flight than the callee accepts."""

    code = "too_many_requests"
    status = 429
    retryable = True


class CancelledByCallerError(TrineError):
    """Raised in place of a reply when the caller gave up."""

    code = "cancelled"
    status = 499


class UnavailableError(TrineError):
    """Raised when the NATS server or the process on the other side cannot be reached."""

    code = "unavailable"
    status = 503
    retryable = True


class StorageFullError(TrineError):
    """Raised when the server refused to store because its disk or its limit is full."""

    code = "storage_full"
    status = 507
    retryable = True


class DeadlineError(TrineError):
    """Raised when a call did not end in the time that the caller gave it."""

    code = "deadline_exceeded"
    status = 504
    retryable = True


class ServerTooOldError(TrineError):
    """Raised at start when the NATS server lacks a feature that Trine needs."""

    code = "server_too_old"
    status = 503


class StoreLockedError(TrineError):
    """Raised when another embedded server already runs on the same store."""

    code = "store_locked"
    status = 409


class AddressInUseError(TrineError):
    """Raised when the address to listen on is taken."""

    code = "address_in_use"
    status = 409


class MissingExtraError(TrineError):
    """Raised when an optional dependency is needed and not installed; names the extra."""

    code = "missing_extra"
    status = 501


class JobFailedError(TrineError):
    """Raised by `Job.result` when every worker that took the job died or never answered."""

    code = "job_failed"


class GiveUp(TrineError):  # noqa: N818 - control flow: a decision, not a fault
    """Raised by a handler to stop retrying: the message goes to the dead letters at once."""

    code = "gave_up"


class RetryLater(TrineError):  # noqa: N818 - control flow: a decision, not a fault
    """Raised by a handler to be called again after *after* seconds, whatever the retry policy."""

    code = "retry_later"
    status = 503
    retryable = True

    def __init__(self, message: str = "not yet", *, after: float) -> None:
        super().__init__(message, after=after)
        self.after = after


class RemoteError(TrineError):
    """Raised when the other side reports a code that this process has no class for."""

    def __init__(self, code: str, status: int, message: str, **details: Any) -> None:
        super().__init__(message, **details)
        self.code = code  # type: ignore[misc]  # per instance: the class is not known here
        self.status = status  # type: ignore[misc]


def _tree(root: type[TrineError]) -> dict[str, type[TrineError]]:
    known: dict[str, type[TrineError]] = {}
    for cls in root.__subclasses__():
        # One without a code of its own is, on the wire, its parent. RetryLater needs its *after*.
        if "code" in vars(cls) and cls is not RetryLater:
            known.setdefault(cls.code, cls)
        known.update(_tree(cls))
    return known


def from_wire(code: str, status: int, message: str, details: dict[str, Any]) -> TrineError:
    """Return the exception that a reply describes, of its own class where this process has it."""
    cls = _tree(TrineError).get(code)
    if cls is None:
        return RemoteError(code, status, message, **details)
    error = cls.__new__(cls)
    TrineError.__init__(error, message, **details)
    return error
