"""OpenTelemetry: spans and metrics of an SDK that the process has set up, and nothing without."""

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import pytest
from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util._once import Once

from trine import App, Client, Context, EventModel, Retry, catalogue
from trine.errors import TrineError
from trine.invocation import tracing as process
from trine.middleware.tracing import tracing
from trine.observability import telemetry, traces
from trine_triggers import Event

pytestmark = pytest.mark.anyio


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Set up an SDK that keeps its spans, and take it away again."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    provider.shutdown()
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, Once()
    process.inject = None


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics.set_meter_provider(provider)
    yield reader
    provider.shutdown()
    metrics_internal._METER_PROVIDER, metrics_internal._METER_PROVIDER_SET_ONCE = None, Once()


class Baked(EventModel, type="bread.baked"): ...


def bakery() -> App:
    app = App("bread", middleware=[tracing()])

    @app.function("bread.bake")
    async def bake(ctx: Context) -> None:
        with trace.get_tracer("oven").start_as_current_span("heat"):
            await ctx.call("bread.mix")
        await ctx.emit(Baked(), id="loaf-1")
        await ctx.send("bread.sell")

    @app.function("bread.mix")
    def mix() -> None: ...

    @app.function("bread.burn")
    async def burn() -> None:
        raise TrineError("too hot")

    @app.function("bread.sell", retry=Retry(2, delay_seconds=0.05))
    async def sell(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError("closed")

    @app.on(Event("bread.baked"))
    @app.function("bread.tell")
    async def tell(ctx: Context) -> None:
        await ctx.call("bread.mix")

    return app


async def test_spans_of_a_whole_chain_are_one_trace_named_by_the_conventions(serve, spans):
    assert telemetry.join()
    async with serve(bakery()) as client:
        done = anyio.Event()
        seen: list[str] = []

        def receive(message) -> None:
            seen.append(traces.Span.model_validate_json(message.data).function)
            if len(seen) == 6:
                done.set()

        names = client.bus.names
        listener = await client.bus.connection.listen(names.trace("*", "*", "*"), receive)
        with trace.get_tracer("test").start_as_current_span("begin") as begin:
            await client.call("bread.bake")
        with anyio.fail_after(15):
            await done.wait()
        await listener.close()
        found = spans.get_finished_spans()
        by_name = {span.name: span for span in found}
        assert {span.context.trace_id for span in found} == {begin.get_span_context().trace_id}
        assert sorted(span.name for span in found) == [
            "begin",
            "bread.bake",
            "bread.mix",
            "bread.mix",
            "heat",
            "process bread.sell",
            "process bread.sell",
            "process bread.tell",
        ]
        bake = by_name["bread.bake"]
        assert bake.parent.span_id == begin.get_span_context().span_id
        assert bake.kind is SpanKind.SERVER
        assert bake.attributes["rpc.system.name"] == "trine"
        assert bake.attributes["rpc.method"] == "bread.bake"
        tell = by_name["process bread.tell"]
        mixed = {span.parent.span_id for span in found if span.name == "bread.mix"}
        assert mixed == {by_name["heat"].context.span_id, tell.context.span_id}
        assert tell.kind is SpanKind.CONSUMER
        assert tell.parent.span_id == bake.context.span_id
        assert dict(tell.attributes) | {"trine.invocation": "", "trine.worker": ""} == {
            "trine.invocation": "",
            "trine.worker": "",
            "messaging.system": "nats",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "bread.tell",
            "messaging.message.id": "loaf-1",
            "trine.trigger": "event",
            "trine.attempt": 1,
        }
        failed, sold = (span for span in found if span.name == "process bread.sell")
        assert failed.status.status_code is StatusCode.ERROR
        assert failed.attributes["error.type"] == "internal"
        assert failed.status.description == "ValueError: closed"
        assert sold.status.status_code is StatusCode.UNSET
        assert sold.attributes["trine.attempt"] == 2
        # What `trine trace` shows are the same spans.
        recorded = await traces.find(client.bus, f"{begin.get_span_context().trace_id:032x}")
        assert {span.span for span in recorded} == {
            f"{span.context.span_id:016x}" for span in found if span.name not in ("begin", "heat")
        }


async def test_an_error_that_a_function_raises_is_the_status_of_its_span(serve, spans):
    async with serve(bakery()) as client:
        with pytest.raises(TrineError):
            await client.call("bread.burn")
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "too hot"
    assert span.attributes["error.type"] == TrineError.code


async def test_what_the_sampler_drops_is_recorded_nowhere(serve, spans):
    async with serve(bakery()) as client:
        head = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
        await client.call_bytes("bread.mix", b"", headers=head)
        assert spans.get_finished_spans() == ()
        assert await traces.find(client.bus, "a" * 32) == []


async def test_without_an_sdk_nothing_is_made(serve):
    assert not telemetry.join()
    assert process.inject is None
    async with serve(bakery()) as client:
        await client.call("bread.mix")


def points(
    reader: InMemoryMetricReader, worker: str
) -> dict[str, list[tuple[dict[str, str], float]]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: [
            (dict(point.attributes), point.value)
            for point in metric.data.data_points
            if point.attributes["trine.worker"] == worker
        ]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_metrics_are_read_from_the_counts_of_the_workers_that_live(serve, reader):
    async with serve(bakery()) as client:
        for _ in range(3):
            await client.call("bread.mix")
        with pytest.raises(TrineError):
            await client.call("bread.burn")
        (worker,) = await catalogue.workers(client.bus)
        read = points(reader, worker.id)
        runs = {facts["trine.function"]: value for facts, value in read["trine.function.runs"]}
        assert runs["bread.mix"] == 3
        assert runs["bread.burn"] == 1
        ((facts, value),) = read["trine.function.errors"]
        assert (facts["trine.function"], facts["error.type"], value) == (
            "bread.burn",
            TrineError.code,
            1,
        )
        took = {facts["trine.function"]: value for facts, value in read["trine.function.duration"]}
        assert took["bread.mix"] > 0
        mixed = [
            value
            for facts, value in read["trine.function.duration.bucket"]
            if facts["trine.function"] == "bread.mix"
        ]
        assert mixed == sorted(mixed)
        assert mixed[-1] == 3


# --- programs -----------------------------------------------------------------------------------


class Collector:
    """An OTLP receiver on loopback."""

    def __init__(self) -> None:
        received: queue.Queue[tuple[str, bytes]] = queue.Queue()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.put((self.path, body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._received = received
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def get(self, seconds: float = 15) -> tuple[str, bytes]:
        return self._received.get(timeout=seconds)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


SOURCE = """
from trine import App
app = App("post")

@app.function("post.stamp")
async def stamp() -> int:
    return 1
"""


async def test_trine_serve_exports_to_a_collector_as_the_environment_says(
    trine, nats, space, collector
):
    trine.environment |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_SERVICE_NAME": "stamps",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
    }
    async with trine.serve(SOURCE) as program, Client.connect(nats, namespace=space) as client:
        await client.call("post.stamp")
        spans: list[str] = []
        values: dict[str, float] = {}
        services: set[str] = set()

        def collect() -> None:
            while not spans or not values.get("trine.function.runs"):
                path, body = collector.get()
                if path == "/v1/traces":
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        for one in resource.resource.attributes:
                            if one.key == "service.name":
                                services.add(one.value.string_value)
                        spans.extend(s.name for scope in resource.scope_spans for s in scope.spans)
                else:
                    assert path == "/v1/metrics"
                    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                        for scope in resource.scope_metrics:
                            for metric in scope.metrics:
                                for point in metric.sum.data_points:
                                    values[metric.name] = point.as_int

        await anyio.to_thread.run_sync(collect)
        assert spans == ["post.stamp"]
        assert services == {"stamps"}
        assert values["trine.function.runs"] == 1
        program.signal(15)
        assert await program.wait() == 0


async def test_a_collector_that_is_away_does_not_hold_up_the_end(trine, nats, space):
    trine.environment |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    async with trine.serve(SOURCE) as program, Client.connect(nats, namespace=space) as client:
        assert await client.call("post.stamp") == 1
        program.signal(15)
        assert await program.wait(20) == 0


def python(source: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, env=env, timeout=30
    )


LOADED = "import sys; print([name for name in sys.modules if name.startswith('opentelemetry')])"


def test_nothing_of_opentelemetry_is_imported_unless_it_is_configured():
    ended = python(
        "import trine, trine.serving.worker, trine.observability.metrics\n"
        "from trine.cli.observing import observing\n"
        "from trine.settings import Settings\n"
        f"assert len(observing(Settings())) == 2\n{LOADED}"
    )
    assert ended.stdout.strip() == "[]", ended.stderr


def test_the_variables_without_the_packages_are_an_error_that_names_the_extra():
    blocked = "import sys; sys.modules['opentelemetry'] = None\n"
    ended = python(
        f"{blocked}from trine.observability import telemetry\n"
        "from trine.errors import MissingExtraError\n"
        "try: telemetry.configure()\n"
        "except MissingExtraError as error: print(error.message)",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )
    assert "pip install 'trine[otel]'" in ended.stdout, ended.stderr
    ended = python(
        f"{blocked}from trine.observability import telemetry\ntelemetry.configure()\nprint('fine')",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_SDK_DISABLED="true",
    )
    assert ended.stdout == "fine\n", ended.stderr
