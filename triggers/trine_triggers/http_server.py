"""The HTTP gateway: Starlette on uvicorn, with routes that follow the live catalogue."""

import contextlib
import errno
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import structlog
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route, Router
from starlette.types import Receive, Scope, Send

from trine import wire
from trine.catalogue import FunctionInfo
from trine.errors import (
    AddressInUseError,
    BadRequestError,
    InvalidInputError,
    NotFoundError,
    TooLargeError,
    TrineError,
)
from trine.invocation import new_traceparent
from trine.trigger import GatewayContext
from trine.trigger import parse as parse_trigger
from trine_triggers.openapi import describe

log = structlog.get_logger("trine")

BODY_LIMIT = 1024 * 1024 - wire.PAYLOAD_MARGIN
CALL_SECONDS = 30.0


class Gateway:
    """An ASGI application over one client and one directory."""

    def __init__(self, ctx: GatewayContext) -> None:
        self._ctx = ctx
        self._fixed = [
            Route("/healthz", self._health),
            Route("/readyz", self._ready),
            Route("/openapi.json", self._openapi),
            Route("/fn/{function}", self._function, methods=["POST"]),
        ]
        self._router = Router()
        self.rebuild()
        ctx.directory.on_change = self.rebuild

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    def rebuild(self) -> None:
        """Make the routes anew from the catalogue."""
        routes = list(self._fixed)
        for info in self._ctx.directory.functions.values():
            for binding in info.bindings:
                if binding.kind != "http":
                    continue
                try:
                    trigger: Any = parse_trigger(binding)
                except TrineError as error:
                    log.warning("route_refused", binding=binding.id, error=error.message)
                    continue
                call = _handler(self._call, info, trigger.timeout)
                routes.append(Route(trigger.path, call, methods=[trigger.method]))
        routes.sort(key=lambda route: (route.path.count("{"), route.path))  # literal paths first
        self._router = Router([*routes, _Missing(routes)])

    # --- calls ---------------------------------------------------------------------------------

    async def _function(self, request: Request) -> Response:
        try:
            function = wire.function_id(request.path_params.pop("function"))
        except TrineError as error:
            return error_response(NotFoundError(error.message))
        info = self._ctx.directory.functions.get(function, FunctionInfo(id=function))
        return await self._call(request, info, info.timeout or CALL_SECONDS)

    async def _call(self, request: Request, info: FunctionInfo, timeout: float) -> Response:
        try:
            payload = await read_payload(request, info.input_schema)
        except TrineError as error:
            return error_response(error)
        except ClientDisconnect:
            return Response(status_code=499)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when_hung_up, request, tasks.cancel_scope)
            response = await self._answer(request, info, payload, timeout)
            tasks.cancel_scope.cancel()
            return response
        return Response(status_code=499)

    async def _answer(
        self, request: Request, info: FunctionInfo, payload: bytes, timeout: float
    ) -> Response:
        trace = request.headers.get(wire.TRACEPARENT) or new_traceparent()
        try:
            output = await self._ctx.client.call_bytes(
                info.id, payload, timeout=timeout, traceparent=trace
            )
        except TrineError as error:
            return error_response(error)
        return Response(output, media_type="application/json", headers={wire.TRACEPARENT: trace})

    # --- the gateway's own routes --------------------------------------------------------------

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _request: Request) -> Response:
        connected = self._ctx.client.bus.connection.is_connected
        functions = len(self._ctx.directory.functions)
        ready = connected and functions > 0
        body = {"ready": ready, "nats": connected, "functions": functions}
        return JSONResponse(body, status_code=200 if ready else 503)

    async def _openapi(self, request: Request) -> Response:
        server = str(request.base_url).rstrip("/")
        return JSONResponse(describe(self._ctx.directory.functions.values(), server))


class _Missing(Route):
    """The last route: 404, or 405 with the methods that the path has, as JSON like any error."""

    def __init__(self, routes: list[Route]) -> None:
        super().__init__("/{path:path}", self._answer)
        self.methods = None
        self._routes = routes

    def _answer(self, request: Request) -> Response:
        allowed = sorted(
            method
            for route in self._routes
            if route.matches(request.scope)[0] is not Match.NONE
            for method in route.methods or ()
        )
        if not allowed:
            return error_response(NotFoundError(f"no route {request.url.path}"))
        error = BadRequestError(f"{request.url.path} takes {', '.join(allowed)}")
        response = error_response(error, status=405)
        response.headers["Allow"] = ", ".join(allowed)
        return response


async def _cancel_when_hung_up(request: Request, scope: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _handler(
    call: Callable[[Request, FunctionInfo, float], Awaitable[Response]],
    info: FunctionInfo,
    timeout: float,
) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await call(request, info, timeout)

    return handle


async def read_payload(request: Request, schema: dict[str, Any]) -> bytes:
    """Return body, query and path parameters as one JSON object.

    A body alone is passed on as it came: the function validates it once.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise TooLargeError(f"the body is above {BODY_LIMIT} bytes", limit=BODY_LIMIT)
    if not request.path_params and not request.query_params:
        return bytes(body) or b"{}"
    merged = _object(bytes(body))
    lists = {
        name for name, part in schema.get("properties", {}).items() if part.get("type") == "array"
    }
    for name in request.query_params:
        values = request.query_params.getlist(name)
        merged[name] = values if name in lists or len(values) > 1 else values[0]
    merged.update(request.path_params)
    return wire.dumps(merged)


def _object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInputError("the body must be a JSON object")
    return value


def error_response(error: TrineError, *, status: int | None = None) -> Response:
    """The error as JSON: ``code`` and ``message``, and ``error`` and the details for old agents."""
    body = {
        **error.details,
        "error": error.message,
        "code": error.code,
        "message": error.message,
        "details": error.details,
    }
    return Response(
        wire.dumps(body), status_code=status or error.status, media_type="application/json"
    )


# --- the server --------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: the program that runs the gateway handles them."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"port {port} on {host} is taken: choose another with --port", port=port
            ) from error
        raise BadRequestError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


async def serve(ctx: GatewayContext) -> None:
    """Serve until cancelled; open requests then have a moment to end."""
    listener = _listen(ctx.host, ctx.port)
    config = uvicorn.Config(
        Gateway(ctx),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    server = _Server(config)
    with listener:
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                with anyio.CancelScope(shield=True):  # ends by should_exit, in its own order
                    await server.serve([listener])

            tasks.start_soon(run)
            ctx.ready(f"http://{ctx.host}:{listener.getsockname()[1]}")
            try:
                await anyio.sleep_forever()
            finally:
                server.should_exit = True
