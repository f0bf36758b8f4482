"""nats-py's own micro services, with the model read and written by hand on both sides."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import nats.micro
from nats.micro.request import Request

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo
from peer_program import Call, Ledger, Peer, main


@asynccontextmanager
async def serve(url: str, space: str, ledger: Ledger) -> AsyncIterator[None]:
    connection = await nats.connect(url)
    service = await nats.micro.add_service(connection, name="bench", version="1.0.0")

    async def answer(request: Request) -> None:
        value = Echo.model_validate_json(request.data)
        await request.respond(value.model_dump_json().encode())

    await service.add_endpoint(name="echo", subject=f"{space}.echo", handler=answer)
    await connection.flush()
    yield
    await service.stop()
    await connection.close()


@asynccontextmanager
async def call(url: str, space: str) -> AsyncIterator[Call]:
    connection = await nats.connect(url)

    async def one(value: Echo) -> Echo:
        payload = value.model_dump_json().encode()
        reply = await connection.request(f"{space}.echo", payload, 5)
        return Echo.model_validate_json(reply.data)

    yield one
    await connection.close()


if __name__ == "__main__":
    main(Peer(serve, call))
