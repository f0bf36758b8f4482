"""Tracing: a span for each run that belongs to a sampled trace, shown by ``trine trace``.

A call continues the trace of its caller, or has none; a trigger or a job without one begins one.
What the handler calls, sends, emits and writes is caused by its span.
"""

import time
from typing import Any

from trine.context import Context
from trine.invocation import new_traceparent
from trine.middleware import Middleware, Next
from trine.middleware.outcome import OK, outcome
from trine.observability import telemetry, traces
from trine.observability.traces import Place


def tracing() -> Middleware:
    """Return the middleware; with OpenTelemetry if this process has set that up by now.

    To stand first, so that the others see the trace. A call without a trace passes straight on,
    unless OpenTelemetry decides about it.
    """
    spans = telemetry.spans()
    return _plain if spans is None else _exported(spans)


async def _plain(ctx: Context, value: Any, call_next: Next) -> Any:
    invocation = ctx.invocation
    given = invocation.traceparent
    if given is None and invocation.trigger is None:
        return await call_next(ctx, value)
    above = Place.parse(given or new_traceparent())
    if above is None or not above.recorded():
        if given is None and above is not None:
            invocation.traceparent = above.traceparent  # decided for all that follows
        return await call_next(ctx, value)
    place = above.child()
    invocation.traceparent = place.traceparent
    started_at, started, ended = time.time(), time.perf_counter(), OK
    try:
        return await call_next(ctx, value)
    except BaseException as error:
        ended = outcome(invocation, error)
        raise
    finally:
        seconds = time.perf_counter() - started
        parent = None if given is None else above.span
        traces.publish(ctx.bus, invocation, place, parent, started_at, seconds, ended)


def _exported(spans: "telemetry.Spans") -> Middleware:
    async def middleware(ctx: Context, value: Any, call_next: Next) -> Any:
        invocation = ctx.invocation
        above = Place.parse(invocation.traceparent or "")
        started_at, started, ended = time.time(), time.perf_counter(), OK
        with spans.begin(invocation) as span:
            place = spans.place(span)
            invocation.traceparent = place.traceparent
            try:
                return await call_next(ctx, value)
            except BaseException as error:
                ended = outcome(invocation, error)
                spans.fail(span, *ended)
                raise
            finally:
                if place.recorded():
                    seconds = time.perf_counter() - started
                    parent = None if above is None else above.span
                    traces.publish(ctx.bus, invocation, place, parent, started_at, seconds, ended)

    return middleware
