"""The bare baseline: Starlette on uvicorn with the same handler; prints its URL."""

import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

sys.path.insert(0, __file__.rpartition("/")[0])
from echo_model import Echo


async def echo(request: Request) -> Response:
    value = Echo.model_validate_json(await request.body())
    return Response(value.model_dump_json(), media_type="application/json")


app = Starlette(routes=[Route("/bench/echo", echo, methods=["POST"])])
listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False)
uvicorn.Server(config).run([listener])
