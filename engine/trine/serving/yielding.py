"""The replies of a streaming function: an item a message, and signs of life in between."""

from contextlib import aclosing, suppress
from typing import Any

import anyio
import anyio.lowlevel

from trine import payload, wire
from trine.bus import Bus
from trine.context import Context
from trine.errors import TrineError
from trine.function import Function

_ALIVE_SECONDS = 10.0
_CHECK_ITEMS = 64


async def yield_items(
    bus: Bus, function: Function[Any, Any], context: Context, value: Any, reply: str
) -> None:
    """Send what *function* yields to *reply*; raises what it raises."""
    send = bus.connection.send

    async def alive() -> None:
        while True:
            await anyio.sleep(_ALIVE_SECONDS)
            with suppress(TrineError):  # away
                send(reply, b"", headers={wire.STREAM: "alive"})

    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(alive)
        try:
            unchecked = 0
            async with aclosing(function.iterate(context, value)) as items:
                async for item in items:
                    sent = function.encode(item)
                    reference: dict[str, str] = {}
                    if len(sent) > payload.INLINE_BYTES:
                        sent, reference = await payload.pack(bus, sent, payload.CALL_SECONDS)
                    send(reply, sent, headers={wire.STREAM: "item", **reference})
                    unchecked += 1
                    if unchecked == _CHECK_ITEMS:  # else a busy generator cannot be stopped
                        unchecked = 0
                        await anyio.lowlevel.checkpoint()
        except Exception as error:  # noqa: BLE001 - raised below: else it arrives as a group
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
