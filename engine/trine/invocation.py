"""Which invocation is running: carried by a context variable from handler to client."""

import itertools
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from trine import wire

_process = secrets.token_hex(6)
_numbers = itertools.count(1)


def new_id() -> str:
    """Return an id that is unique over all processes and cheap: it is made for every call."""
    return f"{_process}-{next(_numbers)}"


@dataclass(slots=True)
class Invocation:
    """One run of one function."""

    id: str
    function: str
    worker: str = ""
    attempt: int = 1
    deadline: float | None = None  # by `time.monotonic` of this process
    traceparent: str | None = None
    trigger: str | None = None  # kind of the trigger that fired, None for a call
    facts: dict[str, Any] = field(default_factory=dict)  # what the trigger tells beside the payload

    def remaining(self) -> float | None:
        """Seconds until the caller stops waiting; None when nobody waits."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def headers(self) -> dict[str, str]:
        """What a message caused by this invocation says about its origin."""
        headers = {wire.INVOCATION: self.id}
        if self.traceparent:
            headers[wire.TRACEPARENT] = self.traceparent
        return headers


current: ContextVar[Invocation | None] = ContextVar("trine_invocation", default=None)


def new_traceparent() -> str:
    """Start a trace (W3C Trace Context)."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
