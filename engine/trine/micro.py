"""The NATS micro protocol: a Trine worker shows up in ``nats micro ls`` like any other service."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trine import wire
from trine.connection import Connection, Listener, Msg

_PREFIX = "io.nats.micro.v1"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, as discovery reports it."""

    name: str
    subject: str
    requests: int = 0
    errors: int = 0
    nanoseconds: int = 0
    description: str = ""


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
        "metadata": {},
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
                "num_requests": one.requests,
                "num_errors": one.errors,
                "last_error": "",
                "processing_time": one.nanoseconds,
                "average_processing_time": one.nanoseconds // one.requests if one.requests else 0,
            }
            for one in service.endpoints
        ]
    return answer


async def respond(connection: Connection, service: Callable[[], Service]) -> list[Listener]:
    """Answer ``$SRV.PING``, ``INFO`` and ``STATS``, for all, by name and by id."""
    listeners = []
    now = service()
    for verb in ("PING", "INFO", "STATS"):

        def receive(message: Msg, verb: str = verb) -> None:
            connection.send(message.reply, wire.dumps(_answer(verb, service())))

        for suffix in ("", f".{now.name}", f".{now.name}.{now.id}"):
            subject = f"$SRV.{verb}{suffix}"
            listeners.append(await connection.listen(subject, receive, confirm=False))
    return listeners
