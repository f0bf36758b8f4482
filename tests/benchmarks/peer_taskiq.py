"""taskiq on its pull-based JetStream broker; results come through its object store."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from taskiq.api import run_receiver_task
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo
from peer_program import Call, Ledger, Peer, Send, main

BATCH = 64  # its default of 1 asks the server once for each job
POLL_SECONDS = 0.02  # its default of 0.2 would be all that is measured
# Each result that is read leaves consumers behind, and the server refuses more than about 1,000:
# after some 495 results taskiq-nats stops. What is measured is the time before that.
MOST_CALLS = 450


def broker_of(url: str, space: str, kind: str) -> PullBasedJetStreamBroker:
    return PullBasedJetStreamBroker(
        url,
        subject=f"{space}.{kind}",
        stream_name=f"{space}-{kind}",
        durable=f"{space}-{kind}",
        pull_consume_batch=BATCH,
        pull_consume_timeout=5,
    )


def calls_of(url: str, space: str) -> PullBasedJetStreamBroker:
    """Return the broker whose results are kept; that of the jobs keeps none."""
    results = NATSObjectStoreResultBackend[Echo](url, bucket_name=f"{space}-results")
    return broker_of(url, space, "call").with_result_backend(results)


async def echo(value: Echo) -> Echo:
    return value


@asynccontextmanager
async def serve(url: str, space: str, ledger: Ledger) -> AsyncIterator[None]:
    calls, jobs = calls_of(url, space), broker_of(url, space, "job")
    calls.register_task(echo, "echo")

    async def job(value: Echo) -> None:
        ledger.ran(value)

    jobs.register_task(job, "job")
    async with anyio.create_task_group() as tasks:
        for broker in (calls, jobs):
            broker.is_worker_process = True
            await broker.startup()
            tasks.start_soon(run_receiver_task, broker)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def call(url: str, space: str) -> AsyncIterator[Call]:
    broker = calls_of(url, space)
    task = broker.register_task(echo, "echo")
    await broker.startup()

    async def one(value: Echo) -> Echo:
        result = await (await task.kiq(value)).wait_result(POLL_SECONDS, timeout=10)
        result.raise_for_error()
        return Echo.model_validate(result.return_value)

    yield one
    await broker.shutdown()


@asynccontextmanager
async def send(url: str, space: str) -> AsyncIterator[Send]:
    broker = broker_of(url, space, "job")

    async def job(value: Echo) -> None:
        raise NotImplementedError  # the serving process has the real one

    task = broker.register_task(job, "job")
    await broker.startup()
    yield task.kiq
    await broker.shutdown()


if __name__ == "__main__":
    # It warns of its own end; other warnings are failures that it would only log.
    logging.getLogger("taskiq.receiver").addFilter(lambda said: "cancelled" not in said.msg)
    main(Peer(serve, call, send, MOST_CALLS))
