"""Results of jobs, and how far they are: kept for a stated time, the first result counts."""

import contextlib
from collections.abc import Mapping
from typing import Any

from trine import payload, wire
from trine.bus import Bus, Stored
from trine.consuming.delivery import Delivery
from trine.errors import WriteConflictError
from trine.jobs.message import KEEP_SECONDS, Ref

PROGRESS_SECONDS = 24 * 3600


async def put_result(
    bus: Bus, delivery: Delivery, content: bytes = b"", error: BaseException | None = None
) -> None:
    """Keep the result, or the error, of the job that *delivery* is, unless it has one."""
    if kept(delivery):
        await keep(bus, Ref.of(delivery.subject), delivery.headers, content, error)


def kept(delivery: Delivery) -> bool:
    """Whether the result of this job is to be kept at all."""
    return delivery.headers.get(wire.KEEP) != "0"


async def keep(
    bus: Bus,
    ref: Ref,
    headers: Mapping[str, str],
    content: bytes = b"",
    error: BaseException | None = None,
) -> bool:
    """Keep it for as long as *headers* of the job say; False if the job has ended before."""
    said = headers.get(wire.KEEP)
    seconds = KEEP_SECONDS if said is None else float(said)
    if not seconds:
        return True
    head = {wire.TTL: f"{max(1, round(seconds))}s", wire.EXPECTED_SEQUENCE: "0"}
    if error is not None:
        failed, content = wire.encode_error(error)
        head.update(failed)
    content, reference = await payload.pack(bus, content, seconds)
    try:
        await bus.store(bus.names.result(*ref), content, {**head, **reference})
    except WriteConflictError:
        await payload.discard(bus, reference)
        return False
    return True


async def find(bus: Bus, ref: Ref) -> Stored | None:
    """Return the kept result, or None."""
    found = await bus.last(bus.names.results, bus.names.result(*ref))
    return None if found is None or found.gone else found


async def forget(bus: Bus, ref: Ref) -> None:
    """Delete the kept result and what is left of the progress."""
    found = await find(bus, ref)
    for subject in (bus.names.result(*ref), bus.names.progress(*ref)):
        await bus.api(f"STREAM.PURGE.{bus.names.results}", {"filter": subject})
    if found is not None:
        with contextlib.suppress(WriteConflictError):
            await payload.discard(bus, found.headers)


async def put_progress(bus: Bus, queue: str, id: str, value: Any) -> None:
    """Keep *value* as the latest progress of the job, for a day."""
    content, reference = await payload.pack(bus, payload.encode(value), PROGRESS_SECONDS)
    headers = {wire.TTL: f"{PROGRESS_SECONDS}s", **reference}
    await bus.store(bus.names.progress(queue, id), content, headers)
