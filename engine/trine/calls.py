"""Calling functions now: one of the replicas, one named worker, or all of them."""
# Longer than 300 lines: the overloads that make calls and streams typed take a third of it.

import contextlib
import difflib
import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio
from nats import errors as nats_errors
from pydantic import TypeAdapter

from trine import catalogue, payload, wire
from trine.bus import Bus
from trine.catalogue import directory
from trine.errors import (
    DeadlineError,
    FunctionNotFoundError,
    TrineError,
    UnavailableError,
)
from trine.invocation import current, new_id, tracing
from trine.transport.connection import Msg

if TYPE_CHECKING:
    from trine.function import Function

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741
M = TypeVar("M")
CALL_SECONDS = 30.0
STREAM_SECONDS = 3600.0
IDLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker said to a broadcast: a value, or the error that the function raised."""

    worker: str
    value: Any = None
    error: TrineError | None = None


class Calls:
    """The ways to call a function; part of a client and of the context of a handler."""

    __slots__ = ()
    bus: Bus

    @overload
    async def call(
        self,
        function: "Function[I, O]",
        value: I | dict[str, Any] | None = None,
        *,
        timeout: float = CALL_SECONDS,
        worker: str | None = None,
        idempotency_key: str | None = None,
    ) -> O: ...
    @overload
    async def call(
        self,
        function: str,
        value: Any = None,
        *,
        timeout: float = CALL_SECONDS,
        worker: str | None = None,
        idempotency_key: str | None = None,
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
        idempotency_key: str | None = None,
    ) -> Any: ...
    async def call(
        self,
        function: "Function[Any, Any] | str",
        value: Any = None,
        *,
        timeout: float = CALL_SECONDS,
        worker: str | None = None,
        idempotency_key: str | None = None,
        returns: Any = None,
    ) -> Any:
        """Run *function* once and return its output; at most once: it is not repeated.

        Raises what the function raised. The callee is told to stop when this is cancelled or when
        *timeout* seconds, or the time that our own caller has left, are over (`DeadlineError`).
        With an *idempotency_key* the first call runs and every later one with the same key gets
        its reply, for as long as the function keeps it: repeating is then safe.
        """
        headers = {wire.IDEMPOTENCY: idempotency_key} if idempotency_key else None
        if isinstance(function, str):
            reply = await self.call_bytes(
                function, payload.encode(value), timeout=timeout, worker=worker, headers=headers
            )
            if returns is not None:
                return TypeAdapter(returns).validate_json(reply)
            return wire.loads(reply)
        reply = await self.call_bytes(
            function.id,
            function.encode_input(value),
            timeout=timeout,
            worker=worker,
            headers=headers,
        )
        return function.decode_output(reply)

    async def call_bytes(
        self,
        function: str,
        value: bytes,
        *,
        timeout: float = CALL_SECONDS,
        worker: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """`call` without the models: JSON in, JSON out, as the wire has it."""
        bus = self.bus
        function = wire.function_id(function)
        subject = bus.names.on(worker, function) if worker else bus.names.fn(function)
        head, timeout = outgoing(timeout, headers)
        if len(value) > payload.INLINE_BYTES:
            value, reference = await payload.pack(bus, value, payload.CALL_SECONDS)
            head.update(reference)
        bus.calling.enter()
        try:
            reply = await bus.connection.request(subject, value, timeout, headers=head)
        except nats_errors.NoRespondersError:
            raise await self._nobody(function, worker) from None
        except nats_errors.TimeoutError:
            self._give_up(head[wire.INVOCATION])
            raise DeadlineError(
                f"{function} did not answer within {timeout:g} s", function=function
            ) from None
        except nats_errors.Error as error:
            raise UnavailableError(f"NATS: {error!r}") from error
        except anyio.get_cancelled_exc_class():
            self._give_up(head[wire.INVOCATION])
            raise
        finally:
            bus.calling.leave()
        said = reply.headers
        if said:
            if wire.ERROR in said:
                raise wire.decode_error(said, reply.data)
            if wire.OBJECT in said:
                return await payload.unpack(bus, said, reply.data)
        return reply.data

    # --- streams -------------------------------------------------------------------------------

    @overload
    def stream(
        self,
        function: "Function[I, O]",
        value: I | dict[str, Any] | None = None,
        *,
        timeout: float = STREAM_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> AsyncGenerator[O, None]: ...
    @overload
    def stream(
        self,
        function: str,
        value: Any = None,
        *,
        timeout: float = STREAM_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> AsyncGenerator[Any, None]: ...
    async def stream(
        self,
        function: "Function[Any, Any] | str",
        value: Any = None,
        *,
        timeout: float = STREAM_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> AsyncGenerator[Any, None]:
        """Give what a streaming function yields. The function stops when the iteration ends.

        `DeadlineError` after *timeout* seconds in all, `UnavailableError` when nothing, not even a
        sign of life, came for *idle_seconds*.
        """
        if isinstance(function, str):
            id, sent, decode = function, payload.encode(value), wire.loads
        else:
            id, sent, decode = function.id, function.encode_input(value), function.decode_output
        items = self.stream_bytes(id, sent, timeout=timeout, idle_seconds=idle_seconds)
        async with contextlib.aclosing(items):
            async for item in items:
                yield decode(item)

    async def stream_bytes(
        self,
        function: str,
        value: bytes,
        *,
        timeout: float = STREAM_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """`stream` without the models: each item as JSON."""
        bus = self.bus
        function = wire.function_id(function)
        head, _ = outgoing(timeout, headers)
        head[wire.STREAM] = "1"
        value, reference = await payload.pack(bus, value, payload.CALL_SECONDS)
        head.update(reference)
        # Unbounded: full, it would lose items. The function is held up by its own pace alone.
        send, receive = anyio.create_memory_object_stream[Msg](math.inf)
        inbox = await bus.connection.inbox(send.send_nowait)
        ended = False
        bus.calling.enter()
        try:
            bus.connection.send(bus.names.fn(function), value, inbox.subject, head)
            while True:
                try:
                    with anyio.fail_after(idle_seconds):
                        message = await receive.receive()
                except TimeoutError as error:
                    text = f"{function} was silent for {idle_seconds:g} s"
                    raise UnavailableError(text) from error
                said = message.headers or {}
                ended = wire.ERROR in said or said.get(wire.STREAM) not in ("item", "alive")
                if said.get(wire.STATUS) == "503":
                    raise await self._nobody(function, None)
                if wire.ERROR in said:
                    raise wire.decode_error(said, message.data)
                if ended:
                    return
                if said.get(wire.STREAM) == "item":
                    yield await payload.unpack(bus, said, message.data)
        finally:
            bus.calling.leave()
            inbox.close()
            send.close()
            receive.close()
            if not ended:
                self._give_up(head[wire.INVOCATION])

    # --- all replicas --------------------------------------------------------------------------

    async def broadcast(
        self,
        function: "Function[Any, Any] | str",
        value: Any = None,
        *,
        timeout: float = 5.0,
    ) -> list[Answer]:
        """Run *function* in every worker that serves it now, and return what each said.

        Waits until all workers of the catalogue have answered, *timeout* seconds at most: a worker
        that did not is there with a `DeadlineError`. `FunctionNotFoundError` when nobody serves it.
        """
        if isinstance(function, str):
            id, sent, decode = wire.function_id(function), payload.encode(value), wire.loads
        else:
            id, sent, decode = function.id, function.encode_input(value), function.decode_output
        bus = self.bus
        waiting = {worker.id for worker in await catalogue.serving(bus, id)}
        if not waiting:
            raise await self._nobody(id, None)
        head, timeout = outgoing(timeout, {wire.GATHER: "1"})
        sent, reference = await payload.pack(bus, sent, payload.CALL_SECONDS)
        send, receive = anyio.create_memory_object_stream[Msg](math.inf)
        inbox = await bus.connection.inbox(send.send_nowait)
        answers: list[Answer] = []
        try:
            bus.connection.send(bus.names.all(id), sent, inbox.subject, {**head, **reference})
            with anyio.move_on_after(timeout):
                while waiting:
                    message = await receive.receive()
                    said = message.headers or {}
                    worker = said.get(wire.WORKER, "")
                    waiting.discard(worker)
                    if wire.ERROR in said:
                        error = wire.decode_error(said, message.data)
                        answers.append(Answer(worker, error=error))
                    elif wire.STATUS not in said:
                        reply = await payload.unpack(bus, said, message.data)
                        answers.append(Answer(worker, decode(reply)))
        finally:
            inbox.close()
            send.close()
            receive.close()
        late = DeadlineError(f"{id} did not answer within {timeout:g} s", function=id)
        return answers + [Answer(worker, error=late) for worker in sorted(waiting)]

    # --- endings -------------------------------------------------------------------------------

    def _give_up(self, invocation: str) -> None:
        with contextlib.suppress(TrineError):  # away: the callee's own deadline ends it
            self.bus.connection.send(self.bus.names.cancel(invocation))

    async def _nobody(self, function: str, worker: str | None) -> TrineError:
        known = await directory.functions(self.bus)
        if worker is not None:
            return UnavailableError(f"worker {worker} does not serve {function}", worker=worker)
        if function in known:
            return UnavailableError(f"{function} is not reachable at this moment")
        near = difflib.get_close_matches(function, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return FunctionNotFoundError(f"nobody serves {function!r}{hint}", function=function)


def outgoing(timeout: float, extra: Mapping[str, str] | None) -> tuple[dict[str, str], float]:
    """Return the headers of a call and how long to wait: never longer than our own caller does."""
    headers = {wire.INVOCATION: new_id()}
    caller = current.get()
    if caller is not None:
        remaining = caller.remaining()
        timeout = timeout if remaining is None else min(timeout, remaining)
        caller.trace(headers)
    if tracing.inject is not None:
        tracing.inject(headers)
    timeout = max(timeout, 0.001)
    headers[wire.DEADLINE] = str(int(timeout * 1000))
    if extra:
        headers.update(extra)
    return headers, timeout
