"""Running the bindings that are data, in every engine: each as the placement of its kind says.

The functions are called over the wire. Removing a binding ends it everywhere, and what it had at
the server, its durable consumers and its schedules, is removed by whichever engine is there.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus
from nats import errors as nats_errors

from trine import payload, trigger, wire
from trine.catalogue import BindingInfo
from trine.catalogue.directory import Directory, bindings
from trine.client import Client
from trine.errors import TrineError
from trine.retry import Retry
from trine.serving.supervise import supervise
from trine.trigger import Binding, TriggerContext

log = structlog.get_logger("trine")

PREFIX = "data-"  # of the ids of bindings that are data
RUN_SECONDS = 60.0  # for a run of a function that does not say how long it may take
_AGAIN_SECONDS = 0.5  # until a function is called again that is listed and does not listen


@dataclass(frozen=True, slots=True)
class RemoteFunction:
    """A function that is served elsewhere, as a trigger sees it."""

    client: Client
    id: str
    directory: Directory | None = None
    retry: Retry | None = None

    def encode(self, value: Any) -> bytes:
        """Serialise its output, which came as JSON."""
        return wire.dumps(value)

    async def run(
        self,
        sent: Any,
        trigger: str,  # noqa: ARG002 - the signature of a local run
        attempt: int,
        facts: dict[str, Any],  # noqa: ARG002
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Call it and return its output, or raise what it raised.

        While nobody serves it this waits: an attempt that nobody heard is none.
        """
        head = {wire.ATTEMPT: str(attempt)}
        if headers and wire.TRACEPARENT in headers:
            head[wire.TRACEPARENT] = headers[wire.TRACEPARENT]
        content = payload.encode(sent)
        while True:
            seconds = await self._served()
            try:
                reply = await self.client.call_bytes(
                    self.id, content, timeout=seconds, headers=head
                )
                break
            except TrineError as error:
                # Raised here, not by the function: the server knows nobody who listens.
                if not isinstance(error.__context__, nats_errors.NoRespondersError):
                    raise
            await anyio.sleep(_AGAIN_SECONDS)
        return wire.loads(reply) if reply else None

    async def _served(self) -> float:
        """Wait until the function is in the catalogue; return how long a run of it may take."""
        if self.directory is None:
            return RUN_SECONDS
        while (known := self.directory.functions.get(self.id)) is None:
            await self.directory.changed()
        return known.timeout or RUN_SECONDS


@dataclass(slots=True)
class BindingHost:
    """Runs every binding of the scope, in one engine of possibly several."""

    client: Client
    worker: str
    directory: Directory  # which runs beside it
    _running: dict[str, tuple[BindingInfo, anyio.CancelScope]] = field(default_factory=dict)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the scope until cancelled; ready when what is in it is being started."""
        async with anyio.create_task_group() as tasks:
            self._follow(tasks)
            tasks.start_soon(self._clean_gone)
            task_status.started()
            while True:
                await self.directory.changed()
                self._follow(tasks)

    def _follow(self, tasks: TaskGroup) -> None:
        """Start what is new, and end what is gone or has become something else."""
        wanted = self.directory.data
        for id, (info, scope) in list(self._running.items()):
            if wanted.get(id) != info:
                del self._running[id]
                scope.cancel()
                if id not in wanted:
                    tasks.start_soon(self._clean, id, info.function)
        for id, info in wanted.items():
            if id not in self._running:
                self._start(tasks, info)

    def _start(self, tasks: TaskGroup, info: BindingInfo) -> None:
        scope = anyio.CancelScope()
        self._running[info.id] = (info, scope)  # refused or not: it is said once
        try:
            value = trigger.load(info.kind).model_validate(info.config)
        except Exception as error:  # noqa: BLE001 - a kind that is not installed, or settings of another version
            log.warning("binding_refused", binding=info.id, error=f"{error!r:.500}")
            return
        if value.placement == "gateway":
            return  # the gateway reads the catalogue
        remote = RemoteFunction(self.client, info.function, self.directory)
        context = TriggerContext(
            Binding(value, remote, info.id),
            self.client,
            anyio.Event(),
            frozenset({info.id}),
            remote.run,
        )

        async def run() -> None:
            with scope:
                await supervise(context, self.worker)

        tasks.start_soon(run)

    # --- cleaning ------------------------------------------------------------------------------

    async def _clean_gone(self) -> None:
        """Remove what is left of bindings that were removed while their engine died."""
        names = self.client.bus.names
        try:
            pattern = names.state(bindings.name, "*")
            for stored in await self.client.bus.latest(names.record, [pattern]):
                id = names.key_of(stored.subject).removeprefix(f"{bindings.name}.")
                if stored.gone and id.startswith(PREFIX):
                    function = id.removeprefix(PREFIX).partition("--")[0]
                    await self._clean(id, function)
        except TrineError as error:
            log.warning("bindings_not_cleaned", error=error.message)

    async def _clean(self, id: str, function: str) -> None:
        """Delete the durable consumers of a binding that is gone and what its kind left."""
        bus = self.client.bus
        try:
            for stream in (bus.names.events, bus.names.record, bus.names.leases):
                for name in await bus.consumers(stream):
                    ours = name == id or name.startswith(f"{id}--")
                    if ours and id not in self._running:
                        await self._delete_consumer(stream, name)
            schedules = await bus.subjects(bus.names.record, bus.names.schedule(">"))
            there = {subject.rsplit(".", 1)[1] for subject in schedules}
            if id in there and id not in self._running:
                await self._retire(function, there - {id})
        except TrineError as error:
            log.warning("binding_not_cleaned", binding=id, error=error.message)

    async def _delete_consumer(self, stream: str, name: str) -> None:
        try:
            await self.client.bus.api(f"CONSUMER.DELETE.{stream}.{name}")
        except TrineError as error:  # another engine was faster
            log.debug("consumer_not_deleted", consumer=name, error=error.message)

    async def _retire(self, function: str, kept: Collection[str]) -> None:
        for cls in trigger.loaded():
            await cls.retire(self.client, {function: kept})
