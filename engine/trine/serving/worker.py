"""Serving: one process answers calls, runs jobs and triggers, and announces itself."""

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from trine import catalogue, trigger, wire
from trine.app import App
from trine.calls import CALL_SECONDS
from trine.catalogue.directory import stored_bindings
from trine.client import Client
from trine.errors import UnavailableError, UsageError
from trine.function import Function
from trine.jobs import consumers
from trine.middleware import Middleware
from trine.observability.observe import Observed
from trine.retry import Retry
from trine.serving import micro
from trine.serving.dormant import Dormant, Start
from trine.serving.endpoint import Endpoint
from trine.serving.host import Host
from trine.serving.supervise import supervise
from trine.serving.watchdog import Watchdog
from trine.transport.connection import Listener, Msg
from trine.trigger import Binding, TriggerContext

log = structlog.get_logger("trine")

_TRIGGER_SECONDS = 3.0  # for the shared triggers to be ready; a kind need not say that it is


def worker_id() -> str:
    """Return an id for this process that no other process, here or elsewhere, has."""
    return f"{wire.token(socket.gethostname())}-{os.getpid()}-{secrets.token_hex(2)}"


class Worker:
    """A process that serves *apps*: ``async with create_task_group() as t: await t.start(w.run)``.

    `run` returns when `stop` was called and everything that was running has ended.
    """

    def __init__(
        self,
        client: Client,
        apps: Sequence[App],
        *,
        id: str | None = None,
        middleware: Sequence[Middleware] = (),
        tracebacks: bool = False,
    ) -> None:
        """Serve *apps*; *middleware* runs around all their functions.

        *tracebacks*: callers are sent the traceback of a function that failed.
        """
        self.client = client
        self.apps = apps
        self.id = id or worker_id()
        self.bindings: list[Binding] = []
        self.stopping = anyio.Event()
        self._observed = Observed(client.bus)
        self._host = Host(client, self.id, self._ended, self._observed, middleware, tracebacks)
        self._endpoints: dict[str, Endpoint] = {}
        for app in apps:
            for function in app.functions.values():
                if function.id in self._endpoints:
                    raise UsageError(f"function {function.id!r} is in two of the served apps")
                self._endpoints[function.id] = Endpoint(self._host, function)
            self.bindings += app.bindings
        self._of: dict[str, list[Binding]] = {id: [] for id in self._endpoints}
        for binding in self.bindings:
            self._of.setdefault(binding.function.id, []).append(binding)
        self._listeners: list[Listener] = []
        self._idle = anyio.Event()
        self._started_at = time.time()

    def stop(self) -> None:
        """Take no new work; `run` returns when what runs has ended."""
        self.stopping.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve; ready when every function can be called and takes jobs."""
        async with anyio.create_task_group() as background:
            background.start_soon(self._host.inflight.watch)
            background.start_soon(self._end_with_connection)
            await background.start(self._observed.run)
            await background.start(Watchdog(self._functions()).run)
            try:
                async with anyio.create_task_group() as tasks:
                    async with anyio.create_task_group() as serving:
                        await self._start(tasks, serving)
                        task_status.started()
                        await self.stopping.wait()
                        serving.cancel_scope.cancel()
                    await self._stop_listening()
                    while self._host.inflight:
                        self._idle = anyio.Event()
                        await self._idle.wait()
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                    await self._host.inflight.close()
            background.cancel_scope.cancel()
        log.info("stopped", worker=self.id)

    async def _start(self, tasks: TaskGroup, serving: TaskGroup) -> None:
        """Start what drains in *tasks*, and what ends at once in *serving*."""
        await self._subscribe()
        await self._retire()
        await self._start_jobs(tasks, serving)
        await self._start_triggers(tasks)
        await self._announce(serving)
        log.info("serving", worker=self.id, functions=len(self._endpoints))

    async def _end_with_connection(self) -> None:
        """Raise when the server has closed the connection for good: whoever runs us starts anew."""
        connection, gone = self.client.bus.connection, anyio.Event()
        connection.on_closed.add(gone.set)
        try:
            await gone.wait()
        finally:
            connection.on_closed.discard(gone.set)
        raise UnavailableError(f"the NATS server ended the connection: {connection.last_error}")

    async def _stop_listening(self) -> None:
        self.client.bus.connection.on_reconnect.discard(self._host.inflight.reconnected)
        async with anyio.create_task_group() as closing:
            for listener in self._listeners:
                closing.start_soon(listener.close)

    async def call(
        self,
        function: str,
        payload: bytes,
        *,
        timeout: float = CALL_SECONDS,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Call a function from within this process: straight if it is served here, else by NATS."""
        endpoint = self._endpoints.get(function)
        if endpoint is None or endpoint.function.streams:
            return await self.client.call_bytes(function, payload, timeout=timeout, headers=headers)
        return await endpoint.local(payload, timeout, headers or {})

    def _functions(self) -> Iterator[Function[Any, Any]]:
        return (endpoint.function for endpoint in self._endpoints.values())

    async def _subscribe(self) -> None:
        connection, names = self.client.bus.connection, self.client.bus.names
        for endpoint in self._endpoints.values():
            subject = names.fn(endpoint.function.id)
            self._listeners += [
                await connection.listen(subject, endpoint.receive, wire.QUEUE_GROUP, confirm=False)
            ]
        self._listeners += await micro.respond(connection, self._micro_info)
        self._listeners += [
            await connection.listen(names.on(self.id, ">"), self._directed, confirm=False),
            await connection.listen(names.all(">"), self._directed, confirm=False),
            await connection.listen(names.alive("*"), self._host.inflight.hear, confirm=False),
            await connection.listen(names.cancel("*"), self._cancel),
        ]
        connection.on_reconnect.add(self._host.inflight.reconnected)

    async def _retire(self) -> None:
        """Let every trigger kind remove what bindings that are gone have left at the server."""
        kept: dict[str, set[str]] = {function.id: set() for function in self._functions()}
        data = [info for info, _ in await stored_bindings(self.client.bus)]
        for one in [*(binding.info() for binding in self.bindings), *data]:
            kept.setdefault(one.function, set()).add(one.id)
        for cls in trigger.loaded():
            await cls.retire(self.client, kept)

    async def _start_jobs(self, tasks: TaskGroup, serving: TaskGroup) -> None:
        def starting(endpoint: Endpoint) -> Start:
            function = endpoint.function
            (consumer,) = consumers.queue_consumer(
                self.client.bus,
                wire.function_queue(function.id),
                endpoint.job,
                concurrency=min(function.concurrency, 64),
                retry=function.retry or Retry(),
                priorities=function.priorities,
            )
            return partial(tasks.start, consumer.run, self.stopping)

        queues = {
            wire.function_queue(endpoint.function.id): starting(endpoint)
            for endpoint in self._endpoints.values()
            if not endpoint.function.streams
        }
        await serving.start(Dormant(self.client.bus, queues).run)

    async def _start_triggers(self, tasks: TaskGroup) -> None:
        shared = []
        for binding in self.bindings:
            if binding.trigger.placement == "gateway":
                continue
            run = self._endpoints[binding.function.id].run
            siblings = frozenset(one.id for one in self._of[binding.function.id])
            context = TriggerContext(binding, self.client, self.stopping, siblings, run)
            tasks.start_soon(supervise, context, self.id)
            if binding.trigger.placement == "shared":
                shared.append(context)
        with anyio.move_on_after(_TRIGGER_SECONDS):
            for context in shared:
                await context.ready.wait()

    async def _announce(self, serving: TaskGroup) -> None:
        apps = [app.name for app in self.apps]
        document = catalogue.Document(
            functions=[self._info(one.function) for one in self._endpoints.values()]
        )
        digest = await catalogue.publish(self.client.bus, apps, document)
        serving.start_soon(catalogue.renew, self.client.bus, digest)
        lease = catalogue.presence(
            self.client.bus, self.id, apps=apps, document=digest, started_at=self._started_at
        )
        await serving.start(lease.keep)

    def _info(self, function: Function[Any, Any]) -> catalogue.FunctionInfo:
        return catalogue.FunctionInfo(
            id=function.id,
            doc=function.doc,
            streams=function.streams,
            timeout=function.timeout,
            input_schema=function.input_schema,
            output_schema=function.output_schema,
            bindings=[binding.info() for binding in self._of[function.id]],
        )

    def _micro_info(self) -> micro.Service:
        names = self.client.bus.names
        endpoints = [
            micro.Endpoint(
                name=one.function.id.replace(".", "-"),
                subject=names.fn(one.function.id),
                stats=one.stats,
                description=one.function.doc.partition("\n")[0],
            )
            for one in self._endpoints.values()
        ]
        return micro.Service(names.namespace, self.id, version("trine"), endpoints)

    def _directed(self, message: Msg) -> None:
        function = message.subject.split(".fn.", 1)[1]
        if (endpoint := self._endpoints.get(function)) is not None:
            endpoint.receive(message)

    def _cancel(self, message: Msg) -> None:
        self._host.inflight.cancel(message.subject.rsplit(".", 1)[1])

    def _ended(self) -> None:
        if self.stopping.is_set():
            self._idle.set()
