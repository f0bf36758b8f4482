"""The client: call, send, stream, emit, and state, from any process."""
# Longer than 300 lines: the overloads that make calls, streams and jobs typed take a third of it.

import contextlib
import difflib
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar, overload

import anyio
from nats import errors as nats_errors
from pydantic import TypeAdapter

from trine import catalogue, discovery, wire
from trine.bus import Bus
from trine.connection import Connection, Msg, connect
from trine.errors import (
    DeadlineError,
    FunctionNotFoundError,
    TooLargeError,
    TrineError,
    UnavailableError,
)
from trine.events import EventModel
from trine.events import message as event_message
from trine.function import Function, encode_payload
from trine.invocation import current, new_id
from trine.jobs import ANY, Job, job_message
from trine.objects import Objects
from trine.scope import Scope
from trine.state import Store
from trine.transaction import Transaction
from trine.wire import Names

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741
M = TypeVar("M")
CALL_SECONDS = 30.0


class Client:
    """Everything that a program outside a function can ask of the system.

    ``async with Client.connect() as client`` finds the server that ``trine up`` started here, or
    takes ``TRINE_NATS``; inside a function the context has one.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.objects = Objects(bus)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str | None = None, *, namespace: str | None = None, name: str = "trine"
    ) -> AsyncIterator[Self]:
        """Connect to *url*; `UnavailableError` says how to get a server when there is none."""
        space = namespace or os.environ.get("TRINE_NAMESPACE", "trine")
        async with connect(url or discovery.server_url(), name) as connection:
            yield cls.over(connection, space)

    @classmethod
    def over(cls, connection: Connection, namespace: str = "trine") -> Self:
        """Return a client on an open connection."""
        return cls(Bus(connection, Names(namespace)))

    # --- functions -----------------------------------------------------------------------------

    @overload
    async def call(
        self,
        function: Function[I, O],
        value: I | dict[str, Any] | None = None,
        *,
        timeout: float = CALL_SECONDS,
        worker: str | None = None,
    ) -> O: ...
    @overload
    async def call(
        self,
        function: str,
        value: Any = None,
        *,
        timeout: float = CALL_SECONDS,
        worker: str | None = None,
        returns: type[M],
    ) -> M: ...
    @overload
    async def call(
        self,
        function: str,
        value: Any = None,
        *,
        timeout: float = CALL_SECONDS,
        worker: str | None = None,
    ) -> Any: ...
    async def call(
        self,
        function: Function[Any, Any] | str,
        value: Any = None,
        *,
        timeout: float = CALL_SECONDS,
        worker: str | None = None,
        returns: Any = None,
    ) -> Any:
        """Run *function* once and return its output; at most once: it is not repeated.

        Raises what the function raised. The callee is told to stop when this is cancelled or when
        *timeout* seconds, or the time that our own caller has left, are over (`DeadlineError`).
        """
        if isinstance(function, Function):
            payload = await self.call_bytes(
                function.id, function.encode_input(value), timeout=timeout, worker=worker
            )
            return function.decode_output(payload)
        payload = await self.call_bytes(
            function, encode_payload(value), timeout=timeout, worker=worker
        )
        if returns is not None:
            return TypeAdapter(returns).validate_json(payload)
        return wire.loads(payload)

    async def call_bytes(
        self,
        function: str,
        payload: bytes,
        *,
        timeout: float = CALL_SECONDS,
        worker: str | None = None,
        traceparent: str | None = None,
    ) -> bytes:
        """`call` without the models: JSON in, JSON out, as the wire has it."""
        function = wire.function_id(function)
        names = self.bus.names
        subject = names.on(worker, function) if worker else names.fn(function)
        headers, timeout = _outgoing(timeout, traceparent)
        invocation = headers[wire.INVOCATION]
        try:
            reply = await self.bus.connection.request(subject, payload, timeout, headers=headers)
        except nats_errors.NoRespondersError:
            raise await self._nobody(function, worker) from None
        except nats_errors.TimeoutError:
            self._give_up(invocation)
            raise DeadlineError(
                f"{function} did not answer within {timeout:g} s", function=function
            ) from None
        except TooLargeError:
            raise
        except nats_errors.Error as error:
            raise UnavailableError(f"NATS: {error!r}") from error
        except anyio.get_cancelled_exc_class():
            self._give_up(invocation)
            raise
        if reply.headers and wire.ERROR in reply.headers:
            raise wire.decode_error(reply.headers, reply.data)
        return reply.data

    @overload
    def stream(
        self,
        function: Function[I, O],
        value: I | dict[str, Any] | None = None,
        *,
        timeout: float = 3600.0,
        idle_seconds: float = 60.0,
    ) -> AsyncGenerator[O, None]: ...
    @overload
    def stream(
        self,
        function: str,
        value: Any = None,
        *,
        timeout: float = 3600.0,
        idle_seconds: float = 60.0,
    ) -> AsyncGenerator[Any, None]: ...
    async def stream(
        self,
        function: Function[Any, Any] | str,
        value: Any = None,
        *,
        timeout: float = 3600.0,
        idle_seconds: float = 60.0,
    ) -> AsyncGenerator[Any, None]:
        """Give what a streaming function yields. The function stops when the iteration ends.

        `DeadlineError` after *timeout* seconds in all, `UnavailableError` when nothing, not even a
        sign of life, came for *idle_seconds*.
        """
        id = wire.function_id(function if isinstance(function, str) else function.id)
        payload = (
            encode_payload(value) if isinstance(function, str) else function.encode_input(value)
        )
        headers, _ = _outgoing(timeout, None)
        headers[wire.STREAM] = "1"
        send, receive = anyio.create_memory_object_stream[Msg](
            math.inf
        )  # full, it would lose items
        inbox = await self.bus.connection.inbox(send.send_nowait)
        ended = False
        try:
            self.bus.connection.send(self.bus.names.fn(id), payload, inbox.subject, headers)
            while True:
                try:
                    with anyio.fail_after(idle_seconds):
                        message = await receive.receive()
                except TimeoutError as error:
                    raise UnavailableError(f"{id} was silent for {idle_seconds:g} s") from error
                head = message.headers or {}
                ended = wire.ERROR in head or head.get(wire.STREAM) != "item"
                if head.get(wire.STATUS) == "503":
                    raise await self._nobody(id, None)
                if wire.ERROR in head:
                    raise wire.decode_error(head, message.data)
                if head.get(wire.STREAM) == "alive":
                    ended = False
                    continue
                if ended:
                    return
                if isinstance(function, str):
                    yield wire.loads(message.data)
                else:
                    yield function.decode_output(message.data)
        finally:
            inbox.close()
            send.close()
            receive.close()
            if not ended:
                self._give_up(headers[wire.INVOCATION])

    @overload
    async def send(
        self,
        function: Function[I, O],
        value: I | dict[str, Any] | None = None,
        *,
        id: str | None = None,
    ) -> Job[O]: ...
    @overload
    async def send(
        self, function: str, value: Any = None, *, id: str | None = None
    ) -> Job[Any]: ...
    async def send(
        self, function: Function[Any, Any] | str, value: Any = None, *, id: str | None = None
    ) -> Job[Any]:
        """Enqueue a durable call and return its handle at once: it runs at least once.

        *id* makes repeated sends, within two minutes, one job.
        """
        name = wire.function_id(function if isinstance(function, str) else function.id)
        payload = (
            encode_payload(value) if isinstance(function, str) else function.encode_input(value)
        )
        decode = None if isinstance(function, str) else function.decode_output
        job = id or new_id()
        message = job_message(
            self.bus.names, wire.function_queue(name), job, payload, function=name
        )
        await self.bus.store(*message)
        return Job(self.bus, job, decode)

    async def enqueue(
        self, queue: str, value: Any = None, *, id: str | None = None, requirement: str = ANY
    ) -> Job[Any]:
        """Put *value* into a named queue, for whoever has a Queue trigger on it."""
        job = id or new_id()
        message = job_message(
            self.bus.names, queue, job, encode_payload(value), requirement=requirement
        )
        await self.bus.store(*message)
        return Job(self.bus, job)

    def job(self, id: str) -> Job[Any]:
        """Return the handle on a job that somebody else sent."""
        return Job(self.bus, id)

    def _give_up(self, invocation: str) -> None:
        with contextlib.suppress(TrineError):  # away: the callee's own deadline ends it
            self.bus.connection.send(self.bus.names.cancel(invocation))

    async def _nobody(self, function: str, worker: str | None) -> TrineError:
        known = await catalogue.functions(self.bus)
        if worker is not None:
            return UnavailableError(f"worker {worker} does not serve {function}", worker=worker)
        if function in known:
            return UnavailableError(f"{function} is not reachable at this moment")
        near = difflib.get_close_matches(function, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return FunctionNotFoundError(f"nobody serves {function!r}{hint}", function=function)

    # --- state and events ----------------------------------------------------------------------

    def state(self, scope: Scope[M]) -> Store[M]:
        """Return the store of *scope*."""
        return Store(self.bus, scope)

    def transaction(self) -> Transaction:
        """Start a transaction over any scopes, jobs and events."""
        return Transaction(self.bus)

    async def emit(self, event: EventModel, *, id: str | None = None) -> None:
        """Emit an event; stored when this returns. One *id* within two minutes is one event."""
        await self.bus.store(*event_message(self.bus.names, event, id))


def _outgoing(timeout: float, traceparent: str | None) -> tuple[dict[str, str], float]:
    """Return the headers of a call and how long to wait: never longer than our own caller does."""
    caller = current.get()
    if caller is not None:
        remaining = caller.remaining()
        timeout = timeout if remaining is None else min(timeout, remaining)
        traceparent = traceparent or caller.traceparent
    timeout = max(timeout, 0.001)
    headers = {wire.INVOCATION: new_id(), wire.DEADLINE: str(int(timeout * 1000))}
    if traceparent:
        headers[wire.TRACEPARENT] = traceparent
    return headers, timeout
