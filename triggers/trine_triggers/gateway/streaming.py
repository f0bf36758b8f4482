"""Streams over HTTP: server-sent events and JSON lines, with bounded memory for each client."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

import anyio
from starlette.types import Receive, Send

from trine import wire
from trine.errors import TooManyRequestsError, TrineError
from trine_triggers.gateway.replies import Headers, internal, problem, send_error
from trine_triggers.gateway.request import Request

FIRST_SECONDS = 1.0  # an error in this time has a status of its own; then the stream has begun
_ITEMS = 1024  # that wait for a client
_BYTES = 4 * 1024 * 1024
TRANSPORT = "trine.transport"  # in the scope: `server` puts it there


class Item(NamedTuple):
    """One thing to tell."""

    data: bytes
    id: str = ""
    event: str = "message"


Source = AsyncGenerator[Item, None]


class Form(NamedTuple):
    """How a stream is written."""

    sse: bool  # else a line for each item
    media_type: bytes


def accepted(headers: Mapping[bytes, bytes], wanted: str | None) -> Form:
    """Return the form that the route wants, ``sse`` or ``jsonl``, else what the client accepts."""
    accept = headers.get(b"accept", b"")
    if wanted == "sse" or (wanted is None and b"text/event-stream" in accept):
        return Form(sse=True, media_type=b"text/event-stream; charset=utf-8")
    ndjson = b"application/x-ndjson" in accept
    return Form(sse=False, media_type=b"application/x-ndjson" if ndjson else b"application/jsonl")


def encode(item: Item, *, sse: bool) -> bytes:
    """Return *item* as it is sent."""
    if not sse:
        return item.data.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"
    lines = [f"id: {item.id}".encode()] if item.id else []
    lines.append(f"event: {item.event}".encode())
    lines += [b"data: " + line for line in item.data.splitlines() or [b""]]
    return b"\n".join(lines) + b"\n\n"


class Outlet:
    """One open stream: what waits for its client, and how it ends."""

    def __init__(self, *, lossless: bool) -> None:
        self._lossless = lossless  # the source can wait: it is made to, instead of cut off
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self.error: TrineError | None = None
        self.ended = False

    @property
    def empty(self) -> bool:
        return not self._items

    async def fill(self, source: Source) -> None:
        """Take from *source* until it ends, or the client is too far behind."""
        try:
            async with contextlib.aclosing(source):
                async for item in source:
                    if self.ended:
                        return
                    self._items.append(item)
                    self._bytes += len(item.data)
                    self._changed.set()
                    while self._full() and self._lossless and not self.ended:
                        self._changed.clear()
                        await self._changed.wait()
                    if self._full():
                        self.end(TooManyRequestsError("the client reads too slowly"))
                        return
            self.end()
        except Exception as error:  # noqa: BLE001 - the client is told, whatever it is
            self.end(internal(error))

    def _full(self) -> bool:
        return len(self._items) >= _ITEMS or self._bytes >= _BYTES

    def end(self, error: TrineError | None = None) -> None:
        """Tell the client what waits for it, then that this is the end."""
        if not self.ended:
            self.ended, self.error = True, error
            self._changed.set()

    async def wait(self, seconds: float) -> bool:
        """Return whether there is anything to tell, within *seconds*."""
        with anyio.move_on_after(seconds):
            while self.empty and not self.ended:
                self._changed.clear()
                await self._changed.wait()
        return not self.empty or self.ended

    def take(self) -> list[Item]:
        """Return what waits."""
        taken, self._bytes = list(self._items), 0
        self._items.clear()
        self._changed.set()
        return taken


async def send_stream(
    outlet: Outlet,
    source: Source,
    form: Form,
    request: Request,
    headers: Headers,
    *,
    keep_alive_seconds: float,
    stall_seconds: float,
) -> None:
    """Send *source* until it ends, the client leaves, or stops reading for *stall_seconds*.

    The end is told: ``event: end``, or ``event: error`` with a problem; as JSON lines a last line
    that is a problem, with its ``code``, and nothing when all is well.
    """
    send, sse = request.send, form.sse
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outlet.fill, source)
        tasks.start_soon(_until_hung_up, request.receive, tasks.cancel_scope)
        await outlet.wait(FIRST_SECONDS)
        if outlet.empty and outlet.error is not None:
            await send_error(send, outlet.error, headers=headers)
            tasks.cancel_scope.cancel()
            return
        head = [
            (b"content-type", form.media_type),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # proxies hold small replies back
            *headers,
        ]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        beat = b": keep-alive\n\n" if sse else b"\n"
        going = await _write(send, b": open\n\n" if sse else b"", stall_seconds)
        while going and not (outlet.ended and outlet.empty):
            told = await outlet.wait(keep_alive_seconds)
            chunk = b"".join([encode(item, sse=sse) for item in outlet.take()])
            if chunk or not told:
                going = await _write(send, chunk or beat, stall_seconds)
        if going:
            going = await _write(send, _last(outlet, sse=sse), stall_seconds, more=False)
        if not going and (transport := request.scope.get(TRANSPORT)) is not None:
            transport.abort()  # to close would wait until the client has read what it does not
        tasks.cancel_scope.cancel()


def _last(outlet: Outlet, *, sse: bool) -> bytes:
    if outlet.error is not None:
        return encode(Item(wire.dumps(problem(outlet.error)), event="error"), sse=sse)
    return encode(Item(b"{}", event="end"), sse=True) if sse else b""


async def _write(send: Send, chunk: bytes, seconds: float, *, more: bool = True) -> bool:
    """Send *chunk*; False when the client has not made room for it within *seconds*."""
    message: dict[str, Any] = {"type": "http.response.body", "body": chunk, "more_body": more}
    with anyio.move_on_after(seconds) as scope:
        await send(message)
    return not scope.cancelled_caught


async def _until_hung_up(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
