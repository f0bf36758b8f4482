"""OpenTelemetry: spans and metrics through its API, where a process has set up an SDK.

Whether there is one is decided once, when a worker starts or by `join`. Without one nothing of it
is imported. `configure` sets up an SDK by the standard ``OTEL_*`` variables, for the command line.
"""

import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any

from trine.errors import MissingExtraError, UsageError
from trine.invocation import Invocation
from trine.invocation import tracing as process
from trine.observability.stats import BOUNDS, Stats
from trine.observability.traces import Place

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import Span

    from trine.serving.micro import Service

_SCOPE = "trine"


def join() -> bool:
    """Let what this process calls, sends and emits carry its current OpenTelemetry span.

    To be called once, after the SDK was set up; a worker with the tracing middleware does it.
    Returns whether there is an SDK.
    """
    return spans() is not None


def spans() -> "Spans | None":
    """Return what makes spans, if this process has set up an SDK by now."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return None
    from opentelemetry import propagate

    process.inject = propagate.inject
    return Spans()


class Spans:
    """Makes the spans of invocations, named as the semantic conventions say.

    A call is an RPC: a server span called like the function. What a trigger or a job runs is the
    processing of a message: a consumer span called ``process <function>``.
    """

    def __init__(self) -> None:
        from opentelemetry import context, propagate, trace

        self._context, self._propagate, self._trace = context, propagate, trace
        self._tracer = trace.get_tracer(_SCOPE, version("trine"))

    @contextmanager
    def begin(self, invocation: Invocation) -> "Iterator[Span]":
        """Start the span of *invocation*; it is the current one until the block ends."""
        api, function = self._trace, invocation.function
        attributes: dict[str, str | int] = {
            "trine.invocation": invocation.id,
            "trine.worker": invocation.worker,
        }
        if invocation.trigger is None:
            name, kind = function, api.SpanKind.SERVER
            attributes |= {"rpc.system.name": "trine", "rpc.method": function}
        else:
            name, kind = f"process {function}", api.SpanKind.CONSUMER
            attributes |= {
                "messaging.system": "nats",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": function,
                "trine.trigger": invocation.trigger,
                "trine.attempt": invocation.attempt,
            }
            if (
                message := invocation.facts.get("job") or invocation.facts.get("event")
            ) is not None:
                attributes["messaging.message.id"] = str(message)
        above = self._propagate.extract(invocation.received)
        span = self._tracer.start_span(name, above, kind, attributes)
        token = self._context.attach(api.set_span_in_context(span, above))
        try:
            yield span
        finally:
            self._context.detach(token)
            span.end()

    def place(self, span: "Span") -> Place:
        """Return where *span* stands."""
        said = span.get_span_context()
        return Place(f"{said.trace_id:032x}", f"{said.span_id:016x}", bool(said.trace_flags & 1))

    def fail(self, span: "Span", code: str, text: str) -> None:
        """Say that the run ended with an error."""
        span.set_attribute("error.type", code)
        span.set_status(self._trace.StatusCode.ERROR, text)


# --- metrics -----------------------------------------------------------------------------------


class _Meter:
    """Instruments that read the counts of the workers in this process when they are asked."""

    def __init__(self) -> None:
        self._services: list[weakref.WeakMethod[Callable[[], Service]]] = []
        self._registered = False

    def add(self, service: "Callable[[], Service]") -> None:
        self._services.append(weakref.WeakMethod(service))
        if not self._registered:
            self._registered = True
            self._register()

    def _register(self) -> None:
        from opentelemetry import metrics

        meter = metrics.get_meter(_SCOPE, version("trine"))
        counter, running = meter.create_observable_counter, meter.create_observable_up_down_counter
        counter("trine.function.runs", [self._runs], "{run}", "Runs that have ended.")
        counter("trine.function.errors", [self._errors], "{error}", "Failures, by their code.")
        counter("trine.function.duration", [self._seconds], "s", "Time spent in runs.")
        counter(
            "trine.function.duration.bucket",
            [self._buckets],
            "{run}",
            "Runs that took at most `le` seconds.",
        )
        running("trine.function.running", [self._running], "{run}", "Runs that go on.")

    def _each(self) -> Iterator[tuple[dict[str, str], Stats]]:
        for reference in self._services:
            if (describe := reference()) is None:
                continue  # that worker has ended
            service = describe()
            for one in service.endpoints:
                yield {"trine.function": one.function, "trine.worker": service.id}, one.stats

    def _runs(self, _: "CallbackOptions") -> "Iterator[Observation]":
        return (_observed(stats.runs, facts) for facts, stats in self._each())

    def _errors(self, _: "CallbackOptions") -> "Iterator[Observation]":
        for facts, stats in self._each():
            for code, count in tuple(stats.codes.items()):
                yield _observed(count, {**facts, "error.type": code})

    def _seconds(self, _: "CallbackOptions") -> "Iterator[Observation]":
        return (_observed(stats.nanoseconds / 1e9, facts) for facts, stats in self._each())

    def _buckets(self, _: "CallbackOptions") -> "Iterator[Observation]":
        for facts, stats in self._each():
            total = 0
            for bound, count in zip([*map(str, BOUNDS), "+Inf"], stats.buckets, strict=True):
                total += count
                yield _observed(total, {**facts, "le": bound})

    def _running(self, _: "CallbackOptions") -> "Iterator[Observation]":
        return (_observed(stats.running, facts) for facts, stats in self._each())


_meter = _Meter()


def _observed(value: float, facts: dict[str, str]) -> "Observation":
    from opentelemetry.metrics import Observation

    return Observation(value, facts)


def measure(service: "Callable[[], Service]") -> None:
    """Let OpenTelemetry, if it is in use here, read the counts of a worker: *service* is a method.

    They are read for as long as the worker lives; a call pays nothing for it.
    """
    if "opentelemetry.metrics" in sys.modules:
        _meter.add(service)


# --- the command line ---------------------------------------------------------------------------


def configure() -> None:
    """Set up the SDK as ``OTEL_*`` says, unless that was done; nothing when they say nothing.

    What is left is exported when the process ends. `MissingExtraError` without ``trine[otel]``.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    exporters = {signal: _exporters(signal) for signal in ("TRACES", "METRICS")}
    if not any(exporters.values()):
        return
    try:
        from opentelemetry import metrics, trace
        from opentelemetry.sdk import metrics as sdk_metrics
        from opentelemetry.sdk import resources
        from opentelemetry.sdk import trace as sdk_trace
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError(
            "OTEL_* variables are set, but the SDK is not installed: pip install 'trine[otel]'"
        ) from error
    resource = resources.Resource.create()
    if str(resource.attributes.get(resources.SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(resources.Resource({resources.SERVICE_NAME: "trine"}))
    provider = trace.get_tracer_provider()
    if exporters["TRACES"] and isinstance(provider, trace.ProxyTracerProvider):
        made = sdk_trace.TracerProvider(resource=resource)
        for name in exporters["TRACES"]:
            made.add_span_processor(BatchSpanProcessor(_load("traces", name)))
        trace.set_tracer_provider(made)
    if exporters["METRICS"]:
        readers = [
            PeriodicExportingMetricReader(_load("metrics", name)) for name in exporters["METRICS"]
        ]
        metrics.set_meter_provider(sdk_metrics.MeterProvider(readers, resource))


def _exporters(signal: str) -> list[str]:
    """The names of the exporters for *signal*; where none is said, OTLP if it has an endpoint."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    default = "otlp" if any(os.environ.get(name) for name in endpoints) else ""
    said = os.environ.get(f"OTEL_{signal}_EXPORTER") or default
    return [name.strip() for name in said.split(",") if name.strip() not in ("", "none")]


def _load(signal: str, name: str) -> Any:
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = entry_points(group=f"opentelemetry_{signal}_exporter", name=name)
    if not found:
        raise UsageError(f"the OpenTelemetry exporter {name!r} is not installed")
    return next(iter(found)).load()()
