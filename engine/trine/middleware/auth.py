"""Auth: let only callers with a known token in."""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any

from trine.context import Context
from trine.errors import UnauthorizedError, UsageError
from trine.middleware import Next


class BearerAuth:
    """Refuses calls that do not carry one of *tokens* as ``Authorization: Bearer <token>``.

    The gateway hands that header on; a caller over NATS passes ``authorization`` as a header. Runs
    by triggers and jobs pass: whoever could bind or enqueue them was let in before. Tokens are
    kept hashed and compared in constant time.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._hashes = [hashlib.sha256(token.encode()).digest() for token in tokens if token]
        if not self._hashes:
            raise UsageError("BearerAuth needs at least one token")

    async def __call__(self, ctx: Context, value: Any, call_next: Next) -> Any:
        if ctx.invocation.trigger is None and not self._known(ctx):
            raise UnauthorizedError("this function needs a valid bearer token")
        return await call_next(ctx, value)

    def _known(self, ctx: Context) -> bool:
        scheme, _, token = ctx.invocation.received.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).digest()
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        return scheme.lower() == "bearer" and any(matches)
