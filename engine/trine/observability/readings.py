"""One reading of a whole system: what its workers have done, and what waits at the server.

The micro protocol's STATS of every worker and foreign service, the server's own numbers of streams
and durable consumers, and who is alive. Nothing is counted for it that was not counted anyway.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from trine import catalogue, wire
from trine.bus import Bus
from trine.catalogue import WorkerInfo
from trine.errors import TrineError
from trine.observability.stats import BOUNDS
from trine.transport.connection import Msg

_FOREIGN_SECONDS = 0.25  # nobody knows how many foreign services there are
_WORKER_SECONDS = 1.0  # for the workers that are known to be there
_NAME_LIMIT = 128


@dataclass(frozen=True, slots=True)
class FunctionReading:
    """What one worker has done for one function since it started."""

    function: str
    worker: str
    runs: int
    errors: int
    running: int
    seconds: float  # spent in runs, all together
    buckets: (
        tuple[int, ...] | None
    )  # as in `trine.observability.stats`; None: that service counts none
    codes: Mapping[str, int]  # of errors


@dataclass(frozen=True, slots=True)
class ConsumerReading:
    """What waits for one durable consumer."""

    stream: str
    name: str
    pending: int  # wait at the server
    ack_pending: int  # are in hands
    redelivered: int  # of those, not for the first time


@dataclass(frozen=True, slots=True)
class StreamReading:
    """What a stream holds."""

    name: str
    messages: int
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """What a system did and had at one moment."""

    at: float  # by `time.monotonic`
    workers: list[WorkerInfo]
    functions: list[FunctionReading]
    consumers: list[ConsumerReading]
    streams: list[StreamReading]
    dead_letters: int

    def queues(self, jobs: str) -> dict[str, tuple[int, int]]:
        """Return (waiting, in hands) of each queue; *jobs* is the stream of the jobs."""
        found: dict[str, tuple[int, int]] = {}
        for one in self.consumers:
            if one.stream == jobs:
                queue = one.name.partition("--")[0]
                waiting, running = found.get(queue, (0, 0))
                found[queue] = (waiting + one.pending, running + one.ack_pending)
        return dict(sorted(found.items()))


async def read(bus: Bus) -> Reading:
    """Return a reading; takes a quarter of a second, one second when a worker does not answer.

    `UnavailableError` when the server is away. A worker without an answer is not in `functions`.
    """
    answers: dict[str, dict[str, Any]] = {}
    arrived = anyio.Event()

    def receive(message: Msg) -> None:
        if (answer := _answer(message)) is not None:
            answers[answer["id"]] = answer
            arrived.set()

    names = bus.names
    inbox = await bus.connection.inbox(receive)
    sent_at = anyio.current_time()
    try:
        bus.connection.send("$SRV.STATS", b"", inbox.subject)
        workers = await catalogue.workers(bus)
        consumers = [
            one
            for stream in (names.jobs, names.events, names.record, names.leases)
            for one in await _consumers(bus, stream)
        ]
        streams = [one for name in _kept(bus) if (one := await _stream(bus, name)) is not None]
        known = {info.id for info in workers if info.document}  # those that serve functions
        with anyio.move_on_at(sent_at + _WORKER_SECONDS):
            while not known <= answers.keys():
                arrived = anyio.Event()
                await arrived.wait()
        await anyio.sleep_until(sent_at + _FOREIGN_SECONDS)
    finally:
        inbox.close()
    functions = [one for answer in answers.values() for one in _functions(bus, answer)]
    return Reading(
        at=time.monotonic(),
        workers=workers,
        functions=sorted(functions, key=lambda one: (one.function, one.worker)),
        consumers=consumers,
        streams=streams,
        dead_letters=next((one.messages for one in streams if one.name == names.dead), 0),
    )


# --- the server's own numbers -------------------------------------------------------------------


def _kept(bus: Bus) -> list[str]:
    names = bus.names
    objects = f"OBJ_{names.objects}"
    return [
        names.record, names.leases, names.jobs, names.events, names.results, names.dead,
        names.traces, objects,
    ]  # fmt: skip


async def _stream(bus: Bus, name: str) -> StreamReading | None:
    try:
        state = (await bus.api(f"STREAM.INFO.{name}"))["state"]
    except TrineError as error:
        if "err_code" in error.details:
            return None  # a stream that this server was not given
        raise
    return StreamReading(name, state["messages"], state["bytes"])


async def _consumers(bus: Bus, stream: str) -> list[ConsumerReading]:
    found: list[ConsumerReading] = []
    seen = 0
    while True:
        page = await bus.api(f"CONSUMER.LIST.{stream}", {"offset": seen})
        infos = page.get("consumers") or []
        seen += len(infos)
        found += [
            ConsumerReading(
                stream,
                info["name"],
                info["num_pending"],
                info["num_ack_pending"],
                info["num_redelivered"],
            )
            for info in infos
            if info["config"].get("durable_name")  # the others are somebody's eyes
        ]
        if not infos or seen >= page.get("total", 0):
            return found


# --- answers of services ------------------------------------------------------------------------


def _answer(message: Msg) -> dict[str, Any] | None:
    try:
        said = json.loads(message.data)
    except (ValueError, RecursionError):
        return None
    known = isinstance(said, dict) and isinstance(said.get("id"), str)
    return said if known and isinstance(said.get("endpoints"), list) else None


def _functions(bus: Bus, answer: dict[str, Any]) -> list[FunctionReading]:
    """Return what a service says of the functions of this namespace; nonsense is left out."""
    prefix = bus.names.fn("")
    found = []
    for one in answer["endpoints"]:
        subject = one.get("subject") if isinstance(one, dict) else None
        if not isinstance(subject, str) or not subject.startswith(prefix):
            continue
        try:
            function = wire.function_id(subject.removeprefix(prefix))
        except TrineError:
            continue
        data = one["data"] if isinstance(one.get("data"), dict) else {}
        runs = _count(one.get("num_requests"))
        codes = data["codes"] if isinstance(data.get("codes"), dict) else {}
        found.append(
            FunctionReading(
                function,
                answer["id"][:_NAME_LIMIT],
                runs,
                _count(one.get("num_errors")),
                _count(data.get("running")),
                _count(one.get("processing_time")) / 1e9,
                _buckets(data.get("buckets"), runs, ours="running" in data),
                {str(code)[:_NAME_LIMIT]: _count(count) for code, count in codes.items()},
            )
        )
    return found


def _buckets(said: Any, runs: int, *, ours: bool) -> tuple[int, ...] | None:
    if said is None and ours and runs == 0:
        return (0,) * (len(BOUNDS) + 1)
    if not isinstance(said, list) or len(said) != len(BOUNDS) + 1:
        return None
    counts = tuple(_count(one) for one in said)
    return counts if sum(counts) == runs else None


def _count(said: Any) -> int:
    return said if isinstance(said, int) and said >= 0 else 0
