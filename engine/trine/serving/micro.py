"""The NATS micro protocol: a Trine worker shows up in ``nats micro ls`` like any other service."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trine import wire
from trine.errors import TooLargeError
from trine.observability import telemetry
from trine.observability.stats import Stats
from trine.transport.connection import Connection, Listener, Msg

_PREFIX = "io.nats.micro.v1"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, as discovery reports it."""

    name: str
    subject: str
    stats: Stats
    description: str = ""

    @property
    def function(self) -> str:
        """The id of the function behind it."""
        return self.subject.split(".fn.", 1)[1]


@dataclass(frozen=True, slots=True)
class Service:
    """One instance of a service."""

    name: str
    id: str
    version: str
    endpoints: list[Endpoint]


_started = datetime.now(UTC).isoformat()


def _answer(verb: str, service: Service) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "type": f"{_PREFIX}.{verb.lower()}_response",
        "name": service.name,
        "id": service.id,
        "version": service.version,
        "metadata": {"trine": service.version},
    }
    if verb == "INFO":
        answer["description"] = "Trine functions"
        answer["endpoints"] = [
            {
                "name": one.name,
                "subject": one.subject,
                "queue_group": wire.QUEUE_GROUP,
                "metadata": {"description": one.description},
            }
            for one in service.endpoints
        ]
    if verb == "STATS":
        answer["started"] = _started
        answer["endpoints"] = [
            {
                "name": one.name,
                "subject": one.subject,
                "queue_group": wire.QUEUE_GROUP,
                "num_requests": one.stats.runs,
                "num_errors": one.stats.errors,
                "last_error": one.stats.last_error,
                "processing_time": one.stats.nanoseconds,
                "average_processing_time": one.stats.nanoseconds // max(1, one.stats.runs),
                "data": one.stats.data(),
            }
            for one in service.endpoints
        ]
    return answer


def _shortened(answer: dict[str, Any]) -> dict[str, Any]:
    """Return *answer* without what makes it long: descriptions, and functions that never ran."""
    endpoints = [
        {name: one[name] for name in one if name not in ("metadata", "last_error")}
        for one in answer["endpoints"]
        if one.get("num_requests") != 0
    ]
    return {**answer, "endpoints": endpoints}


async def respond(connection: Connection, service: Callable[[], Service]) -> list[Listener]:
    """Answer ``$SRV.PING``, ``INFO`` and ``STATS``, for all, by name and by id."""
    telemetry.measure(service)
    listeners = []
    now = service()
    for verb in ("PING", "INFO", "STATS"):

        def receive(message: Msg, verb: str = verb) -> None:
            if not message.reply:  # to an empty subject: the server hangs up on us
                return
            answer = _answer(verb, service())
            try:
                connection.send(message.reply, wire.dumps(answer))
            except TooLargeError:  # thousands of functions: those that run are what matters
                connection.send(message.reply, wire.dumps(_shortened(answer)))

        for suffix in ("", f".{now.name}", f".{now.name}.{now.id}"):
            subject = f"$SRV.{verb}{suffix}"
            listeners.append(await connection.listen(subject, receive, confirm=False))
    return listeners
