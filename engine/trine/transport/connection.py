"""The connection to NATS: requests, plain callbacks, and how a program gets one.

Replies resolve their future straight from the parser instead of over a queue and a task, and
subscriptions may have a plain function as callback. `trine.transport.link` is what it stands on.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from nats import errors as nats_errors
from nats.aio.msg import Msg

from trine import discovery
from trine.errors import UnavailableError
from trine.transport.deadlines import Deadlines
from trine.transport.link import Link
from trine.transport.protocol import Message

log = structlog.get_logger("trine")

Callback = Callable[[Msg], None]
_CONNECT_SECONDS = 3.0


class Connection(Link):
    """One connection. Made by `connect`; used through `trine.bus.Bus`."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[bytes, asyncio.Future[Message]] = {}
        self._inboxes: dict[bytes, Callback] = {}
        self._token = 0
        self._inbox = ""
        self._inbox_sid = -1
        self._callbacks: dict[int, Callback] = {}
        self.deadlines = Deadlines()
        self.on_reconnect: set[Callable[[], None]] = set()

    # --- asking --------------------------------------------------------------------------------

    async def listen(
        self, subject: str, callback: Callback, queue: str = "", *, confirm: bool = True
    ) -> "Listener":
        """Call *callback*, which may not block or raise, with every message on *subject*.

        It runs outside any task: it may start tasks, send, and set events and futures. The server
        knows the subscription when this returns, unless *confirm* is False: then it knows it
        before anything that is sent later.
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
        self._token = number = self._token + 1
        token = b"%d" % number
        future: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[token] = future
        deadline = self.deadlines.add(timeout, self._expire, token)
        try:
            self.send(subject, payload, f"{self._inbox}{number}", headers)
            message = await future
        finally:
            self.deadlines.discard(deadline)
            self._waiting.pop(token, None)
        if message._head.startswith(b"NATS/1.0 503"):
            raise nats_errors.NoRespondersError
        return message

    async def inbox(self, callback: Callback) -> "Inbox":
        """Return a fresh reply subject whose messages, any number of them, go to *callback*."""
        if not self._inbox:
            with contextlib.suppress(nats_errors.ConnectionClosedError):  # `send` says so
                await self._open_inbox()
        self._token = number = self._token + 1
        token = b"%d" % number
        self._inboxes[token] = callback
        return Inbox(self, token, f"{self._inbox}{number}")

    async def _open_inbox(self) -> None:
        self._inbox = f"{self.new_inbox()}."
        try:
            sub = await self.subscribe(self._inbox + "*")
        except BaseException:
            self._inbox = ""
            raise
        self._inbox_sid = sub._id

    def _expire(self, token: bytes) -> None:
        future = self._waiting.pop(token, None)
        if future is not None and not future.done():
            future.set_exception(nats_errors.TimeoutError())

    # --- what comes ----------------------------------------------------------------------------

    def message(self, sid: int, subject: bytes, reply: bytes, head: bytes, payload: bytes) -> None:
        if sid == self._inbox_sid:
            token = subject[len(self._inbox) :]
            future = self._waiting.pop(token, None)
            if future is not None:
                if not future.done():
                    future.set_result(Message(self, subject, reply, head, payload))
                return
            callback = self._inboxes.get(token)
            if callback is None:
                return  # whoever asked has given up
        else:
            callback = self._callbacks.get(sid)
            if callback is None:
                assert self._reader is not None
                handle = super()._process_msg  # one of nats-py's own subscriptions
                self._reader.later(len(payload), handle, sid, subject, reply, payload, head)
                return
        try:
            callback(Message(self, subject, reply, head, payload))
        except Exception:  # a callback must not end the reading of everybody
            log.exception("message_callback_failed", subject=subject.decode(errors="replace"))

    def closed(self) -> None:
        self.deadlines.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(nats_errors.ConnectionClosedError())
        self._waiting.clear()


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

    def __init__(self, connection: Connection, token: bytes, subject: str) -> None:
        self._connection = connection
        self._token = token
        self.subject = subject

    def close(self) -> None:
        self._connection._inboxes.pop(self._token, None)


@asynccontextmanager
async def connect(url: str, name: str = "trine", **options: Any) -> AsyncIterator[Connection]:
    """Connect to *url*; `UnavailableError` when nobody answers within 3 seconds.

    The connection comes back by itself when the server does. When it ends for good before this
    does, its `on_closed` are called.
    """
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
        connection._leaving = True
        with contextlib.suppress(nats_errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(2):
                if connection.is_connected:
                    await connection.flush()
        with contextlib.suppress(RuntimeError):  # uvloop, when it was connecting at this moment
            await connection.close()


__all__ = ["Connection", "Inbox", "Listener", "Msg", "connect"]
