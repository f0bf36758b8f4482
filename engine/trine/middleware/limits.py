"""Limits: how often a function may run, in all and for each key.

The generic cell rate algorithm (ITU-T I.371): one instant, the theoretical arrival time, says all
that a token bucket knows, so that the state of a shared limit is one small key.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import anyio
from pydantic import BaseModel

from trine import wire
from trine.context import Context
from trine.errors import TooManyRequestsError, UsageError
from trine.middleware import Next
from trine.scope import Scope

_KEYS = 10_000  # keys remembered in one process; the one not seen for longest is forgotten


class Arrival(BaseModel):
    """The theoretical arrival time of a shared limit, in unix seconds."""

    at: float = 0.0


arrivals = Scope("limits", Arrival)


@dataclass(frozen=True, slots=True)
class Rate:
    """*count* runs in *seconds*, up to *burst* of them at once (default: *count*).

    *key* names a field of the payload: each of its values has a limit of its own. The limit holds
    in each worker process, or with ``shared=True`` over all of them, for a read and a write of
    state a run. A call above it is refused with 429 and ``retry_after`` in the details; a job or
    a triggered run waits for its turn.
    """

    count: int
    seconds: float = 1.0
    burst: int | None = None
    key: str | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        if self.count < 1 or self.seconds <= 0 or (self.burst is not None and self.burst < 1):
            raise UsageError("a rate has a count and a burst of at least 1, and positive seconds")

    def take(self, arrival: float, now: float) -> tuple[float, float]:
        """Return (the new arrival time, seconds to wait): to wait 0 means that it may run."""
        step = self.seconds / self.count
        tolerance = step * ((self.burst or self.count) - 1)
        start = max(arrival, now)
        wait = start - tolerance - now
        return (arrival, wait) if wait > 1e-9 else (start + step, 0.0)


class Limit:
    """The middleware that holds a function to its `Rate`."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._arrivals: OrderedDict[str, float] = OrderedDict()

    async def __call__(self, ctx: Context, value: Any, call_next: Next) -> Any:
        key = self._key(value)
        while (wait := await self._take(ctx, key)) > 0:
            if ctx.invocation.trigger is None:
                raise TooManyRequestsError(
                    f"{ctx.invocation.function} runs at most {self.rate.count} times"
                    f" in {self.rate.seconds:g} s",
                    retry_after=round(wait, 3),
                )
            await anyio.sleep(wait)
        return await call_next(ctx, value)

    def _key(self, value: Any) -> str:
        return "" if self.rate.key is None else str(getattr(value, self.rate.key, ""))

    async def _take(self, ctx: Context, key: str) -> float:
        if not self.rate.shared:
            arrival, wait = self.rate.take(self._arrivals.pop(key, 0.0), time.monotonic())
            self._arrivals[key] = arrival
            if len(self._arrivals) > _KEYS:
                self._arrivals.popitem(last=False)
            return wait
        waits: list[float] = []

        def apply(found: Arrival) -> Arrival:
            at, wait = self.rate.take(found.at, time.time())
            waits.append(wait)
            return Arrival(at=at)

        name = ctx.invocation.function.replace(".", "-")
        place = f"{name}.{wire.token(key)}" if key else name
        await ctx.state(arrivals).change(place, Arrival(), apply)
        return waits[-1]
