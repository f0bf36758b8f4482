"""Queues as a whole: what is in them, and holding them up, emptying them, waiting for their end.

``waiting`` includes what is on its way; ``running`` includes what waits for its next attempt.
"""

import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio

from trine import payload, wire
from trine.bus import Bus, Stored
from trine.errors import CancelledByCallerError, DeadlineError, NotFoundError
from trine.jobs import results, unique
from trine.jobs.consumers import FAR, consumer_infos, filters, pause_consumer
from trine.jobs.handle import Status, ended_as
from trine.jobs.message import Ref

if TYPE_CHECKING:
    from trine.function import Function
    from trine.sending import Sends

_PAGE = 500
_AT_ONCE = 64
_LOOK_SECONDS = 0.1
_RESUME_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """How full a queue is."""

    queue: str
    waiting: int
    running: int
    delayed: int
    dead: int
    paused_until: datetime | None


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job in a list."""

    queue: str
    id: str
    status: Status
    function: str  # "" for what was enqueued by the name of the queue
    at: datetime  # when it was stored; due, where it is scheduled; ended, where it has ended

    @property
    def ref(self) -> str:
        return f"{self.queue}/{self.id}"


def named(queue: "str | Function[Any, Any]") -> str:
    """Return the name of a queue: of the one with that name, or of that of a function."""
    if not isinstance(queue, str):
        return wire.function_queue(queue.id)
    if "." in queue or "::" in queue:
        return wire.function_queue(wire.function_id(queue))
    return wire.name(queue, "queue")


async def ls(client: "Sends") -> list[QueueInfo]:
    """Return every queue that has a worker, has had one, or holds anything."""
    bus = client.bus
    names, space = bus.names, f"{bus.names.namespace}."
    running: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    paused: dict[str, datetime] = {}
    known: set[str] = set()
    for info in await consumer_infos(bus):
        queue = filters(info)[0].removeprefix(f"{space}job.").split(".")[0]
        known.add(queue)
        waiting[queue] += info["num_pending"]
        running[queue] += info["num_ack_pending"]
        until = info["config"].get("pause_until")
        if info.get("paused") and until:
            paused[queue] = datetime.fromisoformat(until)
    state = (await bus.api(f"STREAM.INFO.{names.jobs}"))["state"]
    if state["messages"] > sum(waiting.values()) + sum(running.values()):
        # Nobody takes some of them: they are counted one by one.
        stored = Counter(Ref.of(one).queue for one in await bus.subjects(names.jobs, ">"))
        for queue, count in stored.items():
            waiting[queue] = max(waiting[queue], count - running[queue])
    pattern = names.delayed("*", "*", "*", "*")
    delayed = Counter(Ref.of(one).queue for one in await bus.subjects(names.record, pattern))
    dead: Counter[str] = Counter()
    for subject in await bus.subjects(names.dead, names.dead_letter("*", "*")):
        source = subject.split(".")[-2]
        if source.startswith("queue="):
            dead[source.removeprefix("queue=")] += 1
    for one in await bus.subjects(names.record, names.paused("*")):
        paused.setdefault(one.rsplit(".", 1)[1], datetime.fromisoformat(FAR))
    return [
        QueueInfo(one, waiting[one], running[one], delayed[one], dead[one], paused.get(one))
        for one in sorted(known | {*waiting, *delayed, *dead, *paused})
    ]


async def info(client: "Sends", queue: "str | Function[Any, Any]") -> QueueInfo:
    """Return how full one queue is; `NotFoundError` when there is no trace of it."""
    name = named(queue)
    for one in await ls(client):
        if one.queue == name:
            return one
    raise NotFoundError(f"no queue {name!r}", queue=name)


async def jobs(
    client: "Sends", queue: "str | Function[Any, Any]", limit: int = 1000
) -> list[JobInfo]:
    """Return the jobs of a queue, *limit* of each kind at most: to come, there, ended and kept."""
    bus, name = client.bus, named(queue)
    names = bus.names
    found: list[JobInfo] = []
    scheduled = await _some(bus, names.record, names.delayed(name, "*", "*", "*"), limit)
    for one in scheduled:
        due = datetime.fromisoformat(one.headers[wire.SCHEDULE].removeprefix("@at "))
        found.append(_listed(Ref.of(one.subject), one, "scheduled", due))
    taken = await _taken(bus, name)
    stored = await _some(bus, names.jobs, names.job(name, "*", "*", "*"), limit)
    kept = await _some(bus, names.results, names.result(name, "*"), limit)
    ended = {one.subject.rsplit(".", 1)[1]: one for one in kept}
    for one in stored:
        ref = Ref.of(one.subject)
        if ref.id not in ended:  # else only its acknowledgement is missing
            status: Status = "running" if one.sequence <= _of(taken, one.subject) else "queued"
            found.append(_listed(ref, one, status))
    found += [_listed(Ref(name, id), one, ended_as(one)) for id, one in ended.items()]
    return found


async def _some(bus: Bus, stream: str, pattern: str, limit: int) -> list[Stored]:
    subjects = (await bus.subjects(stream, pattern))[:limit]
    found: list[Stored] = []
    for start in range(0, len(subjects), _PAGE):
        found += await bus.latest(stream, subjects[start : start + _PAGE])
    return found


def _listed(ref: Ref, stored: Stored, status: Status, at: datetime | None = None) -> JobInfo:
    when = at or datetime.fromtimestamp(unique.stored_at(stored), UTC)
    return JobInfo(ref.queue, ref.id, status, stored.headers.get(wire.FUNCTION, ""), when)


async def _taken(bus: Bus, queue: str) -> list[tuple[str, int]]:
    """Return up to which sequence each consumer of *queue* has given its jobs to workers."""
    prefix = bus.names.job(queue, "", "", "")[:-2]
    return [
        (one, int(info["delivered"]["stream_seq"]))
        for info in await consumer_infos(bus)
        for one in filters(info)
        if one.startswith(prefix)
    ]


def _of(taken: list[tuple[str, int]], subject: str) -> int:
    parts = subject.split(".")
    for pattern, sequence in taken:
        wanted = pattern.split(".")
        if all(mine in ("*", theirs) for mine, theirs in zip(wanted, parts, strict=True)):
            return sequence
    return 0


# --- holding up --------------------------------------------------------------------------------


async def pause(
    client: "Sends", queue: "str | Function[Any, Any]", until: datetime | None = None
) -> None:
    """Give out no job of the queue until `resume`, or until *until*; what runs goes on.

    The server keeps it, over restarts of workers and of itself.
    """
    bus, name = client.bus, named(queue)
    moment = FAR if until is None else until.astimezone(UTC).isoformat()
    headers = {}
    if until is not None:
        headers[wire.TTL] = f"{max(1, round(until.timestamp() - time.time()))}s"
    await bus.store(bus.names.paused(name), moment.encode(), headers)
    await _each_consumer(bus, name, moment)


async def resume(client: "Sends", queue: "str | Function[Any, Any]") -> None:
    """Let a paused queue go on."""
    bus, name = client.bus, named(queue)
    await bus.api(f"STREAM.PURGE.{bus.names.record}", {"filter": bus.names.paused(name)})
    # Not "no pause": the server then forgets to serve those who ask already, for some seconds.
    soon = datetime.now(UTC) + timedelta(seconds=_RESUME_SECONDS)
    await _each_consumer(bus, name, soon.isoformat())


async def _each_consumer(bus: Bus, queue: str, until: str) -> None:
    prefix = bus.names.job(queue, "", "", "")[:-2]
    for info in await consumer_infos(bus):
        if filters(info)[0].startswith(prefix):
            await pause_consumer(bus, info["name"], until)


async def drain(client: "Sends", queue: "str | Function[Any, Any]", timeout: float = 60.0) -> None:
    """Wait until nothing of the queue waits or runs; delayed jobs do not count.

    `DeadlineError` after *timeout* seconds says how much is left.
    """
    bus, name = client.bus, named(queue)
    pattern = bus.names.job(name, "*", "*", "*")
    end = time.monotonic() + timeout
    while left := await bus.subjects(bus.names.jobs, pattern):
        if time.monotonic() > end:
            text = f"{len(left)} jobs of {name} are left after {timeout:g} s"
            raise DeadlineError(text, queue=name, left=len(left))
        await anyio.sleep(_LOOK_SECONDS)


async def purge(client: "Sends", queue: "str | Function[Any, Any]") -> int:
    """Cancel every job of the queue that waits or is delayed; what runs goes on. Return how many.

    Who waits for one gets a `CancelledByCallerError`.
    """
    count = 0
    places = anyio.CapacityLimiter(_AT_ONCE)
    bus, name = client.bus, named(queue)

    async def end(one: Stored, stream: str) -> None:
        nonlocal count
        async with places:
            ref = Ref.of(one.subject)
            error = CancelledByCallerError(f"job {ref} was purged with its queue")
            if await results.keep(bus, ref, one.headers, error=error):
                count += 1
            await bus.api(f"STREAM.PURGE.{stream}", {"filter": one.subject})
            await unique.release(bus, ref, one.headers)
            await payload.discard(bus, one.headers)

    names = bus.names
    delayed = names.delayed(name, "*", "*", "*")
    for stream, pattern in ((names.record, delayed), (names.jobs, names.job(name, "*", "*", "*"))):
        subjects = await bus.subjects(stream, pattern)
        taken = await _taken(bus, name) if stream == names.jobs else []
        for start in range(0, len(subjects), _PAGE):
            async with anyio.create_task_group() as tasks:
                for one in await bus.latest(stream, subjects[start : start + _PAGE]):
                    if not taken or one.sequence > _of(taken, one.subject):
                        tasks.start_soon(end, one, stream)
    return count


__all__ = [
    "JobInfo",
    "QueueInfo",
    "drain",
    "info",
    "jobs",
    "ls",
    "named",
    "pause",
    "purge",
    "resume",
]
