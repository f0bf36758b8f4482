"""Unique jobs: one key, at most one job that waits or runs.

A key of the record says which job has it; it is written in one batch with the job, and deleted
before the job is acknowledged. One that a crash left behind is found out by the next who asks.
"""

import contextlib
import time
from collections.abc import Mapping
from datetime import datetime

from trine import wire
from trine.bus import Bus, Message, Stored
from trine.errors import TrineError, WriteConflictError
from trine.jobs import results
from trine.jobs.message import Prepared, Ref, job_token

_ARRIVAL_SECONDS = 60.0  # how long a job may take from the record into its queue
_ATTEMPTS = 20


async def enqueue(bus: Bus, job: Prepared, key: str, *, once: bool) -> tuple[Ref, bool]:
    """Store *job* unless one of its queue has *key*; return who has it now, and if that is new."""
    names = bus.names
    subject = names.unique(job.ref.queue, job_token(key))
    for _ in range(_ATTEMPTS):
        found = await bus.last(names.record, subject)
        if found is not None and not found.gone:
            holder = Ref(job.ref.queue, found.payload.decode())
            if await _alive(bus, holder):
                return holder, False
        if once and await bus.latest(names.record, [names.job_guard(*job.ref)]):
            return job.ref, False
        expected = {wire.EXPECTED_SEQUENCE: str(found.sequence if found else 0)}
        lock = Message(subject, job.ref.id.encode(), expected)
        try:
            await bus.batch([lock, job.recorded(names, once=True)])
        except WriteConflictError:  # somebody else was faster: that one counts
            continue
        return job.ref, True
    raise WriteConflictError(f"the unique key {key!r} of {job.ref.queue} changes too often")


async def release(bus: Bus, ref: Ref, headers: Mapping[str, str]) -> None:
    """Free the key of the job, if it has one; before the job is acknowledged."""
    if wire.UNIQUE not in headers:
        return
    subject = bus.names.unique(ref.queue, job_token(headers[wire.UNIQUE]))
    found = await bus.last(bus.names.record, subject)
    if found is None or found.gone or found.payload.decode() != ref.id:
        return
    head = {
        wire.KV_OPERATION: "DEL",
        wire.TTL: "1s",
        wire.EXPECTED_SEQUENCE: str(found.sequence),
    }
    with contextlib.suppress(WriteConflictError):
        await bus.store(subject, b"", head)


async def _alive(bus: Bus, ref: Ref) -> bool:
    """Whether the job is delayed, waits, runs, or is on its way into the queue."""
    names = bus.names
    if await bus.latest(names.record, [names.delayed(ref.queue, "*", "*", ref.id)]):
        return True
    if await bus.latest(names.jobs, [names.job(ref.queue, "*", "*", ref.id)]):
        return True
    copy = names.relayed(names.job(ref.queue, "*", "*", ref.id))
    copies = await bus.latest(names.record, [copy])
    if not copies or await results.find(bus, ref) is not None:
        return False
    return time.time() - stored_at(copies[0]) < _ARRIVAL_SECONDS


def stored_at(stored: Stored) -> float:
    """Return when the server stored it, as unix seconds; `TrineError` where it does not say."""
    said = stored.headers.get(wire.TIMESTAMP)
    if said is None:
        raise TrineError(f"{stored.subject} was not read from its stream")
    return datetime.fromisoformat(said).timestamp()
