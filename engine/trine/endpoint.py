"""One served function: takes calls from the wire, runs jobs and triggers, replies."""

import time
from collections.abc import Callable
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from trine import jobs, wire
from trine.client import Client
from trine.connection import Msg
from trine.consume import Delivery
from trine.context import Context
from trine.errors import CancelledByCallerError, DeadlineError, TooManyRequestsError
from trine.errors import TrineError, UsageError
from trine.function import Function
from trine.invocation import Invocation, current, new_id

log = structlog.get_logger("trine")

_ALIVE_SECONDS = 10.0


class Endpoint:
    """The runs of one function in this process."""

    def __init__(
        self, client: Client, function: Function[Any, Any], worker: str, ended: Callable[[], None]
    ) -> None:
        self.client = client
        self.function = function
        self.worker = worker
        self.running = 0
        self.calls = 0
        self.errors = 0
        self.nanoseconds = 0
        self.tasks: TaskGroup | None = None  # set by the worker before the first call
        self._ended = ended
        self._scopes: dict[str, anyio.CancelScope] = {}

    # --- calls ---------------------------------------------------------------------------------

    def receive(self, message: Msg) -> None:
        """Start to answer a call; refuse it when too many run."""
        if self.tasks is None or self.running >= self.function.concurrency:
            self._reply_error(
                message,
                TooManyRequestsError(
                    f"{self.function.id}: {self.running} calls are running in {self.worker}"
                ),
            )
            return
        self.running += 1
        self.tasks.start_soon(self._answer, message)

    def cancel(self, invocation: str) -> None:
        """Stop the call, if it runs here."""
        scope = self._scopes.get(invocation)
        if scope is not None:
            scope.cancel()

    async def _answer(self, message: Msg) -> None:
        function = self.function
        headers = message.headers or {}
        started = time.monotonic_ns()
        seconds = _seconds(headers.get(wire.DEADLINE), function.timeout)
        invocation = Invocation(
            headers.get(wire.INVOCATION) or new_id(),
            function.id,
            self.worker,
            deadline=None if seconds is None else time.monotonic() + seconds,
            traceparent=headers.get(wire.TRACEPARENT),
        )
        current.set(invocation)  # this task's own copy
        scope = self._scopes[invocation.id] = anyio.CancelScope()
        if seconds is not None:
            scope.deadline = anyio.current_time() + seconds
        self.calls += 1
        try:
            with scope:
                context = Context(self.client, invocation)
                value = function.decode(message.data)
                if function.streams:
                    await self._stream(context, value, message)
                else:
                    output = function.encode(await function.run(context, value))
                    if message.reply:
                        self.client.bus.connection.send(message.reply, output)
            if scope.cancelled_caught:
                raise _stopped(function, seconds, scope.deadline)
        except Exception as error:  # noqa: BLE001 - the caller gets it, whatever it is
            self.errors += 1
            self._failed(invocation, error)
            self._reply_error(message, error)
        finally:
            self._scopes.pop(invocation.id, None)
            self.nanoseconds += time.monotonic_ns() - started
            self.running -= 1
            self._ended()

    async def _stream(self, context: Context, value: Any, message: Msg) -> None:
        send = self.client.bus.connection.send
        if (message.headers or {}).get(wire.STREAM) is None:
            raise UsageError(f"{self.function.id} streams: use stream() instead of call()")

        async def alive() -> None:
            while True:
                await anyio.sleep(_ALIVE_SECONDS)
                send(message.reply, b"", headers={wire.STREAM: "alive"})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alive)
            try:
                async for item in self.function.iterate(context, value):
                    payload = self.function.encode(item)
                    send(message.reply, payload, headers={wire.STREAM: "item"})
            except Exception as error:  # noqa: BLE001 - else it arrives as a group
                self.errors += 1
                self._failed(context.invocation, error)
                self._reply_error(message, error)
                return
            finally:
                tasks.cancel_scope.cancel()
        send(message.reply, b"", headers={wire.STREAM: "end"})

    def _reply_error(self, message: Msg, error: Exception) -> None:
        if message.reply:
            headers, body = wire.encode_error(error)
            try:
                self.client.bus.connection.send(message.reply, body, headers=headers)
            except TrineError as fault:
                log.warning("reply_failed", error=str(fault))

    def _failed(self, invocation: Invocation, error: Exception) -> None:
        facts = {"function": self.function.id, "invocation": invocation.id}
        if isinstance(error, TrineError):
            log.debug("function_refused", code=error.code, error=error.message, **facts)
        else:
            log.error("function_failed", exc_info=error, **facts)

    # --- jobs and triggers ---------------------------------------------------------------------

    async def job(self, delivery: Delivery) -> None:
        """Run a durable call; its result is kept before the job is acknowledged."""
        job = jobs.job_id(delivery)
        bus = self.client.bus
        if delivery.attempt > 1 and await bus.last(bus.names.results, bus.names.result(job)):
            return  # it had ended; only the acknowledgement was lost
        output = await self.run(delivery.payload, "job", delivery.attempt, {"job": job})
        await jobs.put_result(bus, job, self.function.encode(output))

    async def run(self, payload: Any, trigger: str, attempt: int, facts: dict[str, Any]) -> Any:
        """Run the function for a trigger or a job and return its output, or raise."""
        function = self.function
        if function.streams:
            raise UsageError(f"{function.id} streams: it cannot be triggered")
        seconds = function.timeout
        invocation = Invocation(
            new_id(),
            function.id,
            self.worker,
            attempt=attempt,
            deadline=None if seconds is None else time.monotonic() + seconds,
            trigger=trigger,
            facts=facts,
        )
        token = current.set(invocation)
        try:
            raw = isinstance(payload, bytes)
            value = function.decode(payload) if raw else function.decode_value(payload)
            with anyio.CancelScope() as scope:
                if seconds is not None:
                    scope.deadline = anyio.current_time() + seconds
                return await function.run(Context(self.client, invocation), value)
            raise _stopped(function, seconds, scope.deadline)
        except Exception as error:
            self._failed(invocation, error)
            raise
        finally:
            current.reset(token)


def _stopped(function: Function[Any, Any], seconds: float | None, deadline: float) -> TrineError:
    if seconds is not None and anyio.current_time() >= deadline:
        return DeadlineError(f"{function.id} did not end within {seconds:g} s")
    return CancelledByCallerError(f"{function.id} was cancelled by its caller")


def _seconds(asked: str | None, own: float | None) -> float | None:
    """Return how long a call may run: what its caller waits, else the function's timeout."""
    if asked and asked.isdigit():
        return int(asked) / 1000
    return own
