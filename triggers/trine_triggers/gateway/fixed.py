"""The gateway's own routes: health, readiness, description, events, objects, metrics."""

import contextlib
import importlib
import inspect
import json
import re
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio.to_thread
from starlette.types import Scope, Send

from trine.errors import InvalidInputError, NotFoundError, TrineError
from trine.trigger import GatewayContext
from trine_triggers.gateway import body, replies, uploads
from trine_triggers.gateway.feed import Feed, parse_sequence
from trine_triggers.gateway.options import GatewayOptions
from trine_triggers.gateway.request import Request
from trine_triggers.gateway.routes import Routes
from trine_triggers.gateway.streaming import TRANSPORT, Source
from trine_triggers.openapi import describe

Values = tuple[Any, ...]
Answer = Callable[[Values, Request], Awaitable[None]]
SendFeed = Callable[[Source, Request], Awaitable[None]]
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Own:
    """A route of the gateway's own."""

    cors = ()

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class FixedRoutes:
    """What a gateway answers without calling a function."""

    def __init__(
        self, ctx: GatewayContext, options: GatewayOptions, routes: Routes, send_feed: SendFeed
    ) -> None:
        self._ctx = ctx
        self._options = options
        self._send_feed = send_feed
        self._described: tuple[Any, str, bytes] | None = None
        self._routes = routes

    def table(self) -> list[tuple[str, str, Own]]:
        """Return method, path and target of each."""
        return [
            ("GET", "/healthz", Own(self._health)),
            ("GET", "/readyz", Own(self._ready)),
            ("GET", "/openapi.json", Own(self._openapi)),
            ("GET", "/routes", Own(self._listed)),
            ("GET", "/metrics", Own(self._metrics)),
            ("GET", "/events", Own(self._events)),
            ("POST", "/objects", Own(self._put)),
            ("GET", "/objects/{digest}", Own(self._get)),
        ]

    async def _health(self, _values: Values, request: Request) -> None:
        await _json(request.send, {"status": "ok"})

    async def _ready(self, _values: Values, request: Request) -> None:
        connected = self._ctx.client.bus.connection.is_connected
        functions = len(self._ctx.directory.functions)
        refused = len(self._routes.refused)
        ready = connected and functions > 0
        facts = {"ready": ready, "nats": connected, "functions": functions, "refused": refused}
        await _json(request.send, facts, 200 if ready else 503)

    async def _listed(self, _values: Values, request: Request) -> None:
        await _json(request.send, {"routes": self._routes.listed()})

    async def _openapi(self, _values: Values, request: Request) -> None:
        scope = request.scope
        host = request.text(b"host") or "{}:{}".format(*scope["server"])
        scheme = request.text(b"x-forwarded-proto")
        server = f"{scheme if scheme in ('http', 'https') else scope['scheme']}://{host}"
        functions = self._ctx.directory.functions
        known = self._described
        if known is None or known[0] is not functions or known[1] != server:
            infos = list(functions.values())
            refused = frozenset(self._routes.refused)
            document = await anyio.to_thread.run_sync(
                lambda: json.dumps(describe(infos, server, refused)).encode()
            )
            known = self._described = (functions, server, document)
        told: replies.Headers = [replies.JSON]
        content = await replies.compressed(
            known[2], request.headers.get(b"accept-encoding", b""), told
        )
        await replies.send_bytes(request.send, content, 200, told)

    async def _metrics(self, _values: Values, request: Request) -> None:
        try:
            metrics = importlib.import_module("trine.observability.metrics")
        except ImportError as error:
            raise NotFoundError("there are no metrics here") from error
        text = metrics.render(self._ctx.client)
        if inspect.isawaitable(text):
            text = await text
        kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        await replies.send_bytes(request.send, str(text).encode(), 200, [kind])

    # --- events ----------------------------------------------------------------------------------

    async def _events(self, _values: Values, request: Request) -> None:
        query = _query(request.scope)
        if unknown := sorted(set(query) - {"type", "key", "after"}):
            raise InvalidInputError(f"no parameter {unknown[0][:64]!r}: type, key, after")
        seen = request.text(b"last-event-id")
        seen = seen or query.get("after", [""])[0]
        key = query.get("key", [None])[0]
        after = parse_sequence(seen) if seen else None
        feed = Feed(self._ctx.client.bus, query.get("type", []), key, after)
        await self._send_feed(feed.items(), request)

    # --- objects ---------------------------------------------------------------------------------

    async def _put(self, _values: Values, request: Request) -> None:
        kind = request.text(b"content-type")
        name = _query(request.scope).get("filename", [None])[0]
        content: AsyncIterator[bytes] = body.pieces(
            request.receive, request.headers, self._options.upload_limit, self._options.body_seconds
        )
        kept = await uploads.store(self._ctx.client.objects, content, kind, name)
        place = (b"location", f"/objects/{kept.object}".encode())
        await replies.send_bytes(
            request.send, kept.model_dump_json().encode(), 201, [replies.JSON, place]
        )

    async def _get(self, values: Values, request: Request) -> None:
        digest = values[0]
        if not _DIGEST.fullmatch(digest):
            raise NotFoundError("an object is named by its SHA-256, 64 hexadecimal digits")
        objects = self._ctx.client.objects
        size = await objects.size(digest)
        tag = f'"{digest}"'.encode()
        told: replies.Headers = [
            (b"etag", tag),
            (b"cache-control", b"public, max-age=31536000, immutable"),
        ]
        if request.headers.get(b"if-none-match") == tag:
            await replies.send_bytes(request.send, b"", 304, told)
            return
        told += [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", str(size).encode()),
            (b"x-content-type-options", b"nosniff"),  # it is what somebody sent
            (b"content-disposition", b"attachment"),
        ]
        await request.send({"type": "http.response.start", "status": 200, "headers": told})
        if request.scope["method"] != "HEAD":
            await self._send_object(digest, request)
        await request.send({"type": "http.response.body", "body": b""})

    async def _send_object(self, digest: str, request: Request) -> None:
        try:
            async with contextlib.aclosing(self._ctx.client.objects.get_stream(digest)) as pieces:
                async for piece in pieces:
                    with anyio.fail_after(self._options.stall_seconds):
                        message = {"type": "http.response.body", "body": piece, "more_body": True}
                        await request.send(message)
        except (TrineError, TimeoutError) as error:  # too late for a status: it is cut off
            if (transport := request.scope.get(TRANSPORT)) is not None:
                transport.abort()
            raise body.HungUpError from error


def _query(scope: Scope) -> dict[str, list[str]]:
    try:
        return urllib.parse.parse_qs(
            scope["query_string"].decode(), errors="strict", max_num_fields=100
        )
    except ValueError as error:
        raise InvalidInputError(f"the query is not valid: {error}") from error


async def _json(send: Send, value: Any, status: int = 200) -> None:
    await replies.send_bytes(send, json.dumps(value).encode(), status, [replies.JSON])
