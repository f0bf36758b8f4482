"""A worker whose connection the server ended for good: it ends too, and says why."""

import anyio
import pytest

from trine import App, Client, Worker, streams
from trine.errors import UnavailableError

pytestmark = pytest.mark.anyio


async def test_a_worker_ends_when_the_server_closes_its_connection_for_good(nats, space):
    app = App("closed")

    @app.function()
    async def here() -> bool:
        return True

    with pytest.RaisesGroup(UnavailableError, flatten_subgroups=True):
        async with Client.connect(nats, namespace=space) as client:
            await streams.ensure(client.bus)
            async with anyio.create_task_group() as tasks:
                await tasks.start(Worker(client, [app]).run)
                assert await client.call("closed.here") is True
                # What no server forgives: a payload above its limit, written past our own check.
                size = client.bus.connection.max_payload + 1
                client.bus.connection._pending.append(b"PUB big %d\r\n" % size)
                client.bus.connection.send("anything")
                with anyio.fail_after(10):
                    await anyio.sleep_forever()
