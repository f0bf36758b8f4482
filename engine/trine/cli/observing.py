"""What ``trine up`` and ``trine serve`` tell about the functions that they run."""

from trine.invocation import tracing as process
from trine.middleware import Middleware
from trine.middleware.logging import logging
from trine.middleware.tracing import tracing
from trine.observability import telemetry
from trine.settings import Settings


def observing(settings: Settings) -> list[Middleware]:
    """Set up traces and OpenTelemetry as *settings* and ``OTEL_*`` say; return the middleware.

    The line for each invocation costs more than many a function: it is left out where nobody
    would see it.
    """
    telemetry.configure()
    process.sample(settings.trace_sample)
    told = settings.log_level in ("debug", "info")
    return [tracing(), logging] if told else [tracing()]
