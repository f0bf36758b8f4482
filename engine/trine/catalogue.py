"""Who serves what: every process announces itself; anybody can read or follow the list."""

import hashlib
import os
import socket
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import anyio
from anyio.abc import TaskStatus
from pydantic import BaseModel, ConfigDict

from trine import leases, wire
from trine.bus import Bus
from trine.connection import Msg
from trine.errors import TrineError
from trine.leases import Lease

PRESENCE_SECONDS = 15.0
_DOCUMENT_TTL = "604800s"  # a week; written again at every start


class BindingInfo(BaseModel):
    """A trigger bound to a function."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    function: str
    config: dict[str, Any]


class FunctionInfo(BaseModel):
    """What the catalogue says about a function."""

    model_config = ConfigDict(frozen=True)

    id: str
    doc: str = ""
    streams: bool = False
    timeout: float | None = None
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] = {}
    bindings: list[BindingInfo] = []


class Document(BaseModel):
    """The functions of one process; replicas share it, because it is found by its hash."""

    functions: list[FunctionInfo] = []

    def hash(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class WorkerInfo(BaseModel):
    """A process that serves functions, or trains, as its presence key says."""

    model_config = ConfigDict(frozen=True)

    id: str
    host: str
    pid: int
    started_at: float
    apps: list[str] = []
    document: str = ""  # hash of the `Document`
    version: str = ""


def presence(
    bus: Bus, id: str, *, apps: list[str], document: str = "", started_at: float | None = None
) -> Lease:
    """Return the lease by which this process says that it is there; to be kept while it is."""
    info = WorkerInfo(
        id=id,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=time.time() if started_at is None else started_at,
        apps=apps,
        document=document,
        version=version("trine"),
    )
    return Lease(bus, f"worker.{id}", info.model_dump_json().encode(), PRESENCE_SECONDS)


async def publish(bus: Bus, document: Document) -> str:
    """Store *document* under its hash and return the hash."""
    digest = document.hash()
    subject = bus.names.state("catalogue", digest)
    await bus.store(subject, document.model_dump_json().encode(), {wire.TTL: _DOCUMENT_TTL})
    return digest


async def document(bus: Bus, digest: str) -> Document:
    """Return a stored document; empty when there is none."""
    stored = await bus.last(bus.names.record, bus.names.state("catalogue", digest))
    return Document() if stored is None else Document.model_validate_json(stored.payload)


async def workers(bus: Bus) -> list[WorkerInfo]:
    """Return the processes that are alive now, the oldest first."""
    found = await leases.held(bus, "worker.*")
    infos = [WorkerInfo.model_validate_json(stored.payload) for stored in found]
    return sorted(infos, key=lambda info: info.started_at)


async def functions(bus: Bus) -> dict[str, FunctionInfo]:
    """Return every function that somebody serves now, by id."""
    known: dict[str, FunctionInfo] = {}
    for digest in {info.document for info in await workers(bus) if info.document}:
        known.update({info.id: info for info in (await document(bus, digest)).functions})
    return dict(sorted(known.items()))


class Directory:
    """The catalogue, kept up to date while `run` runs; ``on_change`` is called with each change."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._alive: dict[str, tuple[str, float]] = {}  # worker: document, seen at
        self._documents: dict[str, Document] = {}
        self._wake = anyio.Event()
        self.functions: dict[str, FunctionInfo] = {}
        self.on_change: Callable[[], None] | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        listener = await self._bus.connection.listen(
            self._bus.names.lease("worker.*"), self._receive
        )
        try:
            for info in await workers(self._bus):
                self._alive[info.id] = (info.document, time.monotonic())
            await self._refresh()
            task_status.started()
            while True:
                self._wake = anyio.Event()
                with anyio.move_on_after(PRESENCE_SECONDS / 3):
                    await self._wake.wait()
                await self._refresh()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await listener.close()

    def _receive(self, message: Msg) -> None:
        worker = message.subject.rsplit(".", 1)[1]
        if wire.KV_OPERATION in (message.headers or {}):
            self._alive.pop(worker, None)
            self._wake.set()
            return
        info = WorkerInfo.model_validate_json(message.data)
        new = worker not in self._alive
        self._alive[worker] = (info.document, time.monotonic())
        if new:
            self._wake.set()

    async def _refresh(self) -> None:
        limit = time.monotonic() - PRESENCE_SECONDS - 1
        self._alive = {worker: seen for worker, seen in self._alive.items() if seen[1] > limit}
        known: dict[str, FunctionInfo] = {}
        for digest in sorted({seen[0] for seen in self._alive.values() if seen[0]}):
            if digest not in self._documents:
                try:
                    self._documents[digest] = await document(self._bus, digest)
                except TrineError:
                    self._wake.set()
                    continue
            known.update({info.id: info for info in self._documents[digest].functions})
        if known != self.functions:
            self.functions = known
            if self.on_change is not None:
                self.on_change()
