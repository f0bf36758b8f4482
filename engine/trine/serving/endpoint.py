"""One served function: takes calls from the wire, runs jobs and triggers, replies."""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import structlog

from trine import payload, wire
from trine.consuming.consumer import Delivery
from trine.context import Context
from trine.errors import DeadlineError, TooManyRequestsError, TrineError, UsageError
from trine.function import Function
from trine.invocation import Invocation, current, new_id
from trine.jobs import consumers
from trine.middleware import Middleware, compose
from trine.middleware.idempotency import once
from trine.middleware.limits import Limit
from trine.observability.stats import Stats
from trine.serving.host import Host
from trine.serving.inflight import Call
from trine.serving.yielding import yield_items
from trine.transport.connection import Msg

log = structlog.get_logger("trine")

_RETRY_AFTER_SECONDS = 1.0  # what a refused caller is told to wait


class Endpoint:
    """The runs of one function in this process."""

    def __init__(self, host: Host, function: Function[Any, Any]) -> None:
        self.function = function
        self.stats = Stats()
        self._host = host
        self._client = host.client
        self._connection = host.client.bus.connection
        limits = [Limit(function.rate)] if function.rate else []
        self._around: list[Middleware] = [*host.middleware, *function.middleware, *limits]
        self._run = compose(self._around, function.run)

    # --- calls ---------------------------------------------------------------------------------

    def receive(self, message: Msg) -> None:
        """Start to answer a call; refuse it when too many run."""
        headers = message.headers or {}
        if (refusal := self._refusal()) is not None:
            self._reply_error(message, refusal)
            return
        invocation, call = self._begin(headers, None)
        # Named, because making up a name costs more than the rest of a task.
        call.task = asyncio.Task(
            self._answer(message, headers, invocation, call), name=self.function.id
        )

    async def local(self, sent: bytes, timeout: float, headers: Mapping[str, str]) -> bytes:
        """Answer a call from this process, as `receive` does for those from the wire."""
        if (refusal := self._refusal()) is not None:
            raise refusal
        invocation, call = self._begin(headers, timeout)
        call.task = asyncio.current_task()
        token = current.set(invocation)
        try:
            return await self._output(sent, headers, invocation)
        except asyncio.CancelledError:
            if call.stopped is None or call.task is None:
                raise
            call.task.uncancel()
            self._note(invocation, call.stopped)
            raise call.stopped from None
        except Exception as error:
            self._note(invocation, error)
            raise
        finally:
            current.reset(token)
            self._end(invocation, call)

    def _refusal(self) -> TrineError | None:
        running = self.stats.running
        if running < self.function.concurrency:
            return None
        error = TooManyRequestsError(
            f"{self.function.id}: {running} calls are running in {self._host.worker}",
            retry_after=_RETRY_AFTER_SECONDS,
        )
        self.stats.failed(error.code, error.message)
        return error

    def _begin(self, headers: Mapping[str, str], timeout: float | None) -> tuple[Invocation, Call]:
        asked = headers.get(wire.DEADLINE)
        seconds = timeout
        if seconds is None:
            seconds = wire.whole(asked, 10**12, None)
            seconds = self.function.timeout if seconds is None else seconds / 1000
        id = headers.get(wire.INVOCATION)
        if id is None or id in self._host.inflight:
            id = new_id()
        call = self._host.inflight[id] = Call()
        deadline = None
        if seconds is not None:
            deadline = call.started + seconds
            call.timer = self._connection.deadlines.add(seconds, self._expire, (call, seconds))
        invocation = Invocation(
            id,
            self.function.id,
            self._host.worker,
            deadline=deadline,
            attempt=wire.whole(headers.get(wire.ATTEMPT), 10**9, 1),
            traceparent=headers.get(wire.TRACEPARENT),
            received=headers,
        )
        self.stats.running += 1
        return invocation, call

    def _expire(self, expired: tuple[Call, float]) -> None:
        call, seconds = expired
        call.stop(_out_of_time(self.function, seconds))

    async def _answer(
        self, message: Msg, headers: Mapping[str, str], invocation: Invocation, call: Call
    ) -> None:
        current.set(invocation)  # this task's own copy
        try:
            if self.function.streams:
                await self._stream(message, headers, invocation)
            else:
                output = await self._output(message.data, headers, invocation)
                if message.reply:
                    said: dict[str, str] = {}
                    if len(output) > payload.INLINE_BYTES:
                        output, said = await payload.pack(
                            self._client.bus, output, payload.CALL_SECONDS
                        )
                    if wire.GATHER in headers:
                        said[wire.WORKER] = self._host.worker
                    self._connection.send(message.reply, output, headers=said or None)
        except asyncio.CancelledError:
            if call.stopped is None:
                raise  # the process ends
            self._refuse(message, invocation, call.stopped)
        except Exception as error:  # noqa: BLE001 - the caller gets it, whatever it is
            self._refuse(message, invocation, error)
        finally:
            self._end(invocation, call)

    async def _output(
        self, sent: bytes, headers: Mapping[str, str], invocation: Invocation
    ) -> bytes:
        """Run the function on a payload from the wire and return its output for the wire."""
        function = self.function
        if wire.OBJECT in headers:
            sent = await payload.unpack(self._client.bus, headers, sent)

        async def handle() -> bytes:
            value = function.decode(sent)
            return function.encode(await self._run(Context(self._client, invocation), value))

        observed = function.id in self._host.observed.functions
        if not observed and wire.IDEMPOTENCY not in headers:
            return await handle()
        run: Callable[[], Awaitable[bytes]] = handle
        if wire.IDEMPOTENCY in headers:
            key, keep = headers[wire.IDEMPOTENCY], function.keep_reply
            run = partial(once, self._client.bus, function.id, key, sent, keep, handle)
        return await self._observed(invocation, sent, run) if observed else await run()

    async def _stream(
        self, message: Msg, headers: Mapping[str, str], invocation: Invocation
    ) -> None:
        if wire.STREAM not in headers or not message.reply:
            raise UsageError(f"{self.function.id} streams: use stream() instead of call()")
        sent = await payload.unpack(self._client.bus, headers, message.data)
        bus = self._client.bus

        async def run(context: Context, value: Any) -> None:
            await yield_items(bus, self.function, context, value, message.reply)

        value = self.function.decode(sent)
        await compose(self._around, run)(Context(self._client, invocation), value)
        self._connection.send(message.reply, b"", headers={wire.STREAM: "end"})

    async def _observed(
        self, invocation: Invocation, sent: bytes, run: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        started = time.monotonic()
        output, failure = b"", None
        try:
            output = await run()
        except Exception as error:
            failure = error
            raise
        finally:
            seconds = time.monotonic() - started
            self._host.observed.tell(invocation, seconds, sent, output, failure)
        return output

    # --- endings -------------------------------------------------------------------------------

    def _end(self, invocation: Invocation, call: Call) -> None:
        if call.timer:
            self._connection.deadlines.discard(call.timer)
        self._host.inflight.pop(invocation.id, None)
        self.stats.running -= 1
        self.stats.ended(int((time.monotonic() - call.started) * 1e9))
        self._host.ended()

    def _refuse(self, message: Msg, invocation: Invocation, error: Exception) -> None:
        self._note(invocation, error)
        self._reply_error(message, error)

    def _reply_error(self, message: Msg, error: Exception) -> None:
        if not message.reply:
            return
        if self._host.tracebacks and not isinstance(error, TrineError):
            error = wire.internal(error, traceback="".join(traceback.format_exception(error)))
        headers, body = wire.encode_error(error)
        headers[wire.WORKER] = self._host.worker
        with suppress(TrineError):
            self._connection.send(message.reply, body, headers=headers)

    def _note(self, invocation: Invocation, error: BaseException) -> None:
        facts = {"function": self.function.id, "invocation": invocation.id}
        if isinstance(error, TrineError):
            self.stats.failed(error.code, error.message)
            log.debug("function_refused", code=error.code, error=error.message, **facts)
        else:
            self.stats.failed("internal", f"{type(error).__name__}: {error}")
            log.error("function_failed", exc_info=error, **facts)

    # --- jobs and triggers ---------------------------------------------------------------------

    async def job(self, delivery: Delivery) -> None:
        """Run a durable call; its result is kept before the job is acknowledged."""
        facts = consumers.job_facts(delivery)
        output = await self.run(delivery.payload, "job", delivery.attempt, facts, delivery.headers)
        if consumers.kept(delivery):
            await consumers.put_result(self._client.bus, delivery, self.function.encode(output))

    async def run(
        self,
        sent: Any,
        trigger: str,
        attempt: int,
        facts: dict[str, Any],
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Run the function for a trigger or a job and return its output, or raise."""
        function = self.function
        if function.streams:
            raise UsageError(f"{function.id} streams: it cannot be triggered")
        seconds = function.timeout
        started = time.monotonic()
        received = headers or {}
        invocation = Invocation(
            new_id(),
            function.id,
            self._host.worker,
            attempt=attempt,
            deadline=None if seconds is None else started + seconds,
            traceparent=received.get(wire.TRACEPARENT),
            trigger=trigger,
            facts=facts,
            received=received,
        )
        token = current.set(invocation)
        self.stats.running += 1
        output, failure = None, None
        try:
            raw = isinstance(sent, bytes)
            value = function.decode(sent) if raw else function.decode_value(sent)
            context = Context(self._client, invocation)
            if seconds is None:
                output = await self._run(context, value)
                return output
            with anyio.move_on_after(seconds):
                output = await self._run(context, value)
                return output
            raise _out_of_time(function, seconds)
        except Exception as error:
            failure = error
            self._note(invocation, error)
            raise
        finally:
            self.stats.running -= 1
            took = time.monotonic() - started
            self.stats.ended(int(took * 1e9))
            current.reset(token)
            if function.id in self._host.observed.functions:
                said = function.encode(output) if failure is None else b""
                self._host.observed.tell(invocation, took, payload.encode(sent), said, failure)


def _out_of_time(function: Function[Any, Any], seconds: float) -> TrineError:
    return DeadlineError(f"{function.id} did not end within {seconds:g} s")
