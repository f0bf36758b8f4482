"""A gateway with the functions of a test behind it, and a client that speaks HTTP to it."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from trine import App
from trine.settings import Settings
from trine.system import System, running


@asynccontextmanager
async def gateway(
    nats: str, space: str, *apps: App
) -> AsyncIterator[tuple[httpx.AsyncClient, System]]:
    """Serve *apps* and the gateway in this process."""
    settings = Settings(nats=nats, namespace=space, port=0)
    limits = httpx.Limits(max_connections=None)
    async with (
        running(settings, apps) as system,
        httpx.AsyncClient(base_url=system.http[0], timeout=20, limits=limits) as http,
    ):
        yield http, system


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a whole server-sent stream, without its comments."""
    found = []
    for block in text.split("\n\n"):
        event: dict[str, Any] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            if name in ("id", "event", "data"):
                event[name] = f"{event[name]}\n{value}" if name in event else value
        if event:
            found.append({**event, "data": json.loads(event["data"])})
    return found


def connect(http: httpx.AsyncClient, receive_buffer: int | None = None) -> socket.socket:
    """Return a bare connection to the gateway, for what no HTTP client would send."""
    one = socket.socket()
    if receive_buffer is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    one.settimeout(10)
    one.connect((http.base_url.host, http.base_url.port or 80))
    return one
