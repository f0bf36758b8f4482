"""Transactions: state, jobs and events of one decision, all stored or none.

One atomic batch into the record carries the new values, each with its own compare-and-set, and
copies of the jobs and events, which JOBS and EVENTS source from there. What was read and not
written is guarded too, so a transaction commits only if everything that it saw still holds.
"""

import uuid
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from trine import wire
from trine.bus import Bus, Message, Stored
from trine.errors import KeyMissingError, TrineError, WriteConflictError
from trine.events import Changed, EventModel, changed_message
from trine.events import message as event_message
from trine.invocation import current
from trine.jobs.message import ANY, Order, Prepared, Priority, Ref, prepare
from trine.payload import INLINE_BYTES, discard, encode, pack
from trine.scope import Scope
from trine.sending import EVENT_SECONDS, callee

if TYPE_CHECKING:
    from trine.function import Function

M = TypeVar("M")
_RELAY = {wire.TTL: f"{wire.RELAY_SECONDS}s"}
_ABSENT = Stored("", b"", 0, {wire.KV_OPERATION: "DEL"})


class Transaction:
    """``async with client.transaction() as tx``: commits when the block ends without an error.

    `WriteConflictError` on leaving the block means that another writer was faster and nothing was
    stored. A function declared with ``retry=Retry(...)`` is then run again, from its start.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._seen: dict[str, Stored] = {}
        self._expected: dict[str, int] = {}  # revision, where not what was seen
        self._writes: dict[str, tuple[Scope[Any], str, bytes | None]] = {}
        self._created: set[str] = set()
        self._sent: list[Message] = []
        self._once: dict[str, tuple[Prepared, Message]] = {}  # jobs with an id of the caller's
        self.committed = 0  # sequence of the last message, once committed

    # --- reading -------------------------------------------------------------------------------

    async def find(self, scope: Scope[M], key: str) -> M | None:
        """Return the value, as this transaction would leave it, or None."""
        subject = self._subject(scope, key)
        if subject in self._writes:
            payload = self._writes[subject][2]
            return None if payload is None else scope.decode(payload)
        stored = await self._read(subject)
        return None if stored.gone else scope.decode(stored.payload)

    async def get(self, scope: Scope[M], key: str) -> M:
        """Return the value; `KeyMissingError` when there is none."""
        value = await self.find(scope, key)
        if value is None:
            raise KeyMissingError(f"{scope.name} has no key {key!r}", key=key)
        return value

    async def _read(self, subject: str) -> Stored:
        if subject not in self._seen:
            found = await self._bus.last(self._bus.names.record, subject)
            self._seen[subject] = _ABSENT if found is None else found
        return self._seen[subject]

    # --- writing -------------------------------------------------------------------------------

    def put(self, scope: Scope[M], key: str, value: M) -> None:
        """Write *value*; compared with what was read, if it was read."""
        self._writes[self._subject(scope, key)] = (scope, key, scope.encode(value))

    def create(self, scope: Scope[M], key: str, value: M) -> None:
        """Write a key that must not exist, else the commit is a `WriteConflictError`."""
        self.put(scope, key, value)
        self._created.add(self._subject(scope, key))

    def replace(self, scope: Scope[M], key: str, revision: int, value: M) -> None:
        """Write if the key is still at *revision*."""
        self.put(scope, key, value)
        self._expected[self._subject(scope, key)] = revision

    def delete(self, scope: Scope[M], key: str) -> None:
        """Delete the key."""
        self._writes[self._subject(scope, key)] = (scope, key, None)

    def emit(self, event: EventModel, *, id: str | None = None) -> None:
        """Emit *event* if, and only if, the transaction commits."""
        self._relay(event_message(self._bus.names, event, id))

    def send(
        self,
        function: "Function[Any, Any] | str",
        value: Any = None,
        *,
        id: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        priority: Priority = "normal",
        keep: float | None = None,
    ) -> str:
        """Enqueue a durable call if the transaction commits; return the job's ``queue/id``.

        The arguments are those of `Sends.send`; one *id* that was sent before is not sent again.
        """
        name, content, _ = callee(function, value)
        order = Order(id, delay, at, priority, None, keep, ANY, name)
        return self._enqueue(wire.function_queue(name), content, order)

    def enqueue(
        self,
        queue: str,
        value: Any,
        *,
        id: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        priority: Priority = "normal",
        keep: float | None = None,
        key: str | None = None,
        requirement: str = ANY,
    ) -> str:
        """Put *value* into a named queue if the transaction commits; return ``queue/id``."""
        order = Order(id, delay, at, priority, key, keep, requirement)
        return self._enqueue(queue, encode(value), order)

    def _enqueue(self, queue: str, content: bytes, order: Order) -> str:
        job = prepare(self._bus.names, queue, content, order)
        message = job.recorded(self._bus.names, once=order.id is not None)
        if order.id is None:
            self._sent.append(message)
        else:
            self._once[str(job.ref)] = (job, message)
        return str(job.ref)

    def _relay(self, message: Message) -> None:
        subject = self._bus.names.relayed(message.subject)
        headers = {**(message.headers or {}), **_RELAY}
        self._sent.append(Message(subject, message.payload, headers))

    # --- committing ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.commit()

    async def commit(self) -> None:
        """Store everything, or raise and store nothing."""
        if not self._writes and not self._sent and not self._once:
            return
        for subject, (scope, _, _) in self._writes.items():
            if subject in self._created or scope.changes:
                await self._read(subject)
        messages = self._sent + await self._not_yet() + self._changes() + self._puts()
        if not messages:
            return
        messages, references = await self._packed(messages)
        try:
            self.committed = await self._bus.batch(self._guarded(messages))
        except TrineError:
            for reference in references:
                await discard(self._bus, reference)
            raise

    async def _not_yet(self) -> list[Message]:
        """Return the jobs with an id that nobody has enqueued before."""
        if not self._once:
            return []
        names = self._bus.names
        guards = [names.job_guard(*job.ref) for job, _ in self._once.values()]
        found = await self._bus.latest(names.record, guards)
        before = {str(Ref.of(stored.subject)) for stored in found}
        return [message for ref, (_, message) in self._once.items() if ref not in before]

    async def _packed(self, messages: list[Message]) -> tuple[list[Message], list[dict[str, str]]]:
        """Let the large payloads of jobs and events travel by reference; state is never large."""
        packed: list[Message] = []
        references: list[dict[str, str]] = []
        state = self._bus.names.state("", "")[:-1]
        for message in messages:
            if len(message.payload) > INLINE_BYTES and not message.subject.startswith(state):
                job = message.subject.startswith(self._bus.names.relayed_jobs)
                content, reference = await pack(
                    self._bus, message.payload, None if job else EVENT_SECONDS
                )
                references.append(reference)
                message = message._replace(  # noqa: PLW2901
                    payload=content, headers={**(message.headers or {}), **reference}
                )
            packed.append(message)
        return packed, references

    def _puts(self) -> list[Message]:
        cause = current.get()
        messages = []
        for subject, (_, _, payload) in self._writes.items():
            headers = {} if payload is not None else {wire.KV_OPERATION: "DEL"}
            if cause is not None:
                cause.trace(headers)  # of the Key triggers that this write fires
            expected = self._expected.get(subject)
            if subject in self._seen:
                seen = self._seen[subject]
                if subject in self._created and not seen.gone:
                    raise WriteConflictError(f"{subject.split('.', 2)[2]} exists already")
                if expected is not None and expected != seen.sequence:
                    raise WriteConflictError("somebody else wrote first")
                expected = seen.sequence
            if expected is not None:
                headers[wire.EXPECTED_SEQUENCE] = str(expected)
            messages.append(Message(subject, payload or b"", headers))
        return messages

    def _changes(self) -> list[Message]:
        cause = current.get()
        messages = []
        for subject, (scope, key, payload) in self._writes.items():
            if not scope.changes:
                continue
            seen = self._seen[subject]
            change = Changed(
                scope=scope.name,
                key_name=key,
                operation="put" if payload is not None else "delete",
                old=None if seen.gone else wire.loads(seen.payload),
                new=None if payload is None else wire.loads(payload),
                actor=cause.function if cause else "client",
                cause=cause.id if cause else "",
            )
            made = changed_message(self._bus.names, change)
            relayed = self._bus.names.relayed(made.subject)
            messages.append(Message(relayed, made.payload, {**(made.headers or {}), **_RELAY}))
        return messages

    def _guarded(self, messages: list[Message]) -> list[Message]:
        """Let messages without an expectation of their own carry one for each key only read."""
        guards = [(s, seen.sequence) for s, seen in self._seen.items() if s not in self._writes]
        guarded = []
        trace: str | None = None  # outside of functions each message would begin one of its own
        for message in messages:
            headers = dict(message.headers or {})
            if wire.TRACEPARENT in headers and current.get() is None:
                trace = headers[wire.TRACEPARENT] = trace or headers[wire.TRACEPARENT]
            if guards and wire.EXPECTED_SEQUENCE not in headers:
                subject, sequence = guards.pop()
                headers[wire.EXPECTED_SUBJECT] = subject
                headers[wire.EXPECTED_SEQUENCE] = str(sequence)
            guarded.append(message._replace(headers=headers))
        for subject, sequence in guards:
            headers = {
                wire.EXPECTED_SUBJECT: subject,
                wire.EXPECTED_SEQUENCE: str(sequence),
                wire.TTL: "1s",
            }
            guarded.insert(0, Message(self._bus.names.guard(uuid.uuid4().hex), b"", headers))
        return guarded

    def _subject(self, scope: Scope[Any], key: str) -> str:
        return self._bus.names.state(scope.name, wire.key(key))
