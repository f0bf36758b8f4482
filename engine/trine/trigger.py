"""Triggers: what makes a function run. A kind is a class found through ``trine.triggers``."""

import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal, Protocol

import anyio
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from trine.calls import CALL_SECONDS
from trine.catalogue import BindingInfo
from trine.catalogue.directory import Directory
from trine.client import Client
from trine.consuming.consumer import FORGET_SECONDS, Consumer, Deliver, Delivery
from trine.errors import NotFoundError, UsageError
from trine.function import Function, invalid
from trine.retry import Retry

log = structlog.get_logger("trine")

GROUP = "trine.triggers"
Placement = Literal["shared", "single", "each", "gateway"]


class Trigger(BaseModel):
    """Base of every trigger kind: a frozen model of its settings, and `run`, which fires.

    *placement* says where it runs: ``shared`` in every replica of the function, over one durable
    consumer; ``single`` in one replica at a time; ``each`` in every replica, independently;
    ``gateway`` where the gateway runs, by the class method `gateway` for all bindings at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    placement: ClassVar[Placement] = "each"

    def __init__(self, **data: Any) -> None:
        """Accept settings by name; a kind may add positional ones."""
        super().__init__(**data)

    async def run(self, ctx: "TriggerContext") -> None:
        """Fire until cancelled, or until ``ctx.stopping`` is set."""
        raise NotImplementedError(f"{type(self).__name__}.run")

    @classmethod
    async def gateway(cls, ctx: "GatewayContext") -> None:
        """Serve every binding of this kind that the directory lists, until cancelled."""
        raise NotImplementedError(f"{cls.__name__}.gateway")

    @classmethod
    async def retire(cls, client: Client, kept: Mapping[str, Collection[str]]) -> None:
        """Remove what bindings that no longer exist have left at the server.

        Called when a worker starts: *kept* has, for each function that it serves, the ids of its
        bindings. For kinds that keep something outside of their process, as schedules are.
        """

    def check(self, function: Function[Any, Any]) -> None:
        """Raise `UsageError` when this trigger cannot be bound to *function*."""

    @classmethod
    def kind(cls) -> str:
        """The name under which the kind is known: that of its entry point, or of the class."""
        return _kind(cls)


class Callee(Protocol):
    """What a trigger may know of the function that it runs, which may be served elsewhere."""

    @property
    def id(self) -> str: ...
    @property
    def retry(self) -> Retry | None: ...
    def encode(self, value: Any) -> bytes:
        """Serialise an output of the function."""
        ...


@dataclass(frozen=True, slots=True)
class Binding:
    """A trigger and the function that it runs."""

    trigger: Trigger
    function: Callee
    name: str | None = None  # its id, if it was made as data

    @property
    def id(self) -> str:
        """Stable over restarts and replicas: it names the durable consumer."""
        if self.name is not None:
            return self.name
        config = self.trigger.model_dump_json(exclude_defaults=True)  # a new setting changes no id
        digest = hashlib.sha256(config.encode()).hexdigest()[:8]
        return f"{self.function.id.replace('.', '-')}--{self.trigger.kind()}-{digest}"

    def info(self) -> BindingInfo:
        return BindingInfo(
            id=self.id,
            kind=self.trigger.kind(),
            function=self.function.id,
            config=self.trigger.model_dump(mode="json"),
        )


class Run(Protocol):
    """`Endpoint.run` of `trine.serving`, or the same for a function that is served elsewhere."""

    async def __call__(
        self,
        sent: Any,
        trigger: str,
        attempt: int,
        facts: dict[str, Any],
        headers: Mapping[str, str] | None = None,
    ) -> Any: ...


@dataclass(slots=True)
class TriggerContext:
    """What a running trigger may use."""

    binding: Binding
    client: Client
    stopping: anyio.Event
    siblings: frozenset[str]  # ids of all bindings of the function that are served here
    run_function: Run
    ready: anyio.Event = field(default_factory=anyio.Event)  # set when nothing is missed any more

    async def fire(
        self, payload: Any = None, headers: Mapping[str, str] | None = None, **facts: Any
    ) -> Any:
        """Run the function with *payload* and return its output; None, and a log line, if it fails.

        For triggers that cannot deliver again. *facts* appear as ``ctx.invocation.facts``.
        """
        try:
            return await self.deliver(payload, 1, headers, **facts)
        except Exception as error:  # noqa: BLE001 - one failing run must not end the trigger
            log.warning(  # the run itself was logged as an error
                "triggered_function_failed",
                function=self.binding.function.id,
                trigger=self.binding.trigger.kind(),
                error=f"{type(error).__name__}: {error}",
            )
            return None

    async def deliver(
        self,
        payload: Any,
        attempt: int,
        headers: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> Any:
        """Run the function and raise what it raises, for triggers that deliver again.

        *headers* are those of the message that fired: its trace goes on through them.
        """
        kind = self.binding.trigger.kind()
        return await self.run_function(payload, kind, attempt, facts, headers)

    async def consume(
        self,
        stream: str,
        filters: list[str],
        handle: Callable[[Delivery], Awaitable[None]],
        *,
        deliver: Deliver = "new",
        concurrency: int = 16,
        ack_wait: float = 30.0,
        max_ack_pending: int = 10_000,
        suffix: str = "",
        forget_seconds: float | None = FORGET_SECONDS,
    ) -> None:
        """Give each message of *stream* to *handle* at least once, shared by all replicas.

        A failed one comes again by the function's retry policy and ends in the dead letters.
        *max_ack_pending*: at most so many are in hands at once, over all replicas; 1 keeps their
        order. *suffix* tells several consumers of one binding apart. *forget_seconds*: how long
        the server remembers where the replicas were while none of them runs.
        """
        consumer = Consumer(
            self.client.bus,
            stream,
            self.binding.id + suffix,
            filters,
            handle,
            concurrency=concurrency,
            ack_wait=ack_wait,
            deliver=deliver,
            max_ack_pending=max_ack_pending,
            inactive_seconds=forget_seconds,
            retry=self.binding.function.retry or Retry(),
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(consumer.run, self.stopping)
            self.ready.set()


class CallBytes(Protocol):
    """`trine.serving.worker.Worker.call`: JSON in, JSON out."""

    async def __call__(
        self,
        function: str,
        payload: bytes,
        *,
        timeout: float = CALL_SECONDS,
        headers: Mapping[str, str] | None = None,
    ) -> bytes: ...


@dataclass(slots=True)
class GatewayContext:
    """What a gateway may use: the live catalogue, the functions, and where to listen."""

    client: Client
    directory: Directory
    call: CallBytes  # straight to a function of this process, by NATS to others
    host: str
    port: int
    ready: Callable[[str], None]  # to be called with the URL once it listens


def _entries() -> dict[str, EntryPoint]:
    if not _cache:
        _cache.update({entry.name: entry for entry in entry_points(group=GROUP)})
    return _cache


_cache: dict[str, EntryPoint] = {}  # installed distributions do not change under a process


@cache
def _kind(cls: type[Trigger]) -> str:
    for name, entry in _entries().items():
        if entry.value == f"{cls.__module__}:{cls.__qualname__}":
            return name
    return cls.__name__.lower()


def load(kind: str) -> type[Trigger]:
    """Return the class of *kind*; `NotFoundError` lists the kinds that are installed."""
    entry = _entries().get(kind)
    if entry is None:
        raise NotFoundError(f"no trigger kind {kind!r}; installed: {', '.join(sorted(_entries()))}")
    loaded = entry.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Trigger)):
        raise UsageError(f"trigger kind {kind!r}: {entry.value} is not a subclass of Trigger")
    return loaded


def loaded() -> list[type[Trigger]]:
    """Return the classes of all installed kinds, without those that cannot be loaded."""
    found = []
    for kind in kinds():
        try:
            found.append(load(kind))
        except Exception:  # a broken plugin must not stop a worker
            log.exception("trigger_kind_broken", kind=kind)
    return found


def kinds() -> list[str]:
    """Return the names of the installed trigger kinds."""
    return sorted(_entries())


def parse(info: BindingInfo) -> Trigger:
    """Return the trigger that a catalogue entry describes; `TrineError` when it does not fit."""
    try:
        return load(info.kind).model_validate(info.config)
    except ValidationError as error:
        raise invalid(f"trigger {info.id}", error) from error
    except TypeError as error:  # of __init__: a setting that lacks, or is called as an argument
        raise UsageError(f"trigger {info.id}: {error}") from error
