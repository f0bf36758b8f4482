"""Replies: JSON, problems (RFC 9457), compression and what browsers of other origins may read."""

import gzip
import math
from collections.abc import Iterable
from typing import Any

import anyio.to_thread
import structlog
from starlette.types import Message, Scope, Send

from trine import wire
from trine.errors import InternalError, TrineError

log = structlog.get_logger("trine")

Headers = list[tuple[bytes, bytes]]
PROBLEM = b"application/problem+json"
JSON = (b"content-type", b"application/json")
_GZIP_LEVEL = 5
_IN_THREAD_BYTES = 64 * 1024  # compressing more than this would hold up the other requests
_PREFLIGHT_SECONDS = b"600"


def problem(error: TrineError, status: int | None = None) -> dict[str, Any]:
    """Return *error* as a problem, with the fields that older agents read beside those of the RFC.

    They are ``error`` and the details themselves; a detail named like one of the others is found
    in ``details`` alone.
    """
    return {
        **error.details,
        "error": error.message,
        "code": error.code,
        "message": error.message,
        "details": error.details,
        "type": f"urn:trine:error:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": status or error.status,
        "detail": error.message,
    }


async def send_error(
    send: Send, error: TrineError, *, status: int | None = None, headers: Iterable[Any] = ()
) -> None:
    """Send *error* as a whole reply; how long to wait is said where that is known."""
    code = status or error.status
    more: Headers = [(b"content-type", PROBLEM), *headers]
    if (seconds := _wait_seconds(error, code)) is not None:
        more.append((b"retry-after", str(seconds).encode()))
    if code == 401:
        more.append((b"www-authenticate", b"HMAC-SHA256"))
    await send_bytes(send, wire.dumps(problem(error, status)), code, more)


def _wait_seconds(error: TrineError, status: int) -> int | None:
    after = error.details.get("after", error.details.get("retry_after"))
    if isinstance(after, int | float) and math.isfinite(after) and after >= 0:
        return math.ceil(after)
    return 1 if status == 429 else None


def internal(error: BaseException) -> TrineError:
    """Return *error* as one of ours; a foreign one is logged, as a fault of the gateway."""
    if isinstance(error, TrineError):
        return error
    log.error("gateway_failed", exc_info=error)
    return InternalError(f"{type(error).__name__} in the gateway")


async def send_bytes(send: Send, body: bytes, status: int, headers: Headers) -> None:
    """Send a whole reply."""
    if status not in (204, 304):
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if status in (204, 304) else body})


async def compressed(body: bytes, accepted: bytes, headers: Headers) -> bytes:
    """Return *body* as the client takes it, and say so in *headers*."""
    headers.append((b"vary", b"accept-encoding"))
    if not _takes_gzip(accepted):
        return body
    headers.append((b"content-encoding", b"gzip"))
    if len(body) > _IN_THREAD_BYTES:
        return await anyio.to_thread.run_sync(lambda: gzip.compress(body, _GZIP_LEVEL, mtime=0))
    return gzip.compress(body, _GZIP_LEVEL, mtime=0)


def _takes_gzip(accepted: bytes) -> bool:
    for part in accepted.lower().split(b","):
        name, _, quality = part.partition(b";")
        if name.strip() in (b"gzip", b"x-gzip", b"*"):
            return quality.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False


# --- other origins -----------------------------------------------------------------------------


def allowed_origin(cors: tuple[str, ...], origin: bytes | None) -> bytes | None:
    """Return what to allow *origin* with; None when it may not read replies."""
    if not cors or origin is None:
        return None
    if "*" in cors:
        return b"*"
    return origin if origin.decode("latin-1") in cors else None


def for_origin(send: Send, allowed: bytes) -> Send:
    """Return *send* with every reply readable by the allowed origin."""

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] += _origin_headers(allowed)
            message["headers"].append((b"access-control-expose-headers", b"*"))
        await send(message)

    return wrapped


async def send_preflight(send: Send, scope: Scope, allowed: bytes, methods: list[str]) -> None:
    """Answer what a browser asks before it sends a request from another origin."""
    wanted = dict(scope["headers"]).get(b"access-control-request-headers", b"")
    headers = [
        *_origin_headers(allowed),
        (b"access-control-allow-methods", ", ".join(methods).encode()),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    if wanted:
        headers.append((b"access-control-allow-headers", wanted))
    await send_bytes(send, b"", 204, headers)


def _origin_headers(allowed: bytes) -> Headers:
    headers: Headers = [(b"access-control-allow-origin", allowed)]
    if allowed != b"*":
        headers.append((b"vary", b"origin"))
    return headers
