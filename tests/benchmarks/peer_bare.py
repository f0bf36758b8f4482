"""The unit: a nats-py request that is answered with the bytes it brought."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
from nats.aio.msg import Msg

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo, of_size
from peer_program import SIZE, Call, Ledger, Peer, main


@asynccontextmanager
async def serve(url: str, space: str, ledger: Ledger) -> AsyncIterator[None]:
    connection = await nats.connect(url)

    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    await connection.subscribe(f"{space}.echo", cb=answer)
    await connection.flush()
    yield
    await connection.close()


@asynccontextmanager
async def call(url: str, space: str) -> AsyncIterator[Call]:
    connection = await nats.connect(url)
    payload = of_size(SIZE).model_dump_json().encode()

    async def one(_: Echo) -> bytes:
        return bytes((await connection.request(f"{space}.echo", payload, 5)).data)

    yield one
    await connection.close()


if __name__ == "__main__":
    main(Peer(serve, call))
