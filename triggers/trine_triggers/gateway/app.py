"""The gateway as an ASGI application: from a request to a call, and back.

A request that needs nothing special pays for nothing: its body goes to the function as it came,
and what the function said goes to the client. No task is made for it unless it takes a while.
"""

import asyncio
import contextlib
import random
import re
from typing import Any

import structlog
from starlette.types import Receive, Scope, Send

from trine import wire
from trine.errors import (
    BadRequestError,
    ConditionNotMetError,
    NotFoundError,
    TooManyRequestsError,
    TrineError,
    UnavailableError,
)
from trine.trigger import GatewayContext
from trine_triggers.gateway import body, payload, replies, streaming
from trine_triggers.gateway.fixed import FixedRoutes
from trine_triggers.gateway.options import GatewayOptions
from trine_triggers.gateway.request import Request
from trine_triggers.gateway.routes import Route, Routes
from trine_triggers.gateway.watch import Watch

log = structlog.get_logger("trine")

_random = random.Random()  # noqa: S311
_TRACE = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_FORWARDED = (
    (b"authorization", "authorization"),
    (b"tracestate", "tracestate"),
    (b"idempotency-key", wire.IDEMPOTENCY),
)


class Gateway:
    """An ASGI application over one client and one directory."""

    def __init__(self, ctx: GatewayContext, options: GatewayOptions) -> None:
        self._ctx = ctx
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._in_flight = 0
        self._outlets: set[streaming.Outlet] = set()
        self._routes = Routes(ctx.directory)
        fixed = FixedRoutes(ctx, options, self._routes, self._feed)
        self._routes.own = fixed.table()
        self._routes.rebuild()
        ctx.directory.on_change = self._routes.rebuild

    def stop(self) -> None:
        """End the open streams: their clients are told that this gateway goes."""
        for outlet in self._outlets:
            outlet.end(UnavailableError("the gateway stops: connect again"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        watch = Watch(self._loop, receive, self._options.body_seconds)
        self._in_flight += 1
        try:
            await self._request(scope, receive, send, watch)
        except body.HungUpError:
            return
        except asyncio.CancelledError:
            if (why := watch.reason()) is not None:
                with contextlib.suppress(Exception):  # the reply may have begun
                    await replies.send_error(send, why)
        except Exception as error:  # noqa: BLE001 - the client gets it, whatever it is
            await replies.send_error(send, replies.internal(error))
        finally:
            self._in_flight -= 1
            watch.close()

    async def _request(self, scope: Scope, receive: Receive, send: Send, watch: Watch) -> None:
        target, values = self._routes.table.find(scope["raw_path"], scope["method"])
        if target is None:
            await self._missing(scope, send)
            return
        request = Request(scope, receive, send, dict(scope["headers"]))
        if cors := target.cors or self._options.cors:
            allowed = replies.allowed_origin(cors, request.headers.get(b"origin"))
            if allowed is not None:
                request.send = replies.for_origin(send, allowed)
        try:
            if self._in_flight > self._options.max_in_flight:
                raise TooManyRequestsError(f"{self._in_flight} requests are in flight")
            if type(target) is Route:
                await self._call(target, values, request, watch)
            else:
                watch.close()
                await target.answer(values, request)
        except TrineError as error:
            await replies.send_error(request.send, error)

    async def _missing(self, scope: Scope, send: Send) -> None:
        """Answer a preflight, 405 with the methods that the path has, or 404."""
        table, path, shown = self._routes.table, scope["raw_path"], scope["path"][:256]
        allowed = table.allowed(path)
        if not allowed:
            raise NotFoundError(f"no route {shown}")
        headers = dict(scope["headers"])
        wanted = headers.get(b"access-control-request-method", b"").decode("latin-1")
        if scope["method"] == "OPTIONS" and wanted in allowed:
            target, _ = table.find(path, wanted)
            cors = target.cors or self._options.cors
            if origin := replies.allowed_origin(cors, headers.get(b"origin")):
                await replies.send_preflight(send, scope, origin, allowed)
                return
        error = BadRequestError(f"{shown} takes {', '.join(allowed)}")
        allow = (b"allow", ", ".join(allowed).encode())
        await replies.send_error(send, error, status=405, headers=[allow])

    # --- calls -----------------------------------------------------------------------------------

    async def _call(
        self, route: Route, values: tuple[Any, ...], request: Request, watch: Watch
    ) -> None:
        if route.generic:
            route, values = self._routes.function(values[0]), ()
        if route.limit is not None and route.in_flight >= route.limit:
            raise TooManyRequestsError(f"{route.in_flight} requests to {route.path} are in flight")
        route.in_flight += 1
        try:
            asked = await payload.build(
                self._ctx.client, self._options, route, values, request, watch
            )
            trace = _traceparent(request.headers)
            sent = {wire.TRACEPARENT: trace}
            for name, field in _FORWARDED:
                if name in request.headers:
                    sent[field] = request.text(name)
            told: replies.Headers = [(b"traceparent", trace.encode())]
            watch.call()
            if route.condition is not None:
                await self._ask(route.condition, route, asked, sent)
            if route.info.streams:
                watch.close()
                await self._stream(route, asked, sent, told, request)
                return
            output = await self.call(route.info.id, asked, route.timeout, sent)
            watch.close()
        finally:
            route.in_flight -= 1
        told.append(replies.JSON)
        size = self._options.gzip_bytes
        if size and len(output) >= size:
            accepted = request.headers.get(b"accept-encoding", b"")
            output = await replies.compressed(output, accepted, told)
        await replies.send_bytes(request.send, output, route.status, told)

    async def call(
        self, function: str, asked: bytes, timeout: float, headers: dict[str, str]
    ) -> bytes:
        """Run *function*, wherever it is served. The one place where the gateway calls."""
        return await self._ctx.call(function, asked, timeout=timeout, headers=headers)

    async def _ask(
        self, condition: str, route: Route, asked: bytes, headers: dict[str, str]
    ) -> None:
        answer = await self.call(condition, asked, route.timeout, headers)
        if answer.strip() != b"true":
            raise ConditionNotMetError(f"{condition} says no", condition=condition)

    # --- streams ---------------------------------------------------------------------------------

    async def _stream(
        self,
        route: Route,
        asked: bytes,
        sent: dict[str, str],
        told: replies.Headers,
        request: Request,
    ) -> None:
        form = streaming.accepted(request.headers, route.stream)
        last = request.headers.get(b"last-event-id", b"")
        resumes = route.resumes and last.isdigit() and len(last) < 19
        first = int(last) + 1 if resumes else 1

        async def items() -> streaming.Source:
            number = first
            source = self._ctx.client.stream_bytes(
                route.info.id, asked, timeout=route.timeout, headers=sent
            )
            async with contextlib.aclosing(source):
                async for item in source:
                    yield streaming.Item(item, str(number))
                    number += 1

        await self._send(items(), form, request, told, streaming.Outlet(lossless=False))

    async def _feed(self, source: streaming.Source, request: Request) -> None:
        """Send durable events: a slow client makes the source wait, nothing is dropped."""
        form = streaming.accepted(request.headers, None if _lines(request) else "sse")
        await self._send(source, form, request, [], streaming.Outlet(lossless=True))

    async def _send(
        self,
        source: streaming.Source,
        form: streaming.Form,
        request: Request,
        headers: replies.Headers,
        outlet: streaming.Outlet,
    ) -> None:
        if request.scope["method"] == "HEAD":  # nothing runs for a look
            head = [(b"content-type", form.media_type), *headers]
            await replies.send_bytes(request.send, b"", 200, head)
            return
        self._outlets.add(outlet)
        try:
            await streaming.send_stream(
                outlet,
                source,
                form,
                request,
                headers,
                keep_alive_seconds=self._options.keep_alive_seconds,
                stall_seconds=self._options.stall_seconds,
            )
        finally:
            self._outlets.discard(outlet)


def _traceparent(headers: dict[bytes, bytes]) -> str:
    """Return the trace of the caller, or a new one when it sent none that is valid."""
    given = headers.get(b"traceparent")
    if given is not None and _TRACE.fullmatch(given):
        return given.decode()
    # Ids have to be unique, not secret: this costs a tenth of asking the system for each.
    return f"00-{_random.getrandbits(128):032x}-{_random.getrandbits(64):016x}-01"


def _lines(request: Request) -> bool:
    accept = request.headers.get(b"accept", b"")
    return b"jsonl" in accept or b"ndjson" in accept
