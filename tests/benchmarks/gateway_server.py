"""A gateway with the function (``here``), one without (``alone``), or the function (``worker``).

Prints its URL, or ``ready``, once the function can be called.
"""

import sys

import anyio

from trine import App, Client, Worker, streams
from trine.settings import Settings
from trine.system import running
from trine_triggers import Http

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo

app = App("bench")


@app.on(Http("POST", "/bench/echo"))
@app.function("bench.echo")
async def echo(value: Echo) -> Echo:
    return value


async def main() -> None:
    kind, url = sys.argv[1:]
    if kind == "worker":
        async with Client.connect(url, namespace="apart") as client:
            await streams.ensure(client.bus)
            async with anyio.create_task_group() as tasks:
                await tasks.start(Worker(client, [app]).run)
                print("ready", flush=True)
                await anyio.sleep_forever()
    settings = Settings(nats=url, namespace="here" if kind == "here" else "apart", port=0)
    async with running(settings, [app] if kind == "here" else []) as system:
        with anyio.fail_after(10):
            await system.client.call("bench.echo", SAMPLE)
        print(system.http[0], flush=True)
        await anyio.sleep_forever()


SAMPLE = {
    "id": 1,
    "name": "n",
    "kind": "k",
    "score": 0.5,
    "ok": True,
    "tags": ["a"],
    "ts": 1.5,
    "body": "x",
}
anyio.run(main, backend_options={"use_uvloop": True})
