"""Typed state: a store reads, writes and watches the keys of one scope."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio

from trine import wire
from trine.bus import Bus, Stored
from trine.errors import ConflictError, KeyMissingError, UnavailableError, WriteConflictError
from trine.scope import Scope
from trine.transaction import Transaction

M = TypeVar("M")
_CHANGE_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Entry(Generic[M]):
    """A value as it was read; ``revision`` is what `Store.replace` compares."""

    key: str
    value: M
    revision: int


@dataclass(frozen=True, slots=True)
class Gone:
    """A key that `Store.watch` saw deleted or expired."""

    key: str
    revision: int


class Store(Generic[M]):
    """The keys of one scope. Every write is acknowledged by the server before it returns."""

    def __init__(self, bus: Bus, scope: Scope[M]) -> None:
        self._bus = bus
        self._scope = scope

    async def find(self, key: str) -> Entry[M] | None:
        """Return the entry, or None."""
        stored = await self._bus.last(self._bus.names.record, self._subject(key))
        return None if stored is None or stored.gone else self._entry(stored)

    async def get(self, key: str) -> Entry[M]:
        """Return the entry; `KeyMissingError` when there is none."""
        entry = await self.find(key)
        if entry is None:
            raise KeyMissingError(f"{self._scope.name} has no key {key!r}", key=key)
        return entry

    async def put(self, key: str, value: M) -> None:
        """Write whatever was there: the last writer wins."""
        for _ in range(_CHANGE_ATTEMPTS):
            try:
                async with Transaction(self._bus) as tx:
                    tx.put(self._scope, key, value)
                return
            except WriteConflictError:  # only where the old value goes into the event
                continue
        raise WriteConflictError(f"{self._scope.name}.{key} is written too often")

    async def create(self, key: str, value: M) -> None:
        """Write a key that must not exist; `ConflictError` when it does."""
        try:
            async with Transaction(self._bus) as tx:
                tx.create(self._scope, key, value)
        except WriteConflictError as error:
            raise ConflictError(f"{self._scope.name} has a key {key!r} already") from error

    async def replace(self, entry: Entry[M], value: M) -> None:
        """Write unless somebody wrote since *entry* was read; `WriteConflictError` then."""
        async with Transaction(self._bus) as tx:
            tx.replace(self._scope, entry.key, entry.revision, value)

    async def change(self, key: str, default: M, apply: Callable[[M], M]) -> M:
        """Read, apply, write, until nobody was faster; return what was written.

        No update is ever lost. *apply* may run more than once.
        """
        for attempt in range(_CHANGE_ATTEMPTS):
            try:
                async with Transaction(self._bus) as tx:
                    found = await tx.find(self._scope, key)
                    value = apply(default if found is None else found)
                    tx.put(self._scope, key, value)
                return value
            except WriteConflictError:
                await anyio.sleep(0.001 * attempt)  # spreads many writers of one key
        raise WriteConflictError(f"{self._scope.name}.{key} is written too often")

    async def delete(self, key: str) -> None:
        """Delete the key; nothing happens when there is none."""
        async with Transaction(self._bus) as tx:
            tx.delete(self._scope, key)

    async def entries(self, prefix: str = "") -> list[Entry[M]]:
        """Return the entries whose keys are below *prefix* (``mar11`` finds ``mar11.exp-1``)."""
        pattern = f"{prefix}.>" if prefix else ">"
        found = await self._bus.latest(self._bus.names.record, [self._pattern(pattern)])
        return [self._entry(stored) for stored in found if not stored.gone]

    async def many(self, keys: list[str]) -> list[Entry[M]]:
        """Return the entries of those of *keys* that exist, in the order of their last change."""
        found = []
        for start in range(0, len(keys), 500):
            subjects = [self._subject(key) for key in keys[start : start + 500]]
            found += await self._bus.latest(self._bus.names.record, subjects)
        return [self._entry(stored) for stored in found if not stored.gone]

    async def watch(self, prefix: str = "") -> AsyncGenerator[Entry[M] | Gone, None]:
        """Give every entry below *prefix*, then every change, for as long as it is iterated.

        A slow reader sees the latest value of each key, not each value.
        """
        names, connection = self._bus.names, self._bus.connection
        pattern = f"{prefix}.>" if prefix else ">"
        given: dict[str, int] = {}  # subject: the sequence that was given last
        pending: dict[str, Stored] = {}
        wake, behind, first = anyio.Event(), True, True

        def offer(stored: Stored) -> None:
            subject = stored.subject
            known = pending[subject].sequence if subject in pending else given.get(subject, 0)
            if stored.sequence > known and (known or not stored.gone):
                pending[subject] = stored
                wake.set()

        def catch_up() -> None:
            nonlocal behind
            behind = True
            wake.set()

        listener = await connection.listen(
            names.live(self._scope.name, pattern), lambda message: offer(Stored.of(message))
        )
        connection.on_reconnect.add(catch_up)
        try:
            while True:
                if behind:
                    behind = False
                    try:
                        found = await self._bus.latest(names.record, [self._pattern(pattern)])
                    except UnavailableError:
                        if first:
                            raise
                        await anyio.sleep(0.5)  # the server starts again
                        behind = True
                        continue
                    first = False
                    for stored in found:
                        offer(stored)
                while pending:
                    subject = next(iter(pending))
                    stored = pending.pop(subject)
                    given[subject] = stored.sequence
                    if stored.gone:
                        yield Gone(self._key(subject), stored.sequence)
                    else:
                        yield self._entry(stored)
                if not behind:
                    wake = anyio.Event()
                    await wake.wait()
        finally:
            connection.on_reconnect.discard(catch_up)
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await listener.close()

    def _subject(self, key: str) -> str:
        return self._bus.names.state(self._scope.name, wire.key(key))

    def _pattern(self, pattern: str) -> str:
        return self._bus.names.state(self._scope.name, pattern)

    def _key(self, subject: str) -> str:
        return self._bus.names.key_of(subject).split(".", 1)[1]

    def _entry(self, stored: Stored) -> Entry[M]:
        return Entry(self._key(stored.subject), self._scope.decode(stored.payload), stored.sequence)
