"""Middleware: code around the runs of functions, one idea a file.

A middleware is ``async def (ctx, value, call_next) -> output``: it may look at the payload, run
the rest with ``await call_next(ctx, value)``, or refuse by raising a `TrineError`. It wraps every
run of a function, whatever caused it: a call, a job, a trigger.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from trine.context import Context

Next = Callable[[Context, Any], Awaitable[Any]]


class Middleware(Protocol):
    """Code around the runs of functions: ``async def (ctx, value, call_next) -> output``."""

    def __call__(self, ctx: Context, value: Any, call_next: Next, /) -> Awaitable[Any]: ...


def compose(middleware: Sequence[Middleware], run: Next) -> Next:
    """Return *run* with *middleware* around it, the first of them outermost."""
    for one in reversed(middleware):
        run = _around(one, run)
    return run


def _around(middleware: Middleware, call_next: Next) -> Next:
    async def run(ctx: Context, value: Any) -> Any:
        return await middleware(ctx, value, call_next)

    return run


__all__ = ["Middleware", "Next", "compose"]
