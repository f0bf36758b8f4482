"""A real server for a test, and an app served in its process."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from trine import streams
from trine.app import App
from trine.client import Client
from trine.embedded import nats_server
from trine.serving.worker import Worker


@asynccontextmanager
async def server(store: Path | None = None, **options: str) -> AsyncIterator[str]:
    """Run a real nats-server on a store of its own and give its URL."""
    with tempfile.TemporaryDirectory(prefix="trine-test-") as scratch:
        async with nats_server(store or Path(scratch), "fast", **options) as url:  # type: ignore[arg-type]
            yield url


@asynccontextmanager
async def serving(
    *apps: App, url: str | None = None, namespace: str = "test"
) -> AsyncIterator[Client]:
    """Serve *apps* over a real server and give a client; everything has ended on leaving."""
    if url is None:
        async with server() as fresh, serving(*apps, url=fresh, namespace=namespace) as client:
            yield client
        return
    async with Client.connect(url, namespace=namespace) as client:
        await streams.ensure(client.bus)
        async with anyio.create_task_group() as tasks:
            worker = Worker(client, apps)
            await tasks.start(worker.run)
            try:
                yield client
            finally:
                worker.stop()
