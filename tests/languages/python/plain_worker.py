# plain_worker.py
"""The function ``text.upper``, served by nats-py's own micro module: no code of Trine."""

import asyncio
import json
import os
import signal

import nats
from nats.micro import add_service
from nats.micro.request import Request


async def upper(request: Request) -> None:
    try:
        text = json.loads(request.data)["text"].upper()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        await request.respond_error("422", f"text: must be a string ({error!r})")
    else:
        await request.respond(json.dumps({"text": text}).encode())


async def main() -> None:
    connection = await nats.connect(os.environ["TRINE_NATS"])
    service = await add_service(connection, name="text", version="1.0.0")
    subject = f"{os.environ.get('TRINE_NAMESPACE', 'trine')}.fn.text.upper"
    await service.add_endpoint(name="text-upper", subject=subject, handler=upper)
    await connection.flush()
    print("serving text.upper", flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await service.stop()
    await connection.drain()


asyncio.run(main())
