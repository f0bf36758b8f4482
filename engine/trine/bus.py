"""What Trine asks of the server: requests, stored messages, atomic batches and direct reads.

nats-py's own JetStream code is used for setting up streams and for objects; the paths that run
for every call, job and write are here, over `trine.transport`.
"""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nats import errors as nats_errors
from pydantic_core import from_json  # several times as fast as json

from trine import wire
from trine.calling import Calling
from trine.errors import (
    ConflictError,
    InternalError,
    StorageFullError,
    TooLargeError,
    TrineError,
    UnavailableError,
    WriteConflictError,
)
from trine.transport.connection import Connection, Msg
from trine.wire import Names

PAYLOAD_LIMIT = 256 * 1024 * 1024  # bytes; what is larger is refused before anything is sent
_API_SECONDS = 5.0
_MULTI_LIMIT = 1000  # the server refuses more than 1,024 subjects in one multi-get
_BATCHES_IN_FLIGHT = 16  # the server refuses the 51st open batch of a stream
_BATCH_LIMIT = 1000
_FULL = (10023, 10028, 10047, 10051, 10077)  # the server's codes for a full store


class Message(NamedTuple):
    """A message to store."""

    subject: str
    payload: bytes = b""
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored message; ``gone`` when it is the marker of a deletion or an expiry."""

    subject: str
    payload: bytes
    sequence: int
    headers: Mapping[str, str]

    @classmethod
    def of(cls, message: Msg) -> "Stored":
        headers = message.headers or {}
        subject = headers.get(wire.SUBJECT, message.subject)
        return cls(
            subject, message.data, wire.whole(headers.get(wire.SEQUENCE), 1 << 62, 0), headers
        )

    @property
    def gone(self) -> bool:
        return wire.KV_OPERATION in self.headers or wire.MARKER_REASON in self.headers


class Bus:
    """One connection, and the names of one namespace."""

    def __init__(self, connection: Connection, names: Names) -> None:
        self.connection = connection
        self.names = names
        self.payload_limit = PAYLOAD_LIMIT
        self.calling = Calling(connection, names)
        self._batches = asyncio.Semaphore(_BATCHES_IN_FLIGHT)

    @property
    def max_payload(self) -> int:
        """Bytes that fit into one message beside its headers."""
        return int(self.connection.max_payload) - wire.PAYLOAD_MARGIN

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float = _API_SECONDS,
    ) -> Msg:
        """Return the reply. `UnavailableError` when nobody listens or nobody answers."""
        try:
            return await self.connection.request(subject, payload, timeout, headers=headers)
        except nats_errors.NoRespondersError as error:
            raise UnavailableError(f"nobody answers on {subject}", subject=subject) from error
        except nats_errors.TimeoutError as error:
            raise UnavailableError(
                f"no answer on {subject} within {timeout:g} s:"
                " the server is away, or cannot write (is its disk full?)",
                subject=subject,
            ) from error
        except nats_errors.Error as error:
            raise UnavailableError(f"NATS: {error!r}") from error

    async def api(self, call: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call the JetStream API, for example ``CONSUMER.DELETE.<stream>.<name>``."""
        reply = await self.request(f"$JS.API.{call}", wire.dumps(body) if body else b"")
        return _checked(from_json(reply.data))

    async def store(
        self, subject: str, payload: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> int:
        """Publish into the stream of *subject* and return the sequence: the server has it."""
        if len(payload) > self.max_payload:
            raise TooLargeError(
                f"a message of {len(payload)} bytes is above the limit of {self.max_payload}",
                size=len(payload),
                limit=self.max_payload,
            )
        reply = await self.request(subject, payload, headers)
        return int(_checked(from_json(reply.data))["seq"])

    async def batch(self, messages: Sequence[Message]) -> int:
        """Store all of *messages* in one stream, or none; return the sequence of the last.

        The others have the sequences before it, in order. Any failed expectation in any message
        is a `WriteConflictError`, and nothing is written.
        """
        if len(messages) > _BATCH_LIMIT:
            raise TooLargeError(
                f"a transaction of {len(messages)} messages, at most {_BATCH_LIMIT}"
            )
        if len(messages) == 1:
            return await self.store(*messages[0])
        for message in messages:
            if len(message.payload) > self.max_payload:
                raise TooLargeError(f"a message of {len(message.payload)} bytes in a transaction")
        async with self._batches:
            while True:
                try:
                    return await self._batch_once(messages)
                except _BusyError:
                    await asyncio.sleep(0.05)

    async def _batch_once(self, messages: Sequence[Message]) -> int:
        batch = {wire.BATCH_ID: uuid.uuid4().hex}
        for number, (subject, payload, headers) in enumerate(messages[:-1], 1):
            head = {**batch, wire.BATCH_SEQUENCE: str(number), **(headers or {})}
            self.connection.send(subject, payload, headers=head)
        subject, payload, headers = messages[-1]
        commit = {wire.BATCH_SEQUENCE: str(len(messages)), wire.BATCH_COMMIT: "1"}
        reply = await self.request(subject, payload, {**batch, **commit, **(headers or {})})
        return int(_checked(from_json(reply.data))["seq"])

    async def last(self, stream: str, subject: str) -> Stored | None:
        """Return the latest message on *subject*, also a marker; None when there is none."""
        reply = await self.request(f"$JS.API.DIRECT.GET.{stream}.{subject}")
        headers = reply.headers or {}
        if headers.get(wire.STATUS) == "404":
            return None
        if wire.STATUS in headers:
            raise InternalError(f"reading {subject}: {headers.get(wire.DESCRIPTION, headers)}")
        return Stored.of(reply)

    async def latest(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        """Return the latest message on each of *subjects*, wildcards allowed, in stream order.

        Up to 1,000 matches come from one consistent snapshot; more are read in several.
        """
        try:
            return await self._latest_once(stream, subjects)
        except _TooManyError:
            exact = [s for pattern in subjects for s in await self.subjects(stream, pattern)]
        found = []
        for start in range(0, len(exact), _MULTI_LIMIT):
            found += await self._latest_once(stream, exact[start : start + _MULTI_LIMIT])
        return sorted(found, key=lambda stored: stored.sequence)

    async def _latest_once(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        if not subjects:
            return []
        return await self._read(stream, {"multi_last": list(subjects), "batch": _MULTI_LIMIT + 24})

    async def following(self, stream: str, subject: str, start: int, count: int) -> list[Stored]:
        """Return up to *count* messages on *subject* from sequence *start* on, in order."""
        return await self._read(
            stream, {"seq": start, "next_by_subj": subject, "batch": count, "max_bytes": 16 << 20}
        )

    async def _read(self, stream: str, query: dict[str, Any]) -> list[Stored]:
        found: list[Stored] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def receive(message: Msg) -> None:
            status = (message.headers or {}).get(wire.STATUS)
            if status is None:
                found.append(Stored.of(message))
            elif not done.done():
                if status in ("204", "404"):
                    done.set_result(None)
                elif status == "413":
                    done.set_exception(_TooManyError("too many keys"))
                else:
                    done.set_exception(UnavailableError(f"reading {stream}: {message.headers}"))

        inbox = await self.connection.inbox(receive)
        try:
            self.connection.send(f"$JS.API.DIRECT.GET.{stream}", wire.dumps(query), inbox.subject)
            async with asyncio.timeout(_API_SECONDS * 2):
                await done
        except TimeoutError as error:
            raise UnavailableError(f"reading {stream} took too long") from error
        finally:
            inbox.close()
        return found

    async def consumers(self, stream: str) -> list[str]:
        """Return the names of the consumers of *stream*."""
        names: list[str] = []
        while True:
            page = await self.api(f"CONSUMER.NAMES.{stream}", {"offset": len(names)})
            names += page.get("consumers") or []
            if not page.get("consumers") or len(names) >= page.get("total", 0):
                return names

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """Return every subject of *stream* that matches *pattern*."""
        names: list[str] = []
        while True:
            info = await self.api(
                f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": len(names)}
            )
            page = info["state"].get("subjects") or {}
            names += page
            if not page or len(names) >= info.get("total", 0):
                return names


class _BusyError(TrineError):
    """Too many batches are open: the server will take this one in a moment."""


class _TooManyError(TrineError):
    """More keys match than one snapshot may hold."""


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    """Return *reply*, or raise the error that it carries."""
    error = reply.get("error")
    if not error:
        return reply
    raise error_of(error.get("err_code", 0), error.get("code", 0), error.get("description", ""))


def error_of(code: int, status: int, text: str) -> TrineError:
    """Return our error for one of JetStream's, by its own code and its HTTP-like status."""
    if code in (10071, 10164):  # single server, replicated stream
        return WriteConflictError("somebody else wrote first", server=text)
    if code == 10201:
        return ConflictError("a message with this id is stored already", server=text)
    if code == 10210:
        return _BusyError(text)
    if code in _FULL or "no space" in text or "insufficient" in text:
        return StorageFullError(
            f"the NATS server cannot store more ({text}):"
            " free disk space or raise its limit, then repeat",
            server=text,
        )
    if status == 404:
        return UnavailableError(f"JetStream: {text}", server=text, err_code=code)
    return InternalError(f"JetStream: {text} ({code})", err_code=code)
