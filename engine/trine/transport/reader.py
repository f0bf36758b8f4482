"""Reading one connected socket: plain code runs at once, coroutines wait in line."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import structlog
from nats.aio.transport import TcpTransport, Transport
from nats.errors import ProtocolError, UnexpectedEOF

from trine.transport.protocol import Parser

if TYPE_CHECKING:
    from trine.transport.link import Link

log = structlog.get_logger("trine")

_LINE_BYTES = 4 * 1024 * 1024  # of messages that wait for a coroutine, before reading pauses
_READ_BYTES = 256 * 1024


class Reader(asyncio.Protocol):
    """Reads a connection from the moment when it stands to its end.

    nats-py connects over asyncio's streams. From then on this takes their place on the same
    transport, plain or TLS, and parses what the socket gives without a task in between. What
    nats-py handles in coroutines (messages of its own subscriptions, errors, news of the cluster)
    waits in line for `run`, in order; when too much waits, nothing more is read.
    """

    def __init__(self, link: "Link") -> None:
        self.socket: asyncio.Transport | None = None  # None for a websocket
        self.message = link.message
        self.ping = link.ping
        self._link = link
        self._parser = Parser(self)
        self._line: deque[tuple[int, Callable[..., Awaitable[Any]], tuple[Any, ...]]] = deque()
        self._line_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._fault: Exception | None = None
        self._stopped = False
        self._paused = False
        self._stream: asyncio.Protocol | None = None  # of nats-py, which waits for its end

    async def run(self, transport: Transport) -> Exception:
        """Read until the connection ends and return why it did."""
        try:
            if isinstance(transport, TcpTransport):
                self._take_over(transport)
                return await self._work()
            return await self._pump(transport)
        finally:
            self._stopped = True

    def abort(self) -> None:
        """Close the socket at once: what it has not sent is lost."""
        if self.socket is not None:
            self.socket.abort()

    # --- in line -------------------------------------------------------------------------------

    def later(self, size: int, handle: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Let *handle* run after what is in line already; *size* is the memory that it holds."""
        self._line.append((size, handle, args))
        self._line_bytes += size
        if self._line_bytes > _LINE_BYTES and not self._paused and self.socket is not None:
            self._paused = True
            self.socket.pause_reading()
        self._wake_up()

    async def _work(self) -> Exception:
        while True:
            await self._handle()
            if self._fault is not None:
                return self._fault
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    async def _handle(self) -> None:
        line = self._line
        while line:
            size, handle, args = line[0]
            try:
                await handle(*args)
            except Exception:
                log.exception("message_handling_failed")
            line.popleft()  # only now: nothing may overtake it while it runs
            self._line_bytes -= size
            if self._paused and self._line_bytes <= _LINE_BYTES // 2:
                self._paused = False
                if self.socket is not None and not self.socket.is_closing():
                    self.socket.resume_reading()

    async def _pump(self, transport: Transport) -> Exception:
        # A websocket: a library reads its frames.
        while self._fault is None:
            try:
                data = await transport.read(_READ_BYTES)
            except OSError as error:
                return error
            self.data_received(data)
            await self._handle()
            if transport.at_eof():
                return UnexpectedEOF()
        return self._fault

    def _end(self, fault: Exception) -> None:
        self._fault = self._fault or fault
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- what the parser reports ---------------------------------------------------------------

    def pong(self) -> None:
        if self._line:  # a flush tells that what came before it was handled
            self.later(0, self._pong)
        else:
            self._link.pong()

    async def _pong(self) -> None:
        self._link.pong()

    def error(self, text: str) -> None:
        self.later(len(text), self._link.refused, text)

    def info(self, facts: dict[str, Any]) -> None:
        self.later(0, self._link.news, facts)

    # --- the socket ----------------------------------------------------------------------------

    def _take_over(self, transport: TcpTransport) -> None:
        reader: Any = transport._io_reader
        writer: Any = transport._io_writer
        buffer: bytearray = reader._buffer
        self.socket = socket = cast("asyncio.Transport", writer.transport)
        self._stream = cast("asyncio.Protocol", socket.get_protocol())
        socket.set_protocol(self)
        early = bytes(buffer)
        buffer.clear()
        if reader._paused and not socket.is_closing():
            socket.resume_reading()
        if early:
            self.data_received(early)
        if reader.at_eof() or socket.is_closing():
            self._end(reader.exception() or UnexpectedEOF())

    def data_received(self, data: bytes) -> None:
        if self._stopped or self._fault is not None:
            return
        try:
            self._parser.feed(data)
        except ProtocolError as error:
            self._end(error)
            self.abort()
        # What the messages have started runs first, and all that it sends leaves in one write.
        self._link.write_soon()

    def eof_received(self) -> bool:
        self._end(UnexpectedEOF())
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._stream is not None
        self._stream.connection_lost(exc)
        self._end(exc or UnexpectedEOF())

    def pause_writing(self) -> None:
        assert self._stream is not None
        self._stream.pause_writing()
        self._link.writable(takes=False)

    def resume_writing(self) -> None:
        assert self._stream is not None
        self._stream.resume_writing()
        self._link.writable(takes=True)
