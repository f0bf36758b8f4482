"""Uploads: files go to the object store while they arrive, and payloads refer to them."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from trine.errors import InvalidInputError
from trine.objects import CHUNK_BYTES, Objects
from trine_triggers.gateway.body import too_large
from trine_triggers.gateway.decode import Fields, json_value
from trine_triggers.upload import Upload

# What it would log as a warning, a client gets as an answer: clients must not fill our log.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

_PARTS = 200


async def store(
    objects: Objects, content: AsyncIterator[bytes], content_type: str, filename: str | None
) -> Upload:
    """Store *content* and return the reference to it."""
    size = 0

    async def chunks() -> AsyncGenerator[bytes, None]:
        nonlocal size
        waiting = bytearray()
        async for piece in content:  # joined: a client that sends bytes one by one costs no more
            size += len(piece)
            waiting += piece
            if len(waiting) >= CHUNK_BYTES:
                yield bytes(waiting)
                waiting.clear()
        if waiting:
            yield bytes(waiting)

    digest = await objects.put_stream(chunks())
    return Upload(
        object=digest,
        size=size,
        content_type=content_type or "application/octet-stream",
        filename=filename,
    )


@dataclass(slots=True)
class _Part:
    """The head of one part of a form."""

    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None

    def read_disposition(self) -> None:
        kind, options = parse_options_header(self.headers.get("content-disposition", ""))
        if kind != b"form-data" or b"name" not in options:
            raise InvalidInputError("a part of the form has no name")
        self.name = _label(options[b"name"])
        if b"filename" in options:
            self.filename = _label(options[b"filename"])


class _Form:
    """The events of a multipart parser, pulled one by one: ``part``, ``data``, ``end``."""

    def __init__(self, boundary: bytes, content: AsyncIterator[bytes]) -> None:
        self._content = content
        self._events: list[tuple[str, Any]] = []
        self._part = _Part()
        self._header = bytearray()
        self._value = bytearray()
        self._ended = False
        self._parts = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, a, b: self._header.extend(data[a:b]),
                "on_header_value": lambda data, a, b: self._value.extend(data[a:b]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": lambda data, a, b: self._events.append(("data", data[a:b])),
                "on_part_end": lambda: self._events.append(("end", None)),
                "on_end": self._end,
            },
        )

    async def next(self) -> tuple[str, Any] | None:
        """Return the next event; None after the last one."""
        while not self._events:
            if self._ended:
                return None
            try:
                piece = await anext(self._content)
            except StopAsyncIteration:
                raise InvalidInputError("the form ends in the middle") from None
            try:
                self._parser.write(piece)
            except FormParserError as error:
                raise InvalidInputError(f"the form is not multipart: {error}") from error
        return self._events.pop(0)

    async def data(self) -> AsyncGenerator[bytes, None]:
        """Give the content of the part that has just begun."""
        while (event := await self.next()) is not None and event[0] == "data":
            yield event[1]

    def _begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > _PARTS:
            raise InvalidInputError(f"the form has more than {_PARTS} parts")

    def _header_end(self) -> None:
        name = self._header.decode("latin-1").lower()
        self._part.headers[name] = self._value.decode("latin-1")
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        self._part.read_disposition()
        self._events.append(("part", self._part))

    def _end(self) -> None:
        self._ended = True


async def read_form(
    objects: Objects,
    content_type: str,
    content: AsyncIterator[bytes],
    fields: Fields,
    *,
    text_limit: int,
    file_limit: int,
) -> dict[str, Any]:
    """Return the fields of a multipart form, files as references.

    Its texts together have at most *text_limit* bytes, each file *file_limit*. What was stored of
    a form that turns out to be broken stays in the object store: it has no owner to ask.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046
        raise InvalidInputError("the form has no boundary")
    form = _Form(boundary, content)
    files: dict[str, list[Any]] = {}
    texts: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    left = text_limit
    while (event := await form.next()) is not None:
        kind, part = event
        if kind != "part":
            continue
        if part.filename is not None:
            kept = await store(
                objects,
                _limited(form.data(), file_limit),
                part.headers.get("content-type", ""),
                part.filename or None,
            )
            files.setdefault(part.name, []).append(kept.model_dump())
            continue
        raw = b"".join([piece async for piece in _limited(form.data(), left)])
        left -= len(raw)
        if part.headers.get("content-type", "").startswith("application/json"):
            values[part.name] = json_value(raw)
        else:
            texts.setdefault(part.name, []).append(_text(raw))
    for name, given in texts.items():
        values[name] = fields.value(name, given)
    for name, stored in files.items():
        values[name] = stored if fields.takes_list(name) or len(stored) > 1 else stored[0]
    return values


async def _limited(content: AsyncIterator[bytes], limit: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for piece in content:
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        yield piece


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError("the form holds text that is not UTF-8") from error


def _label(raw: bytes) -> str:
    """Return a name: UTF-8 as browsers send it, or Latin-1 as older clients do."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
