"""Bodies: read within a limit and a time, whole or piece by piece."""

import asyncio
from collections.abc import AsyncIterator, Mapping

from starlette.types import Receive

from trine.errors import RequestTimeoutError, TooLargeError

RawHeaders = Mapping[bytes, bytes]


class HungUpError(Exception):
    """Raised when the client has gone: nobody is there to answer."""


def expected(headers: RawHeaders) -> bool:
    """Whether the request has a body."""
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


async def read(receive: Receive, headers: RawHeaders, limit: int) -> bytes:
    """Return the body; `TooLargeError` above *limit* bytes. Whoever asks sees to the time.

    What says beforehand that it is too large is not read.
    """
    _check(headers, limit)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUpError
        piece: bytes = message.get("body", b"")
        if len(body) + len(piece) > limit:
            raise too_large(limit)
        if not message.get("more_body"):
            return bytes(body) + piece if body else piece
        body += piece


async def pieces(
    receive: Receive, headers: RawHeaders, limit: int, idle_seconds: float
) -> AsyncIterator[bytes]:
    """Give the body as it comes; it may take any time, but not be silent for *idle_seconds*."""
    _check(headers, limit)
    read = 0
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                message = await receive()
        except TimeoutError as error:
            text = f"nothing came for {idle_seconds:g} s"
            raise RequestTimeoutError(text) from error
        if message["type"] == "http.disconnect":
            raise HungUpError
        piece: bytes = message.get("body", b"")
        read += len(piece)
        if read > limit:
            raise too_large(limit)
        if piece:
            yield piece
        if not message.get("more_body"):
            return


def _check(headers: RawHeaders, limit: int) -> None:
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise too_large(limit)


def too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is above {limit} bytes", limit=limit)
