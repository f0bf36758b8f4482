"""The web server: uvicorn on a socket of ours, in the order of the program that runs it."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any, cast

import anyio
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trine.errors import AddressInUseError, BadRequestError
from trine.trigger import GatewayContext
from trine_triggers.gateway.app import Gateway
from trine_triggers.gateway.options import GatewayOptions
from trine_triggers.gateway.streaming import TRANSPORT

_HEAD_BYTES = 64 * 1024
_HEAD_SECONDS = 10.0  # for the head of a request, from its first byte or from the connection on


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds for the head of a request: it has none in bytes or in time."""

    _head_bytes = 0
    _reading_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading_head = True
        self._head_bytes = 0
        cast("dict[str, Any]", self.scope)[TRANSPORT] = self.transport

    def on_headers_complete(self) -> None:
        self._reading_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._reading_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES:
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
                b"connection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.close()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: the program that runs the gateway handles them."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"port {port} on {host} is taken: choose another with --port", port=port
            ) from error
        raise BadRequestError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


async def serve(ctx: GatewayContext, options: GatewayOptions | None = None) -> None:
    """Serve until cancelled; open streams are ended, and open requests then have a moment."""
    gateway = Gateway(ctx, options or GatewayOptions.load())
    listener = _listen(ctx.host, ctx.port)
    config = uvicorn.Config(
        gateway,
        http=_Protocol,
        log_config=None,
        log_level="error",  # a client that speaks no HTTP must not fill our log
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,  # nothing here asks who the client is
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    server = _Server(config)
    with listener:
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                with anyio.CancelScope(shield=True):  # ends by should_exit, in its own order
                    await server.serve([listener])

            tasks.start_soon(run)
            ctx.ready(f"http://{ctx.host}:{listener.getsockname()[1]}")
            try:
                await anyio.sleep_forever()
            finally:
                server.should_exit = True
                gateway.stop()
