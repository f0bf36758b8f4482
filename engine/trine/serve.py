"""Serving: one process answers calls, runs jobs and triggers, and announces itself."""

import os
import secrets
import socket
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from trine import catalogue, jobs, micro, wire
from trine.app import App
from trine.client import Client
from trine.connection import Listener, Msg
from trine.endpoint import Endpoint
from trine.errors import UsageError
from trine.function import Function
from trine.retry import Retry
from trine.supervise import supervise
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

    def __init__(self, client: Client, apps: Sequence[App], *, id: str | None = None) -> None:
        self.client = client
        self.apps = apps
        self.id = id or worker_id()
        self.bindings: list[Binding] = []
        self.stopping = anyio.Event()
        self._endpoints: dict[str, Endpoint] = {}
        for app in apps:
            for function in app.functions.values():
                if function.id in self._endpoints:
                    raise UsageError(f"function {function.id!r} is in two of the served apps")
                self._endpoints[function.id] = Endpoint(client, function, self.id, self._ended)
            self.bindings += app.bindings
        self._listeners: list[Listener] = []
        self._idle = anyio.Event()
        self._started_at = time.time()

    def stop(self) -> None:
        """Take no new work; `run` returns when what runs has ended."""
        self.stopping.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve; ready when every function can be called and takes jobs."""
        try:
            async with anyio.create_task_group() as tasks:
                await self._subscribe()
                await self._start_jobs(tasks)
                await self._start_triggers(tasks)
                presence = await self._announce(tasks)
                log.info("serving", worker=self.id, functions=len(self._endpoints))
                task_status.started()
                await self.stopping.wait()
                presence.cancel()
                for listener in self._listeners:
                    await listener.close()
                while any(endpoint.running for endpoint in self._endpoints.values()):
                    self._idle = anyio.Event()
                    await self._idle.wait()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                for endpoint in self._endpoints.values():
                    await endpoint.close()
        log.info("stopped", worker=self.id)

    async def _subscribe(self) -> None:
        connection, names = self.client.bus.connection, self.client.bus.names
        for endpoint in self._endpoints.values():
            subject = names.fn(endpoint.function.id)
            listener = await connection.listen(
                subject, endpoint.receive, wire.QUEUE_GROUP, confirm=False
            )
            self._listeners.append(listener)
        self._listeners += await micro.respond(connection, self._micro_info)
        self._listeners += [
            await connection.listen(names.on(self.id, ">"), self._directed),
            await connection.listen(names.cancel("*"), self._cancel),
        ]

    async def _start_jobs(self, tasks: TaskGroup) -> None:
        async with anyio.create_task_group() as starting:
            for endpoint in self._endpoints.values():
                function = endpoint.function
                if function.streams:
                    continue
                for consumer in jobs.queue_consumer(
                    self.client.bus,
                    wire.function_queue(function.id),
                    endpoint.job,
                    concurrency=min(function.concurrency, 64),
                    retry=function.retry or Retry(),
                ):
                    starting.start_soon(tasks.start, consumer.run, self.stopping)

    async def _start_triggers(self, tasks: TaskGroup) -> None:
        shared = []
        for binding in self.bindings:
            if binding.trigger.placement == "gateway":
                continue
            run = self._endpoints[binding.function.id].run
            siblings = frozenset(
                one.id for one in self.bindings if one.function is binding.function
            )
            context = TriggerContext(binding, self.client, self.stopping, siblings, run)
            tasks.start_soon(supervise, context, self.id)
            if binding.trigger.placement == "shared":
                shared.append(context)
        with anyio.move_on_after(_TRIGGER_SECONDS):
            for context in shared:
                await context.ready.wait()

    async def _announce(self, tasks: TaskGroup) -> anyio.CancelScope:
        document = catalogue.Document(
            functions=[self._info(one.function) for one in self._endpoints.values()]
        )
        lease = catalogue.presence(
            self.client.bus,
            self.id,
            apps=[app.name for app in self.apps],
            document=await catalogue.publish(self.client.bus, document),
            started_at=self._started_at,
        )
        scope = anyio.CancelScope()

        async def keep(*, task_status: TaskStatus[None]) -> None:
            with scope:
                await lease.keep(task_status=task_status)

        await tasks.start(keep)
        return scope

    def _info(self, function: Function[Any, Any]) -> catalogue.FunctionInfo:
        return catalogue.FunctionInfo(
            id=function.id,
            doc=function.doc,
            streams=function.streams,
            timeout=function.timeout,
            input_schema=function.input_schema,
            output_schema=function.output_schema,
            bindings=[b.info() for b in self.bindings if b.function is function],
        )

    def _micro_info(self) -> micro.Service:
        names = self.client.bus.names
        endpoints = [
            micro.Endpoint(
                name=one.function.id.replace(".", "-"),
                subject=names.fn(one.function.id),
                requests=one.calls,
                errors=one.errors,
                nanoseconds=one.nanoseconds,
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
        invocation = message.subject.rsplit(".", 1)[1]
        for endpoint in self._endpoints.values():
            endpoint.cancel(invocation)

    def _ended(self) -> None:
        if self.stopping.is_set():
            self._idle.set()
