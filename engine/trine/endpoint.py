"""One served function: takes calls from the wire, runs jobs and triggers, replies."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import structlog

from trine import jobs, wire
from trine.client import Client
from trine.connection import Msg
from trine.consume import Delivery
from trine.context import Context
from trine.errors import (
    CancelledByCallerError,
    DeadlineError,
    TooManyRequestsError,
    TrineError,
    UsageError,
)
from trine.function import Function
from trine.invocation import Invocation, current, new_id

log = structlog.get_logger("trine")

_ALIVE_SECONDS = 10.0
_CHECK_ITEMS = 64


@dataclass(slots=True)
class _Call:
    """One call that runs. A plain task and timer: a task group and a scope cost more than it."""

    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    stopped: TrineError | None = None

    def stop(self, why: TrineError) -> None:
        if self.stopped is None and self.task is not None:
            self.stopped = why
            self.task.cancel()


class Endpoint:
    """The runs of one function in this process."""

    def __init__(
        self, client: Client, function: Function[Any, Any], worker: str, ended: Callable[[], None]
    ) -> None:
        self.client = client
        self.function = function
        self.worker = worker
        self.calls = 0
        self.errors = 0
        self.nanoseconds = 0
        self._ended = ended
        self._running: dict[str, _Call] = {}

    @property
    def running(self) -> int:
        """How many calls run now."""
        return len(self._running)

    async def close(self) -> None:
        """Cancel the calls that still run and wait for their end."""
        tasks = [call.task for call in self._running.values() if call.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- calls ---------------------------------------------------------------------------------

    def receive(self, message: Msg) -> None:
        """Start to answer a call; refuse it when too many run."""
        function = self.function
        if len(self._running) >= function.concurrency:
            text = f"{function.id}: {len(self._running)} calls are running in {self.worker}"
            self._reply_error(message, TooManyRequestsError(text))
            return
        headers = message.headers or {}
        seconds = _seconds(headers.get(wire.DEADLINE), function.timeout)
        id = headers.get(wire.INVOCATION)
        if id is None or id in self._running:
            id = new_id()
        invocation = Invocation(
            id,
            function.id,
            self.worker,
            deadline=None if seconds is None else time.monotonic() + seconds,
            traceparent=headers.get(wire.TRACEPARENT),
        )
        loop = asyncio.get_running_loop()
        call = self._running[id] = _Call()
        call.task = loop.create_task(self._answer(message, invocation, call))
        if seconds is not None:
            call.timer = loop.call_later(seconds, self._expire, call, seconds)
        self.calls += 1

    def cancel(self, invocation: str) -> None:
        """Stop the call, if it runs here."""
        if (call := self._running.get(invocation)) is not None:
            call.stop(CancelledByCallerError(f"{self.function.id} was cancelled by its caller"))

    def _expire(self, call: _Call, seconds: float) -> None:
        call.stop(_out_of_time(self.function, seconds))

    async def _answer(self, message: Msg, invocation: Invocation, call: _Call) -> None:
        function = self.function
        started = time.monotonic_ns()
        current.set(invocation)  # this task's own copy
        try:
            context = Context(self.client, invocation)
            value = function.decode(message.data)
            if function.streams:
                await self._stream(context, value, message)
            else:
                output = function.encode(await function.run(context, value))
                if message.reply:
                    self.client.bus.connection.send(message.reply, output)
        except asyncio.CancelledError:
            if call.stopped is None:
                raise  # the process ends
            self._refuse(message, invocation, call.stopped)
        except Exception as error:  # noqa: BLE001 - the caller gets it, whatever it is
            self._refuse(message, invocation, error)
        finally:
            if call.timer is not None:
                call.timer.cancel()
            self._running.pop(invocation.id, None)
            self.nanoseconds += time.monotonic_ns() - started
            self._ended()

    def _refuse(self, message: Msg, invocation: Invocation, error: Exception) -> None:
        self.errors += 1
        self._failed(invocation, error)
        self._reply_error(message, error)

    async def _stream(self, context: Context, value: Any, message: Msg) -> None:
        send = self.client.bus.connection.send
        if (message.headers or {}).get(wire.STREAM) is None:
            raise UsageError(f"{self.function.id} streams: use stream() instead of call()")

        async def alive() -> None:
            while True:
                await anyio.sleep(_ALIVE_SECONDS)
                with suppress(TrineError):  # away
                    send(message.reply, b"", headers={wire.STREAM: "alive"})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alive)
            try:
                unchecked = 0
                async with aclosing(self.function.iterate(context, value)) as items:
                    async for item in items:
                        payload = self.function.encode(item)
                        send(message.reply, payload, headers={wire.STREAM: "item"})
                        unchecked += 1
                        if unchecked == _CHECK_ITEMS:  # else a busy generator cannot be stopped
                            unchecked = 0
                            await anyio.lowlevel.checkpoint()
            except Exception as error:  # noqa: BLE001 - else it arrives as a group
                self._refuse(message, context.invocation, error)
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
            raise _out_of_time(function, seconds or 0)
        except Exception as error:
            self._failed(invocation, error)
            raise
        finally:
            current.reset(token)


def _out_of_time(function: Function[Any, Any], seconds: float) -> TrineError:
    return DeadlineError(f"{function.id} did not end within {seconds:g} s")


def _seconds(asked: str | None, own: float | None) -> float | None:
    """Return how long a call may run: what its caller waits, else the function's timeout."""
    if asked and asked.isdigit():
        return int(asked) / 1000
    return own
