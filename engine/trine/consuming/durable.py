"""A durable consumer as the server keeps it: how it is made, and how it is asked for messages."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from trine import wire
from trine.bus import Bus
from trine.errors import InternalError, TrineError

FORGET_SECONDS = 14 * 24 * 3600.0
OVERLAPS = 10100  # the server's code: another consumer of a work queue takes the same messages
_NS = 1_000_000_000

# What a new consumer is given first: all that is stored, what is stored from now on, the latest of
# each subject, what is stored from a sequence on, or from a time on.
Deliver = Literal["all", "new", "last_per_subject"] | int | datetime


@dataclass(frozen=True, slots=True)
class Durable:
    """A consumer called *name* on *stream*, shared by every process that asks it."""

    bus: Bus
    stream: str
    name: str
    filters: tuple[str, ...]
    ack_wait: float = 30.0
    deliver: Deliver = "all"
    max_ack_pending: int = 10_000
    inactive_seconds: float | None = FORGET_SECONDS

    async def ensure(self) -> bool:
        """Create it, or change it to what is asked for now, but for where it starts.

        Returns whether it is new.
        """
        config = self._config()
        try:
            return await self._create({**config, **_start(self.deliver)})
        except InternalError:
            found = await self._start_of_existing()
            if found is None:
                raise
            return await self._create({**config, **found})

    def pull(self, reply: str, batch: int, *, seconds: float = 0, heartbeat: float = 0) -> None:
        """Ask for *batch* messages: those that come within *seconds*, or (0) those that wait."""
        body: dict[str, Any] = {"batch": batch}
        if seconds:
            body["expires"] = int(seconds * _NS)
        else:
            body["no_wait"] = True
        if heartbeat:
            body["idle_heartbeat"] = int(heartbeat * _NS)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.name}"
        self.bus.connection.send(subject, wire.dumps(body), reply)

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "durable_name": self.name,
            "name": self.name,
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait * _NS),
            "max_deliver": -1,  # the retry policy counts, so that nothing stays stuck in a queue
            "max_ack_pending": self.max_ack_pending,
            "replay_policy": "instant",
        }
        if self.inactive_seconds is not None:
            config["inactive_threshold"] = int(self.inactive_seconds * _NS)
        if len(self.filters) == 1:
            config["filter_subject"] = self.filters[0]
        else:
            config["filter_subjects"] = list(self.filters)
        return config

    async def _create(self, config: dict[str, Any]) -> bool:
        body = {"stream_name": self.stream, "config": config}
        made = await self.bus.api(f"CONSUMER.CREATE.{self.stream}.{self.name}", body)
        age = _moment(made["ts"]) - _moment(made["created"])
        return age.total_seconds() < 1

    async def _start_of_existing(self) -> dict[str, Any] | None:
        """Return where the consumer started that is there: the server never changes it."""
        try:
            found = await self.bus.api(f"CONSUMER.INFO.{self.stream}.{self.name}")
        except TrineError:
            return None
        start = ("deliver_policy", "opt_start_seq", "opt_start_time")
        return {name: found["config"][name] for name in start if name in found["config"]}


def _start(deliver: Deliver) -> dict[str, Any]:
    if isinstance(deliver, datetime):
        at = deliver.astimezone(UTC).isoformat()
        return {"deliver_policy": "by_start_time", "opt_start_time": at}
    if isinstance(deliver, int):
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, deliver)}
    return {"deliver_policy": deliver}


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
