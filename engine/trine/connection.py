"""The connection to NATS: nats-py's client with cheaper hot paths.

Connecting, authentication, TLS and reconnecting stay nats-py's own. What changes: replies resolve
their future straight from the parser instead of over a queue and a task; writes are joined once per
turn of the event loop instead of one flusher future per publish; subscriptions may have a plain
function as callback; headers count towards the server's payload limit; ``flush`` is a barrier.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from nats import errors as nats_errors
from nats.aio.client import PING_PROTO, Client
from nats.aio.msg import Msg

from trine import discovery, wire
from trine.errors import TooLargeError, UnavailableError

log = structlog.get_logger("trine")

Callback = Callable[[Msg], None]
_CONNECT_SECONDS = 3.0


class Connection(Client):
    """One connection. Made by `connect`; used through `trine.bus.Bus`."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._inboxes: dict[str, Callback] = {}
        self._token = 0
        self._inbox = ""
        self._inbox_sid = -1
        self._callbacks: dict[int, Callback] = {}
        self._write_scheduled = False
        self.on_reconnect: set[Callable[[], None]] = set()

    # --- writing -------------------------------------------------------------------------------

    def send(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Publish without waiting: the bytes leave at the end of this turn of the event loop."""
        if not self.is_connected:
            if self.is_closed:
                raise UnavailableError("the connection to NATS is closed")
            if self._pending_data_size > self._max_pending_size:
                raise UnavailableError("NATS is away and the send buffer is full")
        size = len(payload)
        if headers:
            lines = "".join(f"{name}: {_one_line(text)}\r\n" for name, text in headers.items())
            head = f"NATS/1.0\r\n{lines}\r\n".encode()
            total = len(head) + size
            command = f"HPUB {subject} {reply} {len(head)} {total}\r\n".encode() + head
        else:
            total = size
            command = f"PUB {subject} {reply} {size}\r\n".encode()
        if total > self._max_payload:
            raise TooLargeError(
                f"{total} bytes are above the server's limit of {self._max_payload}",
                size=total,
                limit=self._max_payload,
            )
        self._pending += (command, payload, b"\r\n")
        self._pending_data_size += total
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += size
        self._schedule_write()

    async def _send_publish(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        payload_size: int,  # noqa: ARG002 - nats-py's signature
        headers: Mapping[str, str] | None,
    ) -> None:
        self.send(subject, payload, reply, headers)

    def _schedule_write(self) -> None:
        if not self._write_scheduled:
            self._write_scheduled = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._write_scheduled = False
        if self._pending and self._transport is not None and self.is_connected:
            joined = b"".join(self._pending)
            self._pending = []
            self._pending_data_size = 0
            with contextlib.suppress(OSError, RuntimeError):  # the read loop sees the same fault
                self._transport.write(joined)

    async def _flush_pending(self, force_flush: bool = False) -> None:
        if force_flush and self._transport is not None and self.is_connected:
            self._write()
            await self._transport.drain()  # type: ignore[no-untyped-call]
        else:
            self._schedule_write()

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # nats-py writes the PING ahead of what waits, so that a flush is no barrier there.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._pending.append(PING_PROTO)
        self._pending_data_size += len(PING_PROTO)
        self._schedule_write()

    async def _process_pong(self) -> None:
        # nats-py sets the result of a cancelled future too, and its read loop ends by the error.
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
            self._pings_outstanding = 0

    # --- reading -------------------------------------------------------------------------------

    async def listen(
        self, subject: str, callback: Callback, queue: str = "", *, confirm: bool = True
    ) -> "Listener":
        """Call *callback*, which may not block or raise, with every message on *subject*.

        The server knows the subscription when this returns, unless *confirm* is False: then it
        knows it before anything that is sent later.
        """
        try:
            sub = await self.subscribe(subject, queue=queue)
            self._callbacks[sub._id] = callback
            if confirm:
                await self.flush()
        except (nats_errors.Error, TimeoutError) as error:
            raise UnavailableError(f"cannot listen on {subject}: {error!r}") from error
        return Listener(self, sub)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 5.0,
        old_style: bool = False,  # noqa: ARG002 - nats-py's signature: JetStream calls it
        headers: Mapping[str, str] | None = None,
    ) -> Msg:
        """Return the first reply. Errors are nats-py's, which its JetStream code expects."""
        if not self._inbox:
            await self._open_inbox()
        self._token += 1
        token = str(self._token)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Msg] = loop.create_future()
        self._waiting[token] = future
        timer = loop.call_later(timeout, self._expire, token)
        try:
            self.send(subject, payload, self._inbox + token, headers)
            message = await future
        finally:
            timer.cancel()
            self._waiting.pop(token, None)
        if message.headers and message.headers.get(wire.STATUS) == "503":
            raise nats_errors.NoRespondersError
        return message

    async def inbox(self, callback: Callback) -> "Inbox":
        """Return a fresh reply subject whose messages, any number of them, go to *callback*."""
        if not self._inbox:
            await self._open_inbox()
        self._token += 1
        token = str(self._token)
        self._inboxes[token] = callback
        return Inbox(self, token, self._inbox + token)

    async def _open_inbox(self) -> None:
        self._inbox = f"{self.new_inbox()}."
        sub = await self.subscribe(self._inbox + "*")
        self._inbox_sid = sub._id

    def _expire(self, token: str) -> None:
        future = self._waiting.pop(token, None)
        if future is not None and not future.done():
            future.set_exception(nats_errors.TimeoutError())

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        if sid == self._inbox_sid:
            token = subject[len(self._inbox) :].decode()
            future = self._waiting.pop(token, None)
            if future is not None:
                if not future.done():
                    future.set_result(
                        self._build_message(sid, subject, reply, data, wire.parse_headers(headers))
                    )
                return
            callback = self._inboxes.get(token)
            if callback is None:
                return  # whoever asked has given up
        else:
            callback = self._callbacks.get(sid)
        if callback is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            callback(self._build_message(sid, subject, reply, data, wire.parse_headers(headers)))
        except Exception:  # a callback must not end the read loop of everybody
            log.exception("message_callback_failed", subject=subject.decode())


class Listener:
    """A subscription with a plain callback; `close` ends it."""

    def __init__(self, connection: Connection, subscription: Any) -> None:
        self._connection = connection
        self._subscription = subscription

    async def close(self) -> None:
        """Tell the server to stop. The callback still gets what the server had sent before."""
        connection = self._connection
        with contextlib.suppress(nats_errors.Error, TimeoutError):
            await self._subscription.unsubscribe()
            if connection.is_connected:
                await connection.flush(timeout=2)
        self.drop()

    def drop(self) -> None:
        """Call the callback no more, from now on."""
        self._connection._callbacks.pop(self._subscription._id, None)


class Inbox:
    """A reply subject for many replies; `close` forgets it."""

    def __init__(self, connection: Connection, token: str, subject: str) -> None:
        self._connection = connection
        self._token = token
        self.subject = subject

    def close(self) -> None:
        self._connection._inboxes.pop(self._token, None)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines()) if "\n" in text or "\r" in text else text


@asynccontextmanager
async def connect(url: str, name: str = "trine", **options: Any) -> AsyncIterator[Connection]:
    """Connect to *url*; `UnavailableError` when nobody answers within 3 seconds."""
    connection = Connection()
    last: list[Exception] = []

    async def on_error(error: Exception) -> None:
        last.append(error)
        del last[:-1]
        log.debug("nats_error", error=repr(error))

    async def on_reconnect() -> None:
        log.info("nats_reconnected", server=str(connection.connected_url))
        for callback in tuple(connection.on_reconnect):
            callback()

    async def on_disconnect() -> None:
        if not connection.is_closed:
            log.warning("nats_disconnected")

    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await connection.connect(
                url.split(","),
                name=name,
                error_cb=on_error,
                reconnected_cb=on_reconnect,
                disconnected_cb=on_disconnect,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type]  # a float serves as well
                drain_timeout=5,
                **options,
            )
    except (TimeoutError, OSError, nats_errors.Error) as error:
        why = last[0] if last else error
        place = discovery.shown(url)
        raise UnavailableError(f"cannot reach NATS at {place}: {str(why) or repr(why)}") from error
    try:
        yield connection
    finally:
        with contextlib.suppress(nats_errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(2):
                if connection.is_connected:
                    await connection.flush()
        await connection.close()


__all__ = ["Connection", "Inbox", "Listener", "Msg", "connect"]
