"""Which invocation is running, and which trace it belongs to: from handler to client."""

import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from trine import wire

PROCESS = secrets.token_hex(6)  # this process, to those who hear from it
_numbers = itertools.count(1)


def new_id() -> str:
    """Return an id that is unique over all processes and cheap: it is made for every call."""
    return f"{PROCESS}-{next(_numbers)}"


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
    received: Mapping[str, str] = field(default_factory=dict)  # headers of what caused it

    def remaining(self) -> float | None:
        """Seconds until the caller stops waiting; None when nobody waits."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def headers(self) -> dict[str, str]:
        """The headers by which a message says which invocation caused it."""
        headers = {wire.INVOCATION: self.id}
        self.trace(headers)
        return headers

    def trace(self, headers: dict[str, str]) -> None:
        """Let *headers* say which trace goes on, if there is one."""
        if self.traceparent:
            headers[wire.TRACEPARENT] = self.traceparent
            if wire.TRACESTATE in self.received:
                headers[wire.TRACESTATE] = self.received[wire.TRACESTATE]


current: ContextVar[Invocation | None] = ContextVar("trine_invocation", default=None)


@dataclass(slots=True)
class Tracing:
    """How this process takes part in traces: decided once, at the program's edge."""

    sampled_below: int = 1 << 64
    inject: Callable[[dict[str, str]], None] | None = None  # see `trine.observability.telemetry`

    def sample(self, ratio: float) -> None:
        """Let this share of the traces that begin in this process be recorded."""
        self.sampled_below = round(ratio * (1 << 64))

    def samples(self, trace: str) -> bool:
        """Whether the trace with this id is in the share: the same answer in every process."""
        return int(trace[16:], 16) < self.sampled_below


tracing = Tracing()


def new_traceparent() -> str:
    """Start a trace (W3C Trace Context); its last field says whether it is to be recorded."""
    trace = secrets.token_hex(16)
    return f"00-{trace}-{secrets.token_hex(8)}-{'01' if tracing.samples(trace) else '00'}"


def caused() -> dict[str, str]:
    """The headers by which a stored message says what caused it; a trace begins where none is."""
    invocation = current.get()
    headers = invocation.headers() if invocation is not None else {}
    if tracing.inject is not None:
        tracing.inject(headers)
    if wire.TRACEPARENT not in headers:
        headers[wire.TRACEPARENT] = new_traceparent()
    return headers
