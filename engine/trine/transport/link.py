"""nats-py's client with another way to write to the socket and to read from it.

Connecting, authentication, TLS and reconnecting stay nats-py's own. What changes: what the server
sends is parsed as it arrives; writes are joined once per turn of the event loop instead of one
flusher future per publish; headers count towards the server's payload limit; ``flush`` is a
barrier; a peer that takes nothing more is noticed; an end for good is told.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from nats.aio.client import PING_PROTO, PONG_PROTO, Client

from trine.errors import TooLargeError, UnavailableError
from trine.transport import protocol
from trine.transport.reader import Reader

log = structlog.get_logger("trine")

_UNSENT_BYTES = 64 * 1024 * 1024  # that wait while the server takes nothing more


class Link(Client):
    """One connection, as far as bytes go; what a message means is `Connection`'s."""

    def __init__(self) -> None:
        super().__init__()
        self._loop: Any = None  # asking for it costs a system call before Python 3.12
        self._reader: Reader | None = None
        self._write_scheduled = False
        self._congested = False
        self._leaving = False
        # Called when nothing will be sent or received any more, though nobody asked for that: the
        # server refused what we did or who we are. `last_error` is what it said.
        self.on_closed: set[Callable[[], None]] = set()

    def message(self, sid: int, subject: bytes, reply: bytes, head: bytes, payload: bytes) -> None:
        """Take a message of subscription *sid*; *head* is its headers as they came."""
        raise NotImplementedError

    def closed(self) -> None:
        """Forget whoever waits: nothing comes any more."""

    # --- writing -------------------------------------------------------------------------------

    def send(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Publish without waiting: the bytes leave at the end of this turn of the event loop.

        `UnavailableError` when the connection is closed, or when too much waits for a server that
        is away or takes nothing more; `TooLargeError` above the server's limit.
        """
        if self._status != Client.CONNECTED or self._congested:
            self._check_sendable()
        size = len(payload)
        command, total = protocol.publish(subject, reply, headers, size)
        if total > self._max_payload:
            raise TooLargeError(
                f"{total} bytes are above the server's limit of {self._max_payload}",
                size=total,
                limit=self._max_payload,
            )
        self._pending += (command, payload, b"\r\n")
        self._pending_data_size += total
        stats = self.stats
        stats["out_msgs"] += 1
        stats["out_bytes"] += size
        if not self._write_scheduled:
            self.write_soon()

    def _check_sendable(self) -> None:
        if self.is_closed:
            raise UnavailableError("the connection to NATS is closed")
        limit = _UNSENT_BYTES if self.is_connected else self._max_pending_size
        if self._pending_data_size > limit:
            how = "takes nothing more" if self.is_connected else "is away"
            raise UnavailableError(f"NATS {how} and the send buffer is full")

    async def _send_publish(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        payload_size: int,  # noqa: ARG002 - nats-py's signature
        headers: Mapping[str, str] | None,
    ) -> None:
        self.send(subject, payload, reply, headers)

    def write_soon(self) -> None:
        """Write what is pending after what the event loop has to do already."""
        if not self._write_scheduled:
            self._write_scheduled = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._write_scheduled = False
        if not self._pending or self._congested or not self.is_connected:
            return
        socket = None if self._reader is None else self._reader.socket
        if socket is None:  # a websocket, or nothing is read yet: nats-py's flusher writes
            if self._flush_queue is not None and self._flush_queue.empty():
                self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
            return
        joined = b"".join(self._pending)
        self._pending = []
        self._pending_data_size = 0
        try:
            socket.write(joined)
        except (OSError, RuntimeError) as error:  # the end of reading says the same
            log.debug("nats_write_failed", error=repr(error))

    def writable(self, takes: bool) -> None:
        self._congested = not takes
        if takes:
            self.write_soon()

    async def _flush_pending(self, force_flush: bool = False) -> None:
        if force_flush and self._transport is not None and self.is_connected:
            self._write()
            await self._transport.drain()  # type: ignore[no-untyped-call]
        else:
            self.write_soon()

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # nats-py writes the PING ahead of what waits, so that a flush is no barrier there.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._pending.append(PING_PROTO)
        self._pending_data_size += len(PING_PROTO)
        self.write_soon()

    # --- the connection's life -----------------------------------------------------------------

    async def _process_connect_init(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = None
        self._congested = False
        await super()._process_connect_init()
        # What waited for this connection must not hold a PING whose PONG nobody waits for.
        self._pending = [part for part in self._pending if part is not PING_PROTO]

    async def _read_loop(self) -> None:
        transport = self._transport
        if transport is None:
            return
        reader = self._reader = Reader(self)
        fault = await reader.run(transport)
        await asyncio.sleep(0)  # lets an end start that the server's last words asked for
        if not self.is_closed and not self.is_reconnecting:
            await self._error_cb(fault)
            await self._process_op_err(fault)

    async def _process_op_err(self, e: Exception) -> None:
        if self._reader is not None and not self.is_closed and not self.is_reconnecting:
            self._reader.abort()  # else nats-py waits until a peer that is gone takes the rest
        await super()._process_op_err(e)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        first = not self.is_closed
        if first and self._congested and self._reader is not None:
            self._pending = []
            self._pending_data_size = 0
            self._reader.abort()
        try:
            await super()._close(status, do_cbs)
        finally:
            if first:
                self._tell_closed()

    def _tell_closed(self) -> None:
        self.closed()
        if not self._leaving:
            log.error("nats_closed", error=repr(self.last_error))
            for callback in tuple(self.on_closed):
                callback()

    # --- what the server asked and answered -----------------------------------------------------

    async def refused(self, text: str) -> None:
        await self._process_err(text.lower())

    async def news(self, facts: dict[str, Any]) -> None:
        await self._process_info(facts)

    def ping(self) -> None:
        self._pending.append(PONG_PROTO)
        self._pending_data_size += len(PONG_PROTO)

    def pong(self) -> None:
        # nats-py sets the result of a cancelled future too, and its reading ends by the error.
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
            self._pings_outstanding = 0
