"""Transactions: state, jobs and events of one decision, all stored or none.

One atomic batch into the record carries the new values, each with its own compare-and-set, and
copies of the jobs and events, which JOBS and EVENTS source from there. What was read and not
written is guarded too, so a transaction commits only if everything that it saw still holds.
"""

import uuid
from types import TracebackType
from typing import Any, Self, TypeVar

from trine import wire
from trine.bus import Bus, Message, Stored
from trine.errors import KeyMissingError, WriteConflictError
from trine.events import Changed, EventModel, changed_message
from trine.events import message as event_message
from trine.function import Function, encode_payload
from trine.invocation import current, new_id
from trine.jobs import ANY, job_message
from trine.scope import Scope

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
        self, function: Function[Any, Any] | str, value: Any = None, *, id: str | None = None
    ) -> str:
        """Enqueue a durable call if the transaction commits; return the job's id."""
        if isinstance(function, str):
            name, payload = wire.function_id(function), encode_payload(value)
        else:
            name, payload = function.id, function.encode_input(value)
        job = id or new_id()
        queue = wire.function_queue(name)
        self._relay(job_message(self._bus.names, queue, job, payload, function=name))
        return job

    def enqueue(
        self, queue: str, value: Any, *, id: str | None = None, requirement: str = ANY
    ) -> str:
        """Put *value* into a named queue if the transaction commits; return the job's id."""
        job = id or new_id()
        payload = encode_payload(value)
        self._relay(job_message(self._bus.names, queue, job, payload, requirement=requirement))
        return job

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
        if not self._writes and not self._sent:
            return
        for subject, (scope, _, _) in self._writes.items():
            if subject in self._created or scope.changes:
                await self._read(subject)
        messages = self._sent + self._changes() + self._puts()
        self.committed = await self._bus.batch(self._guarded(messages))

    def _puts(self) -> list[Message]:
        messages = []
        for subject, (_, _, payload) in self._writes.items():
            headers = {} if payload is not None else {wire.KV_OPERATION: "DEL"}
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
        for message in messages:
            headers = dict(message.headers or {})
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
