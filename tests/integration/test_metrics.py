"""What Prometheus is told at /metrics, read by Prometheus' own parser."""

import re
from collections.abc import Iterable
from pathlib import Path

import anyio
import httpx
import nats as nats_py
import pytest
from nats.micro import add_service
from nats.micro.service import EndpointConfig, ServiceConfig
from prometheus_client.parser import text_string_to_metric_families

from trine import App, Client, Context, GiveUp, streams
from trine.errors import ConflictError, UnavailableError
from trine.observability import metrics, readings
from trine.observability.stats import BOUNDS
from trine.settings import Settings
from trine.system import running
from trine_triggers import Queue

pytestmark = pytest.mark.anyio

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Return every sample, and check what the format asks for."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def of(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of the samples of *name* with *labels*."""
    return sum(
        value
        for (one, said), value in samples.items()
        if one == name and labels.items() <= dict(said).items()
    )


def names(samples: Iterable[tuple[str, frozenset[tuple[str, str]]]]) -> set[str]:
    return {name for name, _ in samples}


def arithmetic() -> App:
    app = App("math")

    @app.function("math.add")
    async def add(a: int) -> int:
        return a

    @app.function("math.fail")
    async def fail() -> None:
        raise ConflictError("no")

    return app


async def until(client: Client, name: str, value: float, **labels: str) -> Samples:
    """Read until the samples of *name* with *labels* add up to *value*."""
    with anyio.fail_after(15):
        while True:
            reading = await readings.read(client.bus)
            samples = parsed(metrics.exposition(reading, client.bus.names.jobs))
            if of(samples, name, **labels) == value:
                return samples


async def test_runs_errors_and_durations_of_every_replica_are_there(serve):
    async with serve(arithmetic()) as client, serve(arithmetic()):
        for number in range(20):
            await client.call("math.add", {"a": number})
        with pytest.raises(ConflictError):
            await client.call("math.fail")
        samples = parsed(await metrics.render(client))
        add = {"function": "math.add"}
        assert of(samples, "trine_function_runs_total", **add) == 20
        assert of(samples, "trine_function_errors_total", **add) == 0
        assert (
            of(samples, "trine_function_errors_total", function="math.fail", code="conflict") == 1
        )
        assert of(samples, "trine_function_running", **add) == 0
        assert of(samples, "trine_function_duration_seconds_count", **add) == 20
        assert of(samples, "trine_function_duration_seconds_bucket", **add, le="+Inf") == 20
        assert 0 < of(samples, "trine_function_duration_seconds_sum", **add) < 20
        workers = {dict(said)["worker"] for name, said in samples if name.endswith("_runs_total")}
        assert len(workers) == 2
        assert of(samples, "trine_workers") == 2
        for worker in workers:
            counts = [
                of(
                    samples,
                    "trine_function_duration_seconds_bucket",
                    **add,
                    worker=worker,
                    le=f"{bound:g}" if bound else "+Inf",
                )
                for bound in (*BOUNDS, 0)
            ]
            assert counts == sorted(counts)
            assert counts[-1] == of(samples, "trine_function_runs_total", **add, worker=worker)


async def test_queues_consumers_streams_and_dead_letters_are_there(serve):
    app = App("print")
    going, release = anyio.Event(), anyio.Event()

    @app.on(Queue("pages"))
    @app.function("print.page")
    async def page(ctx: Context) -> None:
        going.set()
        await release.wait()
        raise GiveUp("no paper")

    async with serve(app) as client:
        for _ in range(3):
            await client.enqueue("pages")
        await going.wait()
        try:
            samples = await until(client, "trine_queue_waiting", 2, queue="pages")
            assert of(samples, "trine_queue_running", queue="pages") == 1
            assert of(samples, "trine_function_running", function="print.page") == 1
            jobs = {"stream": client.bus.names.jobs}
            assert of(samples, "trine_consumer_pending", **jobs) == 2
            assert of(samples, "trine_consumer_ack_pending", **jobs) == 1
            assert of(samples, "trine_stream_messages", **jobs) == 3
            assert of(samples, "trine_stream_bytes", **jobs) > 0
            assert of(samples, "trine_dead_letters") == 0
        finally:
            release.set()
        samples = await until(client, "trine_dead_letters", 3)
        assert of(samples, "trine_stream_messages", stream=client.bus.names.dead) == 3
        failed = {"function": "print.page", "code": "gave_up"}
        await until(client, "trine_function_errors_total", 3, **failed)


async def test_a_foreign_service_is_there_with_what_it_counts(serve, nats, space):
    connection = await nats_py.connect(nats)
    service = await add_service(connection, ServiceConfig(name="calc", version="1.0.0"))

    async def answer(request) -> None:
        await request.respond(b"4")

    await service.add_endpoint(
        EndpointConfig(name="square", subject=f"{space}.fn.calc.square", handler=answer)
    )
    await connection.flush()
    try:
        async with serve(arithmetic()) as client:
            assert await client.call("calc.square", {"x": 2}) == 4
            square = {"function": "calc.square", "worker": service.id}
            samples = await until(client, "trine_function_runs_total", 1, **square)
            bucket = "trine_function_duration_seconds_bucket"
            assert of(samples, bucket, **square, le="+Inf") == 1
            assert of(samples, bucket, **square) == 1
    finally:
        await service.stop()
        await connection.close()


async def test_nonsense_from_a_service_is_left_out(serve, space):
    async with serve(arithmetic()) as client:
        connection = client.bus.connection

        def answer(message) -> None:
            fn = f"{space}.fn.odd.one"
            for body in (
                b"",
                b"[" * 100_000,
                b"[]",
                b'{"id": 1, "endpoints": []}',
                b'{"id": "x", "endpoints": [1, {}, {"subject": "%s.fn.Not An Id"}]}'
                % space.encode(),
                b'{"id": "y", "endpoints": [{"subject": "%s", "num_requests": "many",'
                b' "num_errors": -1, "processing_time": 1e400, "data": {"buckets": [1, 2],'
                b' "codes": 3, "running": {}}}]}' % fn.encode(),
            ):
                connection.send(message.reply, body)

        listener = await connection.listen("$SRV.STATS", answer)
        try:
            samples = parsed(await metrics.render(client))
        finally:
            await listener.close()
        assert of(samples, "trine_function_runs_total", function="odd.one") == 0
        assert ("trine_function_runs_total") in names(samples)


async def test_however_many_scrape_at_once_the_system_is_read_once(serve):
    async with serve(arithmetic()) as client:
        asked: list[str] = []
        listener = await client.bus.connection.listen(
            "$SRV.STATS", lambda message: asked.append(message.reply)
        )
        mine = client.bus.connection._inbox
        texts: list[str] = []

        async def scrape() -> None:
            texts.append(await metrics.render(client))

        try:
            async with anyio.create_task_group() as tasks:
                hung_up = anyio.CancelScope()

                async def first() -> None:
                    with hung_up:
                        await metrics.render(client)

                tasks.start_soon(first)
                for _ in range(30):
                    tasks.start_soon(scrape)
                await anyio.wait_all_tasks_blocked()
                hung_up.cancel()
        finally:
            await listener.close()
        assert len(texts) == 30
        assert len(set(texts)) == 1
        assert 1 <= len([one for one in asked if mine and one.startswith(mine)]) <= 2


async def test_a_worker_that_does_not_answer_is_waited_for_and_left_out(serve):
    async with serve(arithmetic()) as client:
        worker = (await readings.read(client.bus)).workers[0]
        lease = f"worker.{worker.id}-gone"
        await client.bus.store(
            client.bus.names.lease(lease),
            worker.model_copy(update={"id": f"{worker.id}-gone"}).model_dump_json().encode(),
            {"Nats-TTL": "10s"},
        )
        samples = parsed(await metrics.render(client))
        assert of(samples, "trine_workers") == 2
        assert {dict(said)["worker"] for name, said in samples if "_runs_total" in name} == {
            worker.id
        }


async def test_the_gateway_gives_them_in_the_text_format(nats, space, tmp_path):
    settings = Settings(nats=nats, namespace=space, port=0, store=tmp_path)
    async with running(settings, [arithmetic()]) as system, httpx.AsyncClient() as http:
        await system.client.call("math.add", {"a": 1})
        reply = await http.get(f"{system.http[0]}/metrics")
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        samples = parsed(reply.text)
        assert of(samples, "trine_function_runs_total", function="math.add") == 1


async def test_labels_are_escaped_and_come_back_as_they_were():
    odd = 'back\\slash "quoted"\nsecond line'
    one = readings.FunctionReading("f", odd, 2, 1, 0, 0.5, None, {odd: 1})
    reading = readings.Reading(0.0, [], [one], [], [], 0)
    samples = parsed(metrics.exposition(reading, "JOBS"))
    assert of(samples, "trine_function_runs_total", worker=odd) == 2
    assert of(samples, "trine_function_errors_total", worker=odd, code=odd) == 1


async def test_without_a_server_it_is_an_error_that_says_so(own_server, space):
    async with Client.connect(own_server.url, namespace=space) as client:
        await streams.ensure(client.bus)
        await metrics.render(client)
        own_server.kill()
        with pytest.raises(UnavailableError):
            await readings.read(client.bus)


def test_the_rules_for_alerts_and_the_page_name_metrics_that_there_are():
    known = set(metrics.exposition(readings.Reading(0.0, [], [], [], [], 0), "JOBS").split())
    root = Path(__file__).parents[2]
    rules = (root / "deploy" / "prometheus-rules.yml").read_text()
    page = (root / "docs" / "observability.md").read_text()
    named = set(re.findall(r"\btrine_(?!triggers)[a-z_]+", rules + page))
    assert len(named) > 10
    assert named <= known
