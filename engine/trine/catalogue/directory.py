"""The catalogue as a whole, read once or followed: functions of workers and foreign services."""

import time
import zlib
from collections.abc import Callable, Iterable

import anyio
import structlog
from anyio.abc import TaskStatus
from pydantic import ValidationError

from trine import catalogue, leases, wire
from trine.bus import Bus, Stored
from trine.catalogue import (
    PRESENCE_SECONDS,
    BindingInfo,
    Document,
    FunctionInfo,
    WorkerInfo,
    foreign,
)
from trine.catalogue.foreign import Foreign
from trine.errors import TrineError, UsageError
from trine.scope import Scope
from trine.transport.connection import Msg

log = structlog.get_logger("trine")

bindings = Scope("bindings", BindingInfo)  # those made as data, by id
_MOST_SAID = 1000
_said: set[str] = set()  # what was complained about: a log line for each, not for each reading


async def functions(bus: Bus) -> dict[str, FunctionInfo]:
    """Return every function that somebody serves now, by id, with all its bindings."""
    digests = {info.document for info in await workers(bus) if info.document}
    documents = [await _document(bus, digest) for digest in sorted(digests)]
    data = [info for info, _ in await stored_bindings(bus)]
    return _merged(await foreign.gather(bus), documents, data)


async def workers(bus: Bus) -> list[WorkerInfo]:
    """Return the processes that are alive now; a presence that is not readable is left out."""
    found = [_presence(stored) for stored in await leases.held(bus, "worker.*")]
    return [info for info in found if info is not None]


async def stored_bindings(bus: Bus) -> list[tuple[BindingInfo, int]]:
    """Return the bindings that were made as data, each with its revision.

    What is not readable is left out, and said once: one bad value must not hide the others.
    """
    found = await bus.latest(bus.names.record, [bus.names.state(bindings.name, ">")])
    data = [(binding_of(bus, one), one.sequence) for one in found if not one.gone]
    return [(info, revision) for info, revision in data if info is not None]


def binding_of(bus: Bus, stored: Stored) -> BindingInfo | None:
    """Return the binding under a key of the scope; None, and a log line, if it is none."""
    key = bus.names.key_of(stored.subject).removeprefix(f"{bindings.name}.")
    try:
        info = bindings.decode(stored.payload)
        if info.id != key:
            raise UsageError(f"it says that it is {info.id!r}")
    except TrineError as error:
        _say_once(f"binding {key}", error.message)
        return None
    return info


def _heard(message: Msg) -> Stored | None:
    try:
        return Stored.of(message)
    except ValueError:  # a sequence that is no number: it did not come from the stream
        return None


def _presence(stored: Stored) -> WorkerInfo | None:
    try:
        return WorkerInfo.model_validate_json(stored.payload)
    except ValidationError as error:
        _say_once(stored.subject, str(error))
        return None


async def _document(bus: Bus, digest: str) -> Document:
    try:
        return await catalogue.read(bus, wire.key(digest))
    except (UsageError, ValueError, zlib.error) as error:  # not what a worker publishes
        _say_once(f"document {digest}", str(error))
        return Document()


def _say_once(what: str, why: str) -> None:
    if what not in _said:
        if len(_said) >= _MOST_SAID:
            _said.clear()
        _said.add(what)
        log.warning("catalogue_unreadable", what=what[:200], error=" ".join(why.split())[:500])


def _merged(
    others: dict[str, FunctionInfo], documents: Iterable[Document], data: Iterable[BindingInfo]
) -> dict[str, FunctionInfo]:
    known = dict(others)
    for document in documents:
        known.update({info.id: info for info in document.functions})
    for binding in data:
        if (info := known.get(binding.function)) is not None:
            update = {"bindings": [*info.bindings, binding]}
            known[info.id] = info.model_copy(update=update)
    return dict(sorted(known.items()))


class Directory:
    """The same, kept up to date while `run` runs; ``on_change`` is called with each change."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._alive: dict[str, tuple[str, float]] = {}  # worker: document, seen at
        self._documents: dict[str, Document] = {}
        self._data: dict[str, tuple[BindingInfo | None, int]] = {}  # by key; None: not readable
        self._unread = True  # whether the bindings have to be read (again)
        self._foreign = Foreign(bus)
        self._wake = anyio.Event()
        self._waiting: list[anyio.Event] = []
        self.functions: dict[str, FunctionInfo] = {}
        self.data: dict[str, BindingInfo] = {}  # the bindings made as data, by id
        self.on_change: Callable[[], None] | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        names, connection = self._bus.names, self._bus.connection
        present = await connection.listen(names.lease("worker.*"), self._worker)
        data = await connection.listen(names.live(bindings.name, ">"), self._binding)
        try:
            for info in await workers(self._bus):
                self._alive[info.id] = (info.document, time.monotonic())
            await self._refresh()
            connection.on_reconnect.add(self._reread)
            task_status.started()
            while True:
                self._wake = anyio.Event()
                with anyio.move_on_after(foreign.PING_SECONDS):
                    await self._wake.wait()
                try:
                    await self._foreign.ping()
                    await self._refresh()
                except TrineError:
                    continue  # away: the next turn tries again
        finally:
            connection.on_reconnect.discard(self._reread)
            self._foreign.close()
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await present.close()
                await data.close()

    async def changed(self) -> None:
        """Return at the next change."""
        event = anyio.Event()
        self._waiting.append(event)
        await event.wait()

    def _worker(self, message: Msg) -> None:
        if (stored := _heard(message)) is None:
            return
        worker = stored.subject.rsplit(".", 1)[1]
        if stored.gone:
            self._alive.pop(worker, None)
            self._wake.set()
            return
        info = _presence(stored)
        if info is None:
            return
        new = worker not in self._alive
        self._alive[worker] = (info.document, time.monotonic())
        if new:
            self._wake.set()

    def _binding(self, message: Msg) -> None:
        if (stored := _heard(message)) is None:
            return
        key = self._bus.names.key_of(stored.subject).removeprefix(f"{bindings.name}.")
        info = None if stored.gone else binding_of(self._bus, stored)
        self._data[key] = (info, stored.sequence)
        self._wake.set()

    def _reread(self) -> None:
        self._unread = True  # changes may have been missed: what is there is read again
        self._wake.set()

    async def _read_bindings(self) -> None:
        before = dict(self._data)
        there = {info.id: (info, revision) for info, revision in await stored_bindings(self._bus)}
        # What came while we read is newer than what was read.
        heard = {key: one for key, one in self._data.items() if before.get(key) != one}
        self._data = {**there, **heard}
        self._unread = False

    async def _refresh(self) -> None:
        limit = time.monotonic() - PRESENCE_SECONDS - 1
        self._alive = {worker: seen for worker, seen in self._alive.items() if seen[1] > limit}
        if self._unread:
            await self._read_bindings()
        self._data = {key: one for key, one in self._data.items() if one[0] is not None}
        digests = sorted({digest for digest, _ in self._alive.values() if digest})
        documents = {}
        for digest in digests:
            if digest in self._documents:
                documents[digest] = self._documents[digest]
                continue
            try:
                documents[digest] = await _document(self._bus, digest)
            except TrineError:
                self._wake.set()
        self._documents = documents
        data = {key: info for key, (info, _) in self._data.items() if info is not None}
        known = _merged(self._foreign.functions, documents.values(), data.values())
        if known != self.functions or data != self.data:
            self.functions, self.data = known, data
            waiting, self._waiting = self._waiting, []
            for event in waiting:
                event.set()
            if self.on_change is not None:
                self.on_change()
