"""Jobs as workers take them: which consumers a queue has, and what surrounds each run."""

from collections.abc import Sequence
from typing import Any

import anyio
import structlog
from anyio.abc import TaskStatus

from trine import wire
from trine.bus import Bus
from trine.consuming.consumer import Consumer
from trine.consuming.delivery import Delivery, Handler
from trine.consuming.durable import OVERLAPS, Durable
from trine.consuming.lanes import Lanes
from trine.errors import InternalError, TrineError, UsageError
from trine.jobs import results, unique
from trine.jobs.handle import Job
from trine.jobs.message import ANY, PARTITIONS, PRIORITIES, Ref
from trine.jobs.results import kept, put_progress, put_result
from trine.retry import Retry
from trine.transport.connection import Msg

log = structlog.get_logger("trine")

FAR = "9999-01-01T00:00:00Z"  # until then a queue is paused when nobody says otherwise


def job_id(delivery: Delivery) -> str:
    """The id of the job that *delivery* is."""
    return Ref.of(delivery.subject).id


def job_facts(delivery: Delivery) -> dict[str, str]:
    """Which job a run is for, as ``ctx.invocation.facts`` tells it."""
    ref = Ref.of(delivery.subject)
    return {"queue": ref.queue, "job": ref.id}


def queue_consumer(
    bus: Bus,
    queue: str,
    handle: Handler,
    *,
    requirements: tuple[str, ...] = (ANY,),
    concurrency: int = 16,
    ack_wait: float = 30.0,
    retry: Retry | None = None,
    priorities: bool = False,
    fifo: bool = False,
    total: int | None = None,
) -> "list[QueueConsumer]":
    """Return what takes the jobs of *queue* for a worker that meets *requirements*.

    One durable consumer for each lane, shared by all workers: the server does the scheduling. The
    worker has *concurrency* places over all of them; a requirement that is named first is served
    first. Without *priorities* and *fifo* a queue has one lane, in the order of arrival.
    """
    check_layout(requirements, priorities=priorities, fifo=fifo, total=total)
    durables = [
        Durable(
            bus,
            bus.names.jobs,
            name,
            filters,
            ack_wait,
            max_ack_pending=1 if fifo else total or 10_000,
            inactive_seconds=None,
        )
        for name, filters in layout(bus, queue, requirements, priorities=priorities, fifo=fifo)
    ]
    policy = retry or Retry()
    return [QueueConsumer(bus, queue, durables, handle, concurrency, policy, fair=fifo)]


def check_layout(
    requirements: Sequence[str], *, priorities: bool, fifo: bool, total: int | None
) -> None:
    """Raise `UsageError` for what no set of consumers can do together."""
    if priorities and fifo:
        raise UsageError("a queue that keeps the order of each key has no priorities")
    if total is not None and (priorities or fifo or len(requirements) > 1):
        raise UsageError(
            "total= is counted by the server for one consumer: a queue with priorities, fifo or"
            " several requirements has several"
        )


def layout(
    bus: Bus, queue: str, requirements: Sequence[str], *, priorities: bool, fifo: bool
) -> list[tuple[str, tuple[str, ...]]]:
    """Return name and filters of the consumers that *queue* has, the first to be served first."""
    names = bus.names
    keyed = [f"p{number}" for number in range(PARTITIONS)]

    def of(requirement: str, suffix: str, lanes: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        filters = tuple(names.job(queue, requirement, lane, "*") for lane in lanes)
        return f"{queue}--{requirement}{suffix}", filters

    if fifo:
        parts = [(f"--{lane}", [lane]) for lane in keyed] + [("--none", list(PRIORITIES))]
        return [of(one, suffix, lanes) for one in requirements for suffix, lanes in parts]
    if priorities:
        return [
            of(one, f"--{priority}", [priority, *(keyed if priority == "normal" else ())])
            for priority in PRIORITIES
            for one in requirements
        ]
    return [of(one, "", ["*"]) for one in requirements]


class QueueConsumer:
    """Takes the jobs of one queue in this process: `run` does, until it is told to stop."""

    def __init__(
        self,
        bus: Bus,
        queue: str,
        durables: list[Durable],
        handle: Handler,
        concurrency: int,
        retry: Retry,
        *,
        fair: bool,
    ) -> None:
        self._bus = bus
        self._queue = queue
        self._durables = durables
        self._handle = handle
        self._running = False
        self._others = False  # somebody else laid the queue out in another way
        source = f"queue={queue}"
        first = durables[0]
        self._consumer: Consumer | Lanes
        if len(durables) == 1:
            self._consumer = Consumer(
                bus,
                first.stream,
                first.name,
                list(first.filters),
                self._run_once,
                concurrency=concurrency,
                ack_wait=first.ack_wait,
                retry=retry,
                on_dead=self._dead,
                max_ack_pending=first.max_ack_pending,
                inactive_seconds=None,
                source=source,
                owns_payload=True,
                prepare=self._prepare,
            )
        else:
            self._consumer = Lanes(
                bus,
                durables,
                self._run_once,
                concurrency=concurrency,
                retry=retry,
                on_dead=self._dead,
                source=source,
                owns_payload=True,
                prepare=self._prepare,
                fair=fair,
            )

    async def run(
        self,
        stopping: anyio.Event,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take jobs until *stopping* is set, then end what runs; cancelled: hand it back."""
        subject = self._bus.names.stop(self._queue, "*")
        listener = await self._bus.connection.listen(subject, self._cancelled, confirm=False)
        try:
            await self._consumer.run(stopping, task_status=task_status)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await listener.close()

    # --- runs ----------------------------------------------------------------------------------

    async def _run_once(self, delivery: Delivery) -> None:
        headers = delivery.headers
        if delivery.attempt > 1 or wire.STREAM_SOURCE in headers:
            # It has ended and only the acknowledgement was lost, or it was cancelled on its way.
            if await results.find(self._bus, Ref.of(delivery.subject)) is None:
                await self._handle(delivery)
        else:
            await self._handle(delivery)
        if wire.UNIQUE in headers:
            await unique.release(self._bus, Ref.of(delivery.subject), headers)

    async def _dead(self, delivery: Delivery, error: Exception) -> None:
        await put_result(self._bus, delivery, error=error)
        await unique.release(self._bus, Ref.of(delivery.subject), delivery.headers)

    def _cancelled(self, message: Msg) -> None:
        id = message.subject.rsplit(".", 1)[1]
        self._consumer.stop(lambda delivery: job_id(delivery) == id)

    # --- consumers -----------------------------------------------------------------------------

    async def _prepare(self, durable: Durable) -> None:
        try:
            new = await durable.ensure()
        except InternalError as error:
            if error.details.get("err_code") != OVERLAPS:
                raise
            if self._running:  # whoever started last is right: we would only take turns
                if not self._others:
                    log.warning("queue_laid_out_otherwise", queue=self._queue)
                self._others = True
                raise
            await self._remove_others(durable)
            new = await durable.ensure()
        self._running |= durable is self._durables[-1] or durable.name == self._durables[-1].name
        if new:
            paused = self._bus.names.paused(self._queue)
            if await self._bus.last(self._bus.names.record, paused) is not None:
                await pause_consumer(self._bus, durable.name, FAR)

    async def _remove_others(self, durable: Durable) -> None:
        """Delete the consumers of an earlier layout: the server lets no two take one message."""
        wanted = {one.name for one in self._durables}
        prefix = durable.filters[0].rsplit(".", 2)[0] + "."
        for name, filters in await consumers(self._bus):
            if name not in wanted and any(one.startswith(prefix) for one in filters):
                log.info("stale_consumer_deleted", queue=self._queue, consumer=name)
                try:
                    await self._bus.api(f"CONSUMER.DELETE.{durable.stream}.{name}")
                except TrineError as error:
                    log.debug("consumer_not_deleted", consumer=name, error=str(error))


async def consumer_infos(bus: Bus) -> list[dict[str, Any]]:
    """Return what the server says of every consumer of jobs."""
    found: list[dict[str, Any]] = []
    while True:
        page = await bus.api(f"CONSUMER.LIST.{bus.names.jobs}", {"offset": len(found)})
        found += page.get("consumers") or []
        if not page.get("consumers") or len(found) >= page.get("total", 0):
            return found


async def consumers(bus: Bus) -> list[tuple[str, list[str]]]:
    """Return the consumers of jobs with what they take."""
    return [(info["name"], filters(info)) for info in await consumer_infos(bus)]


def filters(info: dict[str, Any]) -> list[str]:
    """Return the subjects that a consumer takes."""
    config = info["config"]
    return config.get("filter_subjects") or [config.get("filter_subject", "")]


async def pause_consumer(bus: Bus, name: str, until: str) -> None:
    """Let a consumer of jobs give nothing out until *until*."""
    await bus.api(f"CONSUMER.PAUSE.{bus.names.jobs}.{name}", {"pause_until": until})


__all__ = [
    "ANY",
    "Job",
    "QueueConsumer",
    "check_layout",
    "job_facts",
    "job_id",
    "kept",
    "put_progress",
    "put_result",
    "queue_consumer",
]
