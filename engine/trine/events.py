"""Events: facts in the past tense, CloudEvents 1.0 in NATS binary mode."""

import zlib
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from trine import wire
from trine.bus import Message
from trine.errors import UsageError
from trine.invocation import caused, current, new_id
from trine.wire import Names


class EventModel(BaseModel):
    """Base of every event.

    ``class RunFinished(EventModel, type="run.finished", key="run_id")``: *type* names the event on
    the wire, *key* names the field by which events are told apart and kept in order.
    """

    model_config = ConfigDict(frozen=True)

    event_type: ClassVar[str] = ""
    event_key: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Accept *type* and *key*, which pydantic hands on once the fields are known."""
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(
        cls, *, type: str | None = None, key: str | None = None, **kwargs: Any
    ) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if type is not None:
            cls.event_type = wire.function_id(type)
        if key is not None:
            if key not in cls.model_fields:
                raise UsageError(f"event {cls.__name__}: key {key!r} is not one of its fields")
            cls.event_key = key

    def key(self) -> str:
        """The key as one token of a subject."""
        return wire.token(str(getattr(self, self.event_key))) if self.event_key else "-"


def message(names: Names, event: EventModel, id: str | None = None) -> Message:
    """Return *event* as the message that carries it; *id* makes a repeated emit one event."""
    if not event.event_type:
        raise UsageError(f"{type(event).__name__} has no type: class …(EventModel, type=…)")
    identity = wire.token(id or new_id())
    key = event.key()
    cause = current.get()
    headers = {
        "ce-specversion": "1.0",
        "ce-id": identity,
        "ce-type": event.event_type,
        "ce-source": f"/{names.namespace}/{cause.function if cause else 'client'}",
        "ce-subject": key,
        "ce-time": datetime.now(UTC).isoformat(),
        "content-type": "application/json",
        wire.MSG_ID: f"{event.event_type}-{identity}",
    }
    headers.update(caused())
    return Message(
        names.event(event.event_type, key, identity), event.model_dump_json().encode(), headers
    )


class Changed(EventModel, type="changed"):
    """A key of a scope with ``changes=True`` was written or deleted, in the same transaction."""

    scope: str
    key_name: str
    operation: str  # put or delete
    old: Any = None
    new: Any = None
    actor: str = ""  # the function that wrote
    cause: str = ""  # its invocation


PARTITIONS = (
    4  # of the changes of a scope; those of one key are in one, and so can be kept in order
)


def partition(key: str) -> int:
    """The partition in which the changes of *key* are."""
    return zlib.crc32(key.encode()) % PARTITIONS


def changed_message(names: Names, change: Changed) -> Message:
    """Return the message for *change*, on ``event.changed.<scope>.<partition>.<key>.<id>``."""
    made = message(names, change)
    identity = made.subject.rsplit(".", 1)[1]
    keys = f"{change.key_name}.{identity}"
    return made._replace(subject=names.changed(change.scope, partition(change.key_name), keys))
