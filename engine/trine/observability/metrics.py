"""Metrics for Prometheus: one reading of the system in the text exposition format 0.0.4."""

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import anyio

from trine.client import Client
from trine.observability import readings
from trine.observability.readings import FunctionReading, Reading
from trine.observability.stats import BOUNDS

_SHARED_SECONDS = 1.0

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]  # what follows the family's name, labels, value


class _Shared:
    """The latest text of one client, and the lock behind which it is made."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.made_at = float("-inf")
        self.text = ""


_shared: WeakKeyDictionary[Client, _Shared] = WeakKeyDictionary()


async def render(client: Client) -> str:
    """Return the metrics of the system that *client* is connected to.

    However many ask, the system is read once a second at most: the others get the same text.
    `UnavailableError` when the server is away.
    """
    shared = _shared.setdefault(client, _Shared())
    async with shared.lock:
        if anyio.current_time() - shared.made_at > _SHARED_SECONDS:
            shared.text = exposition(await readings.read(client.bus), client.bus.names.jobs)
            shared.made_at = anyio.current_time()
        return shared.text


def exposition(reading: Reading, jobs: str) -> str:
    """Return *reading* as Prometheus reads it; *jobs* is the stream of the jobs."""
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        lines.extend(_line(name + suffix, labels, value) for suffix, labels, value in samples)

    functions = [(_labels(one), one) for one in reading.functions]
    family(
        "trine_function_runs_total",
        "counter",
        "Runs that have ended, however they ended.",
        (("", labels, one.runs) for labels, one in functions),
    )
    family(
        "trine_function_errors_total",
        "counter",
        "Runs that failed and calls that were refused, by the code of the error.",
        (
            ("", {**labels, "code": code}, count)
            for labels, one in functions
            for code, count in _codes(one).items()
        ),
    )
    family(
        "trine_function_running",
        "gauge",
        "Runs that go on now.",
        (("", labels, one.running) for labels, one in functions),
    )
    family(
        "trine_function_duration_seconds",
        "histogram",
        "How long runs took. Services that count no buckets have the last one only.",
        (sample for labels, one in functions for sample in _histogram(labels, one)),
    )
    queues = reading.queues(jobs)
    family(
        "trine_queue_waiting",
        "gauge",
        "Jobs that wait in a queue.",
        (("", {"queue": name}, waiting) for name, (waiting, _) in queues.items()),
    )
    family(
        "trine_queue_running",
        "gauge",
        "Jobs of a queue that are in the hands of workers.",
        (("", {"queue": name}, running) for name, (_, running) in queues.items()),
    )
    consumers = [({"stream": c.stream, "consumer": c.name}, c) for c in reading.consumers]
    family(
        "trine_consumer_pending",
        "gauge",
        "Messages that wait for a durable consumer: of a trigger, or of a queue.",
        (("", labels, one.pending) for labels, one in consumers),
    )
    family(
        "trine_consumer_ack_pending",
        "gauge",
        "Messages of a durable consumer that are in hands.",
        (("", labels, one.ack_pending) for labels, one in consumers),
    )
    family(
        "trine_consumer_redelivered",
        "gauge",
        "Messages in hands that were delivered before.",
        (("", labels, one.redelivered) for labels, one in consumers),
    )
    family(
        "trine_stream_messages",
        "gauge",
        "Messages in a stream.",
        (("", {"stream": one.name}, one.messages) for one in reading.streams),
    )
    family(
        "trine_stream_bytes",
        "gauge",
        "Bytes in a stream.",
        (("", {"stream": one.name}, one.size) for one in reading.streams),
    )
    family(
        "trine_dead_letters",
        "gauge",
        "Messages that could not be handled, and wait for somebody to look.",
        [("", {}, reading.dead_letters)],
    )
    family(
        "trine_workers",
        "gauge",
        "Processes that are alive: those that serve functions, and those that train.",
        [("", {}, len(reading.workers))],
    )
    family(
        "trine_worker_start_time_seconds",
        "gauge",
        "When a process started, in unix seconds.",
        (
            ("", {"worker": one.id, "host": one.host, "version": one.version}, one.started_at)
            for one in reading.workers
        ),
    )
    return "\n".join(lines) + "\n"


def _labels(one: FunctionReading) -> dict[str, str]:
    return {"function": one.function, "worker": one.worker}


def _codes(one: FunctionReading) -> Mapping[str, int]:
    return one.codes or ({"unknown": one.errors} if one.errors else {})


def _histogram(labels: Labels, one: FunctionReading) -> Iterable[Sample]:
    if not one.runs:
        return  # a thousand functions that rest are not twenty thousand lines
    total = 0
    for bound, count in zip(BOUNDS, one.buckets or (), strict=False):  # the last has no bound
        total += count
        yield "_bucket", {**labels, "le": f"{bound:g}"}, total
    yield "_bucket", {**labels, "le": "+Inf"}, one.runs
    yield "_sum", labels, one.seconds
    yield "_count", labels, one.runs


def _line(name: str, labels: Labels, value: float) -> str:
    if not labels:
        return f"{name} {value}"
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
