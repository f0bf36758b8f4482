"""Traces: what each sampled invocation leaves behind for a while, and finding it again.

A span is one small message in a stream that the server keeps in memory. It is published without
waiting, at most once: what is lost under load is a line of `trine trace`, never an invocation.
"""

import random
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple, Self

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from trine import wire
from trine.bus import Bus
from trine.errors import TrineError
from trine.invocation import Invocation, tracing

log = structlog.get_logger("trine")

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_TRACE = re.compile(r"[0-9a-f]{32}")
_NAME_LIMIT = 128
_TEXT_LIMIT = 300  # characters of an error
_SPAN_LIMIT = 5000  # chains that run in a loop never end
_SAMPLED = 1


class Place(NamedTuple):
    """Where a message stands in a trace, as its ``traceparent`` says."""

    trace: str
    span: str
    sampled: bool

    @classmethod
    def parse(cls, traceparent: str) -> Self | None:
        """Return the place; None when it is malformed, which starts no trace and ends none."""
        found = _TRACEPARENT.fullmatch(traceparent)
        if found is None or not found[1].strip("0") or not found[2].strip("0"):
            return None
        return cls(found[1], found[2], bool(int(found[3], 16) & _SAMPLED))

    def recorded(self) -> bool:
        """Whether this process records it: it is sampled, and in the share of this process."""
        return self.sampled and tracing.samples(self.trace)

    def child(self) -> "Place":
        """Return a new span below this one."""
        span = f"{random.getrandbits(64) or 1:016x}"
        return Place(self.trace, span, self.sampled)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"


class Span(BaseModel):
    """One run of a function, as `trine trace` shows it."""

    model_config = ConfigDict(frozen=True)

    trace: str
    span: str
    parent: str | None  # the span that caused it
    invocation: str
    function: str
    worker: str
    trigger: str | None  # None for a call
    attempt: int
    started_at: float  # unix seconds
    milliseconds: float
    outcome: str  # ok, or the code of the error
    error: str = ""

    @property
    def ended_at(self) -> float:
        return self.started_at + self.milliseconds / 1000


def publish(
    bus: Bus,
    invocation: Invocation,
    place: Place,
    parent: str | None,
    started_at: float,
    seconds: float,
    outcome: tuple[str, str],
) -> None:
    """Record the run of *invocation*; nothing waits for it, and nothing fails by it."""
    span = {  # a `Span`, which takes five times as long to make
        "trace": place.trace,
        "span": place.span,
        "parent": parent,
        "invocation": invocation.id[:_NAME_LIMIT],
        "function": invocation.function,
        "worker": invocation.worker,
        "trigger": invocation.trigger,
        "attempt": invocation.attempt,
        "started_at": started_at,
        "milliseconds": round(seconds * 1000, 3),
        "outcome": outcome[0],
        "error": outcome[1][:_TEXT_LIMIT],
    }
    subject = bus.names.trace(place.trace, place.span, wire.token(invocation.id))
    with suppress(TrineError):  # the server is away
        bus.connection.send(subject, to_json(span))


async def find(bus: Bus, id: str) -> list[Span]:
    """Return the spans of a trace, named by its own id or by that of one of its invocations.

    In the order of their start, the first 5,000 of them; empty when nothing of it was recorded, or
    is kept any more.
    """
    trace = id if _TRACE.fullmatch(id) else await _trace_of(bus, wire.token(id))
    if trace is None:
        return []
    stored = await bus.latest(bus.names.traces, [bus.names.trace(trace, "*", "*")])
    spans = sorted(_parsed(one.payload for one in stored), key=lambda span: span.started_at)
    return spans[:_SPAN_LIMIT]


async def _trace_of(bus: Bus, invocation: str) -> str | None:
    stored = await bus.latest(bus.names.traces, [bus.names.trace("*", "*", invocation)])
    return next((span.trace for span in _parsed(one.payload for one in reversed(stored))), None)


def _parsed(payloads: Iterable[bytes]) -> Iterator[Span]:
    for payload in payloads:
        try:
            yield Span.model_validate_json(payload)
        except ValidationError as error:
            log.warning("span_unreadable", error=str(error)[:200])


class Branch(NamedTuple):
    """A span and what it caused."""

    span: Span
    below: list["Branch"]


def tree(spans: Iterable[Span]) -> list[Branch]:
    """Return the spans as trees, in their order: those whose cause is not among them are roots.

    Every span is there once, also those of a forged trace that runs in a circle.
    """
    branches = {span.span: Branch(span, []) for span in spans}
    roots: list[Branch] = []
    for branch in branches.values():
        above = branches.get(branch.span.parent or "")
        (roots if above is None else above.below).append(branch)
    reached = {branch.span.span for branch, _ in walk(roots)}
    for id, branch in branches.items():
        if id not in reached:
            branches[branch.span.parent or ""].below.remove(branch)
            roots.append(branch)
            reached |= {below.span.span for below, _ in walk([branch])}
    return roots


def walk(roots: list[Branch]) -> Iterator[tuple[Branch, tuple[bool, ...]]]:
    """Give every branch, causes first, with whether it and each one above it is the last there."""
    waiting: list[tuple[Branch, tuple[bool, ...]]] = [
        (branch, (branch is roots[-1],)) for branch in reversed(roots)
    ]
    while waiting:
        branch, last = waiting.pop()
        yield branch, last
        waiting += [(below, (*last, below is branch.below[-1])) for below in reversed(branch.below)]
