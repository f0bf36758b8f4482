"""Trine: a typed function, called and sent to."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from trine import App, Client, Worker, streams

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo
from peer_program import Call, Ledger, Peer, Send, main

app = App("bench")
ledger = Ledger(0)


@app.function("bench.echo")
async def echo(value: Echo) -> Echo:
    return value


@app.function("bench.job")
async def job(value: Echo) -> None:
    ledger.ran(value)


@asynccontextmanager
async def serve(url: str, space: str, counts: Ledger) -> AsyncIterator[None]:
    global ledger  # noqa: PLW0603 - a function is declared before it is known who counts
    ledger = counts
    async with Client.connect(url, namespace=space) as client, anyio.create_task_group() as tasks:
        await streams.ensure(client.bus)
        await tasks.start(Worker(client, [app]).run)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def call(url: str, space: str) -> AsyncIterator[Call]:
    async with Client.connect(url, namespace=space) as client:
        yield lambda value: client.call(echo, value)


@asynccontextmanager
async def send(url: str, space: str) -> AsyncIterator[Send]:
    async with Client.connect(url, namespace=space) as client:
        # No result is kept: neither do the peers keep one of a job.
        yield lambda value: client.send(job, value, keep=0)


if __name__ == "__main__":
    main(Peer(serve, call, send))
