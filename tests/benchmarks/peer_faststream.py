"""FastStream: a typed subscriber that answers requests, and a JetStream pull subscriber."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream.nats import JStream, NatsBroker, PullSub

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo
from peer_program import Call, Ledger, Peer, Send, main

BATCH = 64  # its default of 1 asks the server once for each job


@asynccontextmanager
async def serve(url: str, space: str, ledger: Ledger) -> AsyncIterator[None]:
    broker = NatsBroker(url, logger=None)

    # No max_workers: more than one makes FastStream slower.
    @broker.subscriber(f"{space}.echo")
    async def echo(value: Echo) -> Echo:
        return value

    @broker.subscriber(
        f"{space}.job",
        stream=JStream(space, subjects=[f"{space}.job"]),
        durable="bench",
        pull_sub=PullSub(batch_size=BATCH),
    )
    async def job(value: Echo) -> None:
        ledger.ran(value)

    async with broker:
        await broker.start()
        await broker.ping(timeout=5)
        yield


@asynccontextmanager
async def call(url: str, space: str) -> AsyncIterator[Call]:
    async with NatsBroker(url, logger=None) as broker:

        async def one(value: Echo) -> Echo:
            reply = await broker.request(value, f"{space}.echo", timeout=5)
            return Echo.model_validate_json(reply.body)

        yield one


@asynccontextmanager
async def send(url: str, space: str) -> AsyncIterator[Send]:
    async with NatsBroker(url, logger=None) as broker:
        # With the stream it waits for the server's acknowledgement.
        yield lambda value: broker.publish(value, f"{space}.job", stream=space)


if __name__ == "__main__":
    main(Peer(serve, call, send))
