"""Triggers: what makes a function run. A kind is a class found through ``trine.triggers``."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal

import anyio
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from trine.catalogue import BindingInfo, Directory
from trine.client import Client
from trine.consume import Consumer, Delivery
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

    def check(self, function: Function[Any, Any]) -> None:
        """Raise `UsageError` when this trigger cannot be bound to *function*."""

    @classmethod
    def kind(cls) -> str:
        """The name under which the kind is known: that of its entry point, or of the class."""
        for name, entry in _entries().items():
            if entry.value == f"{cls.__module__}:{cls.__qualname__}":
                return name
        return cls.__name__.lower()


@dataclass(frozen=True, slots=True)
class Binding:
    """A trigger and the function that it runs."""

    trigger: Trigger
    function: Function[Any, Any]

    @property
    def id(self) -> str:
        """Stable over restarts and replicas: it names the durable consumer."""
        config = self.trigger.model_dump_json()
        digest = hashlib.sha256(config.encode()).hexdigest()[:8]
        return f"{self.function.id.replace('.', '-')}--{self.trigger.kind()}-{digest}"

    def info(self) -> BindingInfo:
        return BindingInfo(
            id=self.id,
            kind=self.trigger.kind(),
            function=self.function.id,
            config=self.trigger.model_dump(mode="json"),
        )


Run = Callable[[Any, str, int, dict[str, Any]], Awaitable[Any]]


@dataclass(slots=True)
class TriggerContext:
    """What a running trigger may use."""

    binding: Binding
    client: Client
    stopping: anyio.Event
    siblings: frozenset[str]  # ids of all bindings of the function that are served here
    run_function: Run  # `trine.endpoint.Endpoint.run`
    ready: anyio.Event = field(default_factory=anyio.Event)  # set when nothing is missed any more

    async def fire(self, payload: Any = None, **facts: Any) -> Any:
        """Run the function with *payload* and return its output; None, and a log line, if it fails.

        For triggers that cannot deliver again. *facts* appear as ``ctx.invocation.facts``.
        """
        try:
            return await self.deliver(payload, 1, **facts)
        except Exception as error:  # noqa: BLE001 - one failing run must not end the trigger
            log.warning(  # the run itself was logged as an error
                "triggered_function_failed",
                function=self.binding.function.id,
                trigger=self.binding.trigger.kind(),
                error=f"{type(error).__name__}: {error}",
            )
            return None

    async def deliver(self, payload: Any, attempt: int, **facts: Any) -> Any:
        """Run the function and raise what it raises, for triggers that deliver again."""
        kind = self.binding.trigger.kind()
        return await self.run_function(payload, kind, attempt, facts)

    async def consume(
        self,
        stream: str,
        filters: list[str],
        handle: Callable[[Delivery], Awaitable[None]],
        *,
        deliver: Literal["all", "new", "last_per_subject"] = "new",
        concurrency: int = 16,
        ack_wait: float = 30.0,
    ) -> None:
        """Give each message of *stream* to *handle* at least once, shared by all replicas.

        A failed one comes again by the function's retry policy and ends in the dead letters.
        """
        consumer = Consumer(
            self.client.bus,
            stream,
            self.binding.id,
            filters,
            handle,
            concurrency=concurrency,
            ack_wait=ack_wait,
            deliver=deliver,
            retry=self.binding.function.retry or Retry(),
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(consumer.run, self.stopping)
            self.ready.set()


@dataclass(slots=True)
class GatewayContext:
    """What a gateway may use: the live catalogue, and where to listen."""

    client: Client
    directory: Directory
    host: str
    port: int
    ready: Callable[[str], None]  # to be called with the URL once it listens


def _entries() -> dict[str, EntryPoint]:
    if not _cache:
        _cache.update({entry.name: entry for entry in entry_points(group=GROUP)})
    return _cache


_cache: dict[str, EntryPoint] = {}  # installed distributions do not change under a process


def load(kind: str) -> type[Trigger]:
    """Return the class of *kind*; `NotFoundError` lists the kinds that are installed."""
    entry = _entries().get(kind)
    if entry is None:
        raise NotFoundError(f"no trigger kind {kind!r}; installed: {', '.join(sorted(_entries()))}")
    loaded = entry.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Trigger)):
        raise UsageError(f"trigger kind {kind!r}: {entry.value} is not a subclass of Trigger")
    return loaded


def kinds() -> list[str]:
    """Return the names of the installed trigger kinds."""
    return sorted(_entries())


def parse(info: BindingInfo) -> Trigger:
    """Return the trigger that a catalogue entry describes; `TrineError` when it does not fit."""
    try:
        return load(info.kind).model_validate(info.config)
    except ValidationError as error:
        raise invalid(f"trigger {info.id}", error) from error
