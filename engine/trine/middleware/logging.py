"""Logging: one line for each invocation, with how it ended and how long it took."""

import time
from typing import Any

import structlog

from trine.context import Context
from trine.middleware import Next
from trine.middleware.outcome import outcome

log = structlog.get_logger("trine")


async def logging(ctx: Context, value: Any, call_next: Next) -> Any:
    """Log ``invocation_ended`` at info, or at warning with the error's code and text."""
    started = time.perf_counter()
    try:
        output = await call_next(ctx, value)
    except BaseException as error:
        code, text = outcome(ctx.invocation, error)
        log.warning("invocation_ended", outcome=code, error=text[:500], **_facts(ctx, started))
        raise
    log.info("invocation_ended", outcome="ok", **_facts(ctx, started))
    return output


def _facts(ctx: Context, started: float) -> dict[str, Any]:
    invocation = ctx.invocation
    facts: dict[str, Any] = {
        "function": invocation.function,
        "invocation": invocation.id,
        "trigger": invocation.trigger or "call",
        "attempt": invocation.attempt,
        "milliseconds": round((time.perf_counter() - started) * 1000, 3),
        "worker": invocation.worker,
    }
    if invocation.traceparent:
        facts["trace"] = invocation.traceparent[3:35]
    return facts
