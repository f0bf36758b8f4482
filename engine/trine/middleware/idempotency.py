"""Idempotency: a call that is repeated with the same key gets the reply of the first.

The key is claimed in the stream of results by compare-and-set, so that it holds over all replicas.
A claim is a short lease: when its holder dies, the next call with the key runs.
"""

import hashlib
from collections.abc import Awaitable, Callable

import anyio

from trine import payload, wire
from trine.bus import Bus, Stored
from trine.errors import ConflictError, TrineError, WriteConflictError

CLAIM_SECONDS = 10.0
_CLAIM = "claim"


async def once(
    bus: Bus,
    function: str,
    key: str,
    sent: bytes,
    keep_seconds: float,
    run: Callable[[], Awaitable[bytes]],
) -> bytes:
    """Return the reply that is kept for *key*, or run and keep it for *keep_seconds*.

    An error that repeating could mend (``retryable``, or not a `TrineError`) is not kept. The same
    key with another payload is a `ConflictError`. While the first call runs, the others wait.
    """
    subject = bus.names.reply(function, hashlib.sha256(key.encode()).hexdigest()[:32])
    digest = hashlib.sha256(sent).hexdigest()
    pause = 0.01
    while True:
        found = await bus.last(bus.names.results, subject)
        if found is None or found.gone:
            try:
                revision = await _claim(bus, subject, digest, found.sequence if found else 0)
            except WriteConflictError:
                continue
            return await _run(bus, subject, digest, revision, keep_seconds, run)
        if found.headers.get(wire.DIGEST) != digest:
            raise ConflictError(f"the key {key!r} was used with another payload", key=key)
        if found.headers.get(wire.STATE) == _CLAIM:
            await anyio.sleep(pause)  # its holder runs; the claim ends with it
            pause = min(pause * 2, 0.5)
            continue
        return await _reply(bus, found)


async def _claim(bus: Bus, subject: str, digest: str, expected: int | None) -> int:
    headers = {wire.STATE: _CLAIM, wire.DIGEST: digest, wire.TTL: f"{CLAIM_SECONDS:.0f}s"}
    if expected is not None:
        headers[wire.EXPECTED_SEQUENCE] = str(expected)
    return await bus.store(subject, b"", headers)


async def _run(
    bus: Bus,
    subject: str,
    digest: str,
    revision: int,
    keep_seconds: float,
    run: Callable[[], Awaitable[bytes]],
) -> bytes:
    held = [revision]

    async def renew() -> None:
        while True:
            await anyio.sleep(CLAIM_SECONDS / 3)
            held[0] = await _claim(bus, subject, digest, held[0])

    headers = {wire.DIGEST: digest, wire.TTL: f"{max(1, round(keep_seconds))}s"}
    output: bytes = b""
    failure: TrineError | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(renew)
            try:
                output = await run()
            except TrineError as error:
                if error.retryable:
                    raise
                failure = error
            tasks.cancel_scope.cancel()
    except BaseException as group:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2):
            await bus.api(f"STREAM.PURGE.{bus.names.results}", {"filter": subject})
        if isinstance(group, BaseExceptionGroup):
            raise _only(group) from group
        raise
    headers[wire.EXPECTED_SEQUENCE] = str(held[0])
    if failure is not None:
        said, body = wire.encode_error(failure)
        await bus.store(subject, body, {**headers, **said})
        raise failure
    kept, reference = await payload.pack(bus, output, keep_seconds)
    await bus.store(subject, kept, {**headers, **reference})
    return output


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _reply(bus: Bus, found: Stored) -> bytes:
    if wire.ERROR in found.headers:
        raise wire.decode_error(found.headers, found.payload)
    return await payload.unpack(bus, found.headers, found.payload)
