"""Functions of other languages: services of the NATS micro protocol, without any code of Trine.

An endpoint whose subject is ``<namespace>.fn.<id>`` is the function ``<id>``. Its metadata may say
more: ``description``, ``timeout`` in seconds, and ``input_schema`` and ``output_schema`` as JSON.
"""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from trine import wire
from trine.bus import Bus
from trine.catalogue import FunctionInfo
from trine.errors import TrineError
from trine.transport.connection import Inbox, Msg

PING_SECONDS = 0.8
_GONE_SECONDS = 3.0  # without an answer to several pings
_AGAIN_SECONDS = 5.0  # endpoints may be added to a service that runs
_ANSWER_SECONDS = 0.25  # for all who are there to answer a ping
_DESCRIBE_SECONDS = 1.0  # for those who answered to say what they serve
_MOST_SERVICES = 10_000  # who answers with more ids than that is not believed
_DOC_CHARACTERS = 10_000
_NAME = re.compile(r"[-_=a-zA-Z0-9]{1,128}")  # what the micro protocol allows; it goes in a subject


@dataclass(slots=True)
class _Service:
    """One instance of a service that answers."""

    first: float = field(default_factory=time.monotonic)
    seen: float = 0.0
    asked: float = -math.inf
    functions: dict[str, FunctionInfo] | None = None  # None until it has said them


class Foreign:
    """The foreign services that answer now; `ping` asks them, the answers come by themselves."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._services: dict[str, _Service] = {}  # by the id of the instance
        self._pings: Inbox | None = None
        self._infos: Inbox | None = None
        self._told = anyio.Event()

    async def ping(self) -> None:
        """Ask who is there; those that are new are asked what they serve."""
        connection = self._bus.connection
        if self._pings is None or self._infos is None:
            self._infos = await connection.inbox(self._info)
            self._pings = await connection.inbox(self._pong)
        connection.send("$SRV.PING", b"", self._pings.subject)
        limit = time.monotonic() - _GONE_SECONDS
        for gone in [id for id, one in self._services.items() if one.seen < limit]:
            del self._services[gone]

    def close(self) -> None:
        """Listen to answers no more."""
        for inbox in (self._pings, self._infos):
            if inbox is not None:
                inbox.close()

    @property
    def functions(self) -> dict[str, FunctionInfo]:
        """The functions of all of them, by id."""
        found: dict[str, FunctionInfo] = {}
        for service in self._services.values():
            found.update(service.functions or {})
        return found

    async def described(self) -> None:
        """Return when everybody who answered a ping has said what it serves."""
        while any(service.functions is None for service in self._services.values()):
            self._told = anyio.Event()
            await self._told.wait()

    def _pong(self, message: Msg) -> None:
        said = _answer(message)
        if said is None or self._infos is None:
            return
        if said["id"] not in self._services and len(self._services) >= _MOST_SERVICES:
            return
        service = self._services.setdefault(said["id"], _Service())
        now = service.seen = time.monotonic()
        # A service that has just started may not have all its endpoints yet: often at first.
        if now - service.asked >= min(_AGAIN_SECONDS, now - service.first):
            service.asked = now
            subject = f"$SRV.INFO.{said['name']}.{said['id']}"
            try:
                self._bus.connection.send(subject, b"", self._infos.subject)
            except TrineError:
                service.asked = -math.inf

    def _info(self, message: Msg) -> None:
        said = _answer(message)
        if said is not None and (service := self._services.get(said["id"])) is not None:
            service.functions = described(self._bus, said)
            self._told.set()


async def gather(bus: Bus) -> dict[str, FunctionInfo]:
    """Return the foreign functions of those who answer within a quarter of a second."""
    services = Foreign(bus)
    try:
        await services.ping()
        await anyio.sleep(_ANSWER_SECONDS)
        with anyio.move_on_after(_DESCRIBE_SECONDS):
            await services.described()
    finally:
        services.close()
    return services.functions


def described(bus: Bus, said: Mapping[str, Any]) -> dict[str, FunctionInfo]:
    """Return the functions in the INFO answer of a service; what is malformed is left out."""
    prefix = bus.names.fn("")
    found = {}
    endpoints = said.get("endpoints")
    for endpoint in endpoints if isinstance(endpoints, list) else ():
        subject = endpoint.get("subject") if isinstance(endpoint, dict) else None
        if not isinstance(subject, str) or not subject.startswith(prefix):
            continue
        try:
            id = wire.function_id(subject.removeprefix(prefix))
        except TrineError:
            continue
        metadata = endpoint.get("metadata")
        if not isinstance(metadata, dict):
            metadata = {}
        doc = metadata.get("description") or said.get("description") or ""
        found[id] = FunctionInfo(
            id=id,
            doc=str(doc)[:_DOC_CHARACTERS],
            timeout=_seconds(metadata.get("timeout")),
            input_schema=_schema(metadata.get("input_schema")),
            output_schema=_schema(metadata.get("output_schema")),
            foreign=True,
        )
    return found


def _seconds(text: Any) -> float | None:
    try:
        seconds = float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < math.inf else None


def _schema(text: Any) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return schema if isinstance(schema, dict) else {}


def _answer(message: Msg) -> dict[str, Any] | None:
    """Return the answer of a service that is not one of our own workers."""
    try:
        said = json.loads(message.data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    for name in ("id", "name"):
        if not isinstance(said.get(name), str) or not _NAME.fullmatch(said[name]):
            return None
    metadata = said.get("metadata")
    return None if isinstance(metadata, dict) and "trine" in metadata else said
