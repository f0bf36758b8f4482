"""The NATS micro protocol, asked raw, as any other client would."""

import json

import anyio
import pytest

from trine import App

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
async def test_a_worker_answers_discovery_by_all_by_name_and_by_id(serve, space, verb):
    app = App("shop")

    @app.function("shop.order")
    async def order(n: int) -> int:
        """Take an order.

        More about it.
        """
        return 1 // n

    async with serve(app) as client:
        await client.call("shop.order", {"n": 1})
        with pytest.raises(Exception, match="ZeroDivision"):
            await client.call("shop.order", {"n": 0})
        request = client.bus.connection.request
        with anyio.fail_after(5):
            named = json.loads((await request(f"$SRV.{verb}.{space}")).data)
            exact = json.loads((await request(f"$SRV.{verb}.{space}.{named['id']}")).data)
            found: list[str] = []
            mine = anyio.Event()

            def receive(message) -> None:
                found.append(json.loads(message.data)["name"])
                if space in found:
                    mine.set()

            inbox = await client.bus.connection.inbox(receive)
            client.bus.connection.send(f"$SRV.{verb}", b"", inbox.subject)
            await mine.wait()
            inbox.close()
    assert named == exact
    assert named["type"] == f"io.nats.micro.v1.{verb.lower()}_response"
    assert named["name"] == space
    if verb != "PING":
        [endpoint] = named["endpoints"]
        assert endpoint["name"] == "shop-order"
        assert endpoint["subject"] == f"{space}.fn.shop.order"
        assert endpoint["queue_group"] == "q"
    if verb == "INFO":
        assert endpoint["metadata"]["description"] == "Take an order."
    if verb == "STATS":
        assert (endpoint["num_requests"], endpoint["num_errors"]) == (2, 1)
        assert endpoint["processing_time"] > 0
