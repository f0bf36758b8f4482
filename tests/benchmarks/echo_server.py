"""The serving process: a bare nats-py echo and a typed function."""

import sys

import anyio
import nats
from nats.aio.msg import Msg

from trine import App, Client, Worker, streams

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo

app = App("bench")


@app.function("bench.echo")
async def echo(value: Echo) -> Echo:
    return value


async def main() -> None:
    url = sys.argv[1]
    bare = await nats.connect(url)

    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    await bare.subscribe("bare.echo", cb=answer)
    await bare.flush()
    async with Client.connect(url) as client, anyio.create_task_group() as tasks:
        await streams.ensure(client.bus)
        await tasks.start(Worker(client, [app]).run)
        print("ready", flush=True)


anyio.run(main, backend_options={"use_uvloop": True})
