"""Who serves what: every process announces itself; anybody can read or follow the list."""

import contextlib
import hashlib
import os
import re
import socket
import time
import zlib
from importlib.metadata import version
from typing import Any

import anyio
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from trine import leases, wire
from trine.bus import Bus
from trine.catalogue.compatibility import breaking
from trine.errors import TrineError
from trine.leases import Lease

log = structlog.get_logger("trine")

PRESENCE_SECONDS = 15.0
_DOCUMENT_SECONDS = 7 * 24 * 3600  # written again while a worker serves it


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
    version: int = 1  # counts the changes of the schemas
    streams: bool = False
    timeout: float | None = None
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] = {}
    bindings: list[BindingInfo] = []
    foreign: bool = False  # served by the plain NATS micro protocol


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


async def publish(bus: Bus, apps: list[str], document: Document) -> str:
    """Store *document* under its hash and return the hash.

    The version of each function counts on from what the same apps served before; a change that
    breaks callers is logged as a warning.
    """
    latest = bus.names.state("catalogue", wire.token("latest-" + "-".join(sorted(apps))))
    found = await bus.last(bus.names.record, latest)
    if found is not None and not found.gone:
        before = await read(bus, found.payload.decode(errors="replace"))
        document = Document(functions=_versioned(before, document))
    digest = document.hash()
    subject = bus.names.state("catalogue", digest)
    await _store(bus, subject, document)
    if found is None or found.payload != digest.encode():
        await bus.store(latest, digest.encode())
    return digest


async def _store(bus: Bus, subject: str, document: Document) -> None:
    packed = zlib.compress(document.model_dump_json().encode())  # a thousand schemas: 1 MB
    await bus.store(subject, packed, {wire.TTL: f"{_DOCUMENT_SECONDS}s"})


async def renew(bus: Bus, digest: str) -> None:
    """Keep the document of a worker that serves for longer than a document is kept."""
    subject = bus.names.state("catalogue", digest)
    document = await read(bus, digest)
    while True:
        await anyio.sleep(_DOCUMENT_SECONDS / 7)
        try:
            await _store(bus, subject, document)
        except TrineError as error:  # six more days to succeed
            log.warning("document_not_renewed", document=digest, error=error.message)


def _versioned(before: Document, now: Document) -> list[FunctionInfo]:
    known = {info.id: info for info in before.functions}
    functions = []
    for info in now.functions:
        old = known.get(info.id)
        if old is None:
            functions.append(info)
            continue
        schemas = (old.input_schema, info.input_schema, old.output_schema, info.output_schema)
        changed = schemas[0] != schemas[1] or schemas[2] != schemas[3]
        broken = breaking(*schemas) if changed else []
        if broken:
            log.warning("schema_broke", function=info.id, version=old.version + 1, changes=broken)
        functions.append(info.model_copy(update={"version": old.version + changed}))
    return functions


async def read(bus: Bus, digest: str) -> Document:
    """Return a stored document; empty when there is none."""
    if not re.fullmatch("[0-9a-f]{32}", digest):
        return Document()
    stored = await bus.last(bus.names.record, bus.names.state("catalogue", digest))
    if stored is None or stored.gone:
        return Document()
    try:
        return Document.model_validate_json(zlib.decompress(stored.payload))
    except (zlib.error, ValueError) as error:  # not what a worker publishes
        log.warning("document_unreadable", document=digest, error=f"{error!r:.300}")
        return Document()


async def workers(bus: Bus) -> list[WorkerInfo]:
    """Return the processes that are alive now, the oldest first."""
    found = await leases.held(bus, "worker.*")
    infos = []
    for stored in found:
        with contextlib.suppress(ValidationError):  # not what a worker announces
            infos.append(WorkerInfo.model_validate_json(stored.payload))
    return sorted(infos, key=lambda info: info.started_at)


async def serving(bus: Bus, function: str) -> list[WorkerInfo]:
    """Return the processes that serve *function* now."""
    found = await workers(bus)
    documents = {
        digest: {info.id for info in (await read(bus, digest)).functions}
        for digest in {info.document for info in found if info.document}
    }
    return [info for info in found if function in documents.get(info.document, ())]
