"""Payloads: what callers pass, as bytes; large ones travel by reference to the object store."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from trine import wire
from trine.bus import Bus
from trine.errors import TooLargeError
from trine.objects import Objects

INLINE_BYTES = 512 * 1024  # what is larger travels through the object store
CALL_SECONDS = 3600  # how long the payload of a call can be fetched


def encode(value: Any) -> bytes:
    """Serialise what a caller passes: bytes as they are, a model, or what JSON can hold."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, BaseModel):
        return value.__pydantic_serializer__.to_json(value)
    return b"{}" if value is None else wire.dumps(value)


async def pack(bus: Bus, payload: bytes, seconds: float | None) -> tuple[bytes, dict[str, str]]:
    """Return what to send for *payload*, with its headers: itself, or a reference to it.

    The object can be fetched for *seconds*; None: until somebody deletes it. `TooLargeError` above
    the limit of this process (``payload_limit``), before anything is stored.
    """
    if len(payload) <= INLINE_BYTES:
        return payload, {}
    if len(payload) > bus.payload_limit:
        raise TooLargeError(
            f"a payload of {len(payload)} bytes is above the limit of {bus.payload_limit}:"
            " store it with client.objects.put and pass its hash",
            size=len(payload),
            limit=bus.payload_limit,
        )
    return b"", {wire.OBJECT: await Objects(bus).put_temporary(payload, seconds)}


async def unpack(bus: Bus, headers: Mapping[str, str] | None, payload: bytes) -> bytes:
    """Return the payload that a message carries or refers to; `NotFoundError` when it is gone."""
    if not headers or wire.OBJECT not in headers:
        return payload
    return await Objects(bus).get(headers[wire.OBJECT])


async def discard(bus: Bus, headers: Mapping[str, str] | None) -> None:
    """Delete the object that a message refers to, if it does: nobody needs it any more."""
    if headers and wire.OBJECT in headers:
        await Objects(bus).delete(headers[wire.OBJECT])
