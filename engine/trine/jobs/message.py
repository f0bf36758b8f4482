"""What a job is on the wire: its id, its lane, and the one message that stores it or delays it."""

import hashlib
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from trine import wire
from trine.bus import Message
from trine.errors import UsageError
from trine.invocation import caused, new_id
from trine.wire import Names

ANY = "any"  # the requirement that every worker meets
Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
PARTITIONS = 8  # of a queue that keeps the order of each key
KEEP_SECONDS = 24 * 3600.0  # how long the result of a job is kept
KEEP_LIMIT = 7 * 24 * 3600.0
_TOKEN_LIMIT = 128


class Ref(NamedTuple):
    """Which job: its queue, and its id there."""

    queue: str
    id: str

    def __str__(self) -> str:
        return f"{self.queue}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Return the job that ``queue/id`` names."""
        queue, slash, id = text.partition("/")
        if not slash or not id:
            raise UsageError(f"{text!r} names no job: queue/id does")
        return cls(wire.name(queue, "queue"), job_token(id))

    @classmethod
    def of(cls, subject: str) -> "Ref":
        """Return the job whose message has *subject*."""
        _, queue, _, _, id = subject.rsplit(".", 4)
        return cls(queue, id)


@dataclass(frozen=True, slots=True)
class Order:
    """How a job is to be enqueued; what the caller of `Sends.send` and `enqueue` said."""

    id: str | None = None
    delay: float | None = None  # seconds
    at: datetime | None = None
    priority: Priority = "normal"
    key: str | None = None
    keep: float | None = None  # seconds
    requirement: str = ANY
    function: str = ""

    def __post_init__(self) -> None:
        if self.delay is not None and self.at is not None:
            raise UsageError("a job has a delay or a time, not both")
        if self.delay is not None and self.delay < 0:
            raise UsageError(f"a delay of {self.delay:g} seconds")
        if self.at is not None and self.at.tzinfo is None:
            raise UsageError("at= needs a time with a time zone")
        if self.priority not in PRIORITIES:
            raise UsageError(f"priority {self.priority!r} is none of {', '.join(PRIORITIES)}")
        if self.key is not None and self.priority != "normal":
            raise UsageError("a job with a key keeps its order: it has no priority")
        if self.keep is not None and not 0 <= self.keep <= KEEP_LIMIT:
            raise UsageError(f"a result is kept for 0 to {KEEP_LIMIT:g} seconds")

    @property
    def lane(self) -> str:
        return self.priority if self.key is None else partition(self.key)

    @property
    def due(self) -> datetime | None:
        """When it is to be enqueued; None: now."""
        if self.at is not None:
            return self.at
        return datetime.now(UTC) + timedelta(seconds=self.delay) if self.delay else None


class Prepared(NamedTuple):
    """A job that is ready to be stored."""

    ref: Ref
    message: Message  # as it is to arrive in its queue
    due: datetime | None

    def recorded(self, names: Names, *, once: bool) -> Message:
        """Return the message for the record, from where the job gets into its queue when due.

        *once*: refused, as a `WriteConflictError`, if the record has a schedule or a copy of it.
        """
        headers = dict(self.message.headers or {})
        subject = names.relayed(self.message.subject)
        life = f"{wire.RELAY_SECONDS}s"
        if once:
            headers[wire.EXPECTED_SEQUENCE] = "0"
            headers[wire.EXPECTED_SUBJECT] = names.job_guard(*self.ref)
        if self.due is None:
            headers[wire.TTL] = life
            return Message(subject, self.message.payload, headers)
        headers[wire.SCHEDULE] = f"@at {self.due.astimezone(UTC).isoformat()}"
        headers[wire.SCHEDULE_TARGET] = subject
        headers[wire.SCHEDULE_TTL] = life
        place = self.message.subject.removeprefix(f"{names.namespace}.job.").split(".")
        return Message(names.delayed(*place), self.message.payload, headers)


def prepare(
    names: Names, queue: str, content: bytes, order: Order, *, unique: str | None = None
) -> Prepared:
    """Return the job of *order* with the payload *content*."""
    headers = caused()
    if order.function:
        headers[wire.FUNCTION] = order.function
    if order.keep is not None:
        headers[wire.KEEP] = f"{order.keep:g}"
    if unique is not None:
        headers[wire.UNIQUE] = unique
    id = new_id() if order.id is None else job_token(order.id)
    ref = Ref(wire.name(queue, "queue"), id)
    subject = names.job(queue, wire.name(order.requirement, "requirement"), order.lane, id)
    return Prepared(ref, Message(subject, content, headers), order.due)


def job_token(id: str) -> str:
    """Return *id* as one token of a subject; different ids stay different."""
    token = wire.token(id)
    if token == id:
        return id
    return f"{token[: _TOKEN_LIMIT - 17]}-{hashlib.sha256(id.encode()).hexdigest()[:16]}"


def partition(key: str) -> str:
    """Return the lane of the jobs with *key*: they run in order where the queue is ``fifo``."""
    return f"p{zlib.crc32(key.encode()) % PARTITIONS}"
