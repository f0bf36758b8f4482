"""Dead letters: what could not be handled, with why; to look at, to give again, or to drop."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trine import payload, wire
from trine.bus import Bus, Stored
from trine.errors import ConflictError, NotFoundError, TrineError
from trine.jobs import results
from trine.jobs.message import Ref
from trine.jobs.unique import stored_at

if TYPE_CHECKING:
    from trine.sending import Sends

_PAGE = 500
_REDRIVE_SECONDS = 24 * 3600  # how long a letter that is given again waits for its consumer


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. ``id`` names it for as long as it is there."""

    id: int
    queue: str | None  # of a job
    consumer: str  # of an event, a tick or a changed key: for whom it was
    code: str
    reason: str
    attempts: int
    at: datetime  # when it died
    subject: str
    headers: Mapping[str, str]
    payload: bytes  # without what is larger than 512 KiB: `show` has it

    @property
    def job(self) -> str | None:
        """The job that it is, ``queue/id``."""
        return str(Ref.of(self.subject)) if self.queue is not None else None


_OWN = (
    wire.REASON,
    wire.ATTEMPT,
    wire.ORIGIN,
    wire.ORIGIN_SEQUENCE,
    wire.ORIGIN_STREAM,
    wire.CONSUMER,
)


async def ls(
    client: "Sends", *, queue: str | None = None, consumer: str | None = None
) -> list[Letter]:
    """Return the dead letters, the oldest first: all, of one queue, or of one consumer."""
    return [_letter(stored) for stored in await _stored(client.bus, queue, consumer)]


async def show(client: "Sends", id: int) -> Letter:
    """Return one dead letter with its whole payload; `NotFoundError` when there is none."""
    stored = await _find(client.bus, id)
    letter = _letter(stored)
    if wire.OBJECT not in stored.headers:
        return letter
    content = await payload.unpack(client.bus, stored.headers, stored.payload)
    return Letter(**{**_fields(letter), "payload": content})


async def redrive(
    client: "Sends",
    id: int | None = None,
    *,
    queue: str | None = None,
    consumer: str | None = None,
) -> int:
    """Give one letter, or all of a queue or of a consumer, or all, to their handler again.

    Returns how many. The attempts count from one again; a job keeps its id, so that who waits for
    it still gets its result. What was for one consumer of an event goes to that consumer alone.
    """
    return await _each(client.bus, id, queue, consumer, _redrive)


async def drop(
    client: "Sends",
    id: int | None = None,
    *,
    queue: str | None = None,
    consumer: str | None = None,
) -> int:
    """Delete one letter, or all of a queue or of a consumer, or all; return how many."""
    return await _each(client.bus, id, queue, consumer, _drop)


async def _each(bus: Bus, id: int | None, queue: str | None, consumer: str | None, act: Any) -> int:
    letters = [await _find(bus, id)] if id is not None else await _stored(bus, queue, consumer)
    for letter in letters:
        await act(bus, letter)
    return len(letters)


async def _redrive(bus: Bus, letter: Stored) -> None:
    """Publish, then delete the letter: a crash between the two doubles nothing.

    The server refuses a second publication of the same letter for two minutes; later than that the
    job itself tells, by being in its queue or by having a result that is no error.
    """
    headers = letter.headers
    stream, origin = headers[wire.ORIGIN_STREAM], headers[wire.ORIGIN]
    kept = {k: v for k, v in headers.items() if not k.startswith("Nats-") and k not in _OWN}
    if stream == bus.names.jobs:
        kept = _shown(headers)
    kept[wire.REDRIVE] = str(letter.sequence)
    kept[wire.MSG_ID] = f"redrive-{letter.sequence}"
    if stream == bus.names.jobs:
        if not await _went_on(bus, Ref.of(origin), origin):
            await results.forget(bus, Ref.of(origin))
            await _publish(bus, origin, letter.payload, kept)
    else:
        consumer = headers[wire.CONSUMER]
        await _check_consumer(bus, stream, consumer, letter.sequence)
        kept[wire.ORIGIN] = origin
        kept[wire.ORIGIN_SEQUENCE] = headers[wire.ORIGIN_SEQUENCE]
        if stream != bus.names.events:
            kept[wire.TTL] = f"{_REDRIVE_SECONDS}s"
        subject = bus.names.redrive(stream, consumer, str(letter.sequence))
        await _publish(bus, subject, letter.payload, kept)
    await _delete(bus, letter)


async def _publish(bus: Bus, subject: str, content: bytes, headers: dict[str, str]) -> None:
    try:
        await bus.store(subject, content, headers)
    except ConflictError:
        return  # published before, by a redrive that did not come to its end


async def _went_on(bus: Bus, ref: Ref, subject: str) -> bool:
    """Whether an earlier redrive published the job already."""
    if await bus.last(bus.names.jobs, subject) is not None:
        return True
    result = await results.find(bus, ref)
    return result is not None and wire.ERROR not in result.headers


async def _check_consumer(bus: Bus, stream: str, consumer: str, letter: int) -> None:
    try:
        await bus.api(f"CONSUMER.INFO.{stream}.{consumer}")
    except TrineError as error:
        text = f"letter {letter}: its consumer {consumer} is gone, nobody would take it"
        raise NotFoundError(text, consumer=consumer) from error


async def _drop(bus: Bus, letter: Stored) -> None:
    await _delete(bus, letter)
    if letter.headers.get(wire.ORIGIN_STREAM) == bus.names.jobs:  # others share theirs
        await payload.discard(bus, letter.headers)


async def _delete(bus: Bus, letter: Stored) -> None:
    await bus.api(f"STREAM.PURGE.{bus.names.dead}", {"filter": letter.subject})


async def _stored(bus: Bus, queue: str | None, consumer: str | None) -> list[Stored]:
    names = bus.names
    source = "*"
    if queue is not None:
        source = f"queue={wire.name(queue, 'queue')}"
    elif consumer is not None:
        source = wire.token(consumer)
    subjects = await bus.subjects(names.dead, names.dead_letter(source, "*"))
    found: list[Stored] = []
    for start in range(0, len(subjects), _PAGE):
        found += await bus.latest(names.dead, subjects[start : start + _PAGE])
    return sorted(found, key=lambda one: one.sequence)


async def _find(bus: Bus, id: int) -> Stored:
    everything = bus.names.dead_letter("*", "*")
    for stored in await bus.following(bus.names.dead, everything, id, 1):
        if stored.sequence == id:
            return stored
    raise NotFoundError(f"no dead letter {id}", letter=id)


def _letter(stored: Stored) -> Letter:
    headers = stored.headers
    source = stored.subject.split(".")[-2]
    code, _, text = headers.get(wire.REASON, "internal: ").partition(": ")
    return Letter(
        id=stored.sequence,
        queue=source.removeprefix("queue=") if source.startswith("queue=") else None,
        consumer=headers.get(wire.CONSUMER, source),
        code=code,
        reason=text,
        attempts=int(headers.get(wire.ATTEMPT, 0)),
        at=datetime.fromtimestamp(stored_at(stored), UTC),
        subject=headers.get(wire.ORIGIN, stored.subject),
        headers=_shown(headers),
        payload=stored.payload,
    )


def _shown(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of the message that died, without those of the server."""
    return {
        name: text
        for name, text in headers.items()
        if name not in _OWN and not name.startswith(("Nats-", wire.WAS))
    }


def _fields(letter: Letter) -> dict[str, Any]:
    return {name: getattr(letter, name) for name in Letter.__slots__}
