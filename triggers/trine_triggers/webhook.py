"""Webhook: an HTTP route whose sender proves by a signature that it knows a secret."""

import hashlib
import hmac
import os
import re
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from trine import Client, wire
from trine.errors import UnauthorizedError, UnavailableError, WriteConflictError
from trine_triggers.http import Http

_TIMESTAMPED = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})")
_GITHUB = re.compile(r"sha256=([0-9a-f]{64})")


class Webhook(Http):
    """``Webhook("/hooks/github", secret_env="GITHUB_SECRET", scheme="github")``: a signed POST.

    HMAC-SHA256 over the body as it came, compared in constant time; a bad signature is a 401 and
    nothing runs. *secret_env* names the variable that holds the secret where the gateway runs: the
    secret itself is in no catalogue. Scheme ``trine``: ``t=<unix seconds>,v1=<hex>`` over
    ``<t>.<body>``, at most *tolerance* seconds old, and accepted once. Scheme ``github``:
    ``sha256=<hex>`` over the body; it has no time, so a repeated request is accepted again.
    """

    secret_env: str = Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    scheme: Literal["trine", "github"] = "trine"
    header: str = ""
    tolerance: float = Field(default=300.0, gt=0, le=86_400)  # seconds

    def __init__(self, path: str, **data: Any) -> None:
        data.pop("method", None)  # a catalogue entry has it
        super().__init__("POST", path, **data)

    @field_validator("header", mode="after")
    @classmethod
    def _header(cls, value: str) -> str:
        return value.lower()

    @property
    def signature_header(self) -> str:
        """The header that carries the signature, in lower case."""
        usual = "x-hub-signature-256" if self.scheme == "github" else "trine-signature"
        return self.header or usual

    async def admit(self, client: Client, headers: Mapping[str, str], body: bytes) -> None:
        """`UnauthorizedError` unless the request is signed; `UnavailableError` without secret."""
        secret = os.environ.get(self.secret_env, "")
        if not secret:
            raise UnavailableError(f"the gateway has no {self.secret_env}: set it where it runs")
        given = headers.get(self.signature_header, "")
        if self.scheme == "github":
            found = _GITHUB.fullmatch(given)
            if found is None or not _same(secret, body, found[1]):
                raise UnauthorizedError("the signature is missing or wrong")
            return
        found = _TIMESTAMPED.fullmatch(given)
        if found is None or not _same(secret, f"{found[1]}.".encode() + body, found[2]):
            raise UnauthorizedError("the signature is missing or wrong")
        if abs(time.time() - int(found[1])) > self.tolerance:
            raise UnauthorizedError("the signature is too old, or of the future")
        await self._once(client, found[2])

    async def _once(self, client: Client, signature: str) -> None:
        """Refuse a signature that any gateway has seen; they share what they saw."""
        digest = hashlib.sha256(f"{self.path} {signature}".encode()).hexdigest()
        seconds = int(2 * self.tolerance) + 1  # it may be from the future by as much as it is old
        once = {wire.TTL: f"{seconds}s", wire.EXPECTED_SEQUENCE: "0"}
        try:
            await client.bus.store(client.bus.names.lease(f"webhook.{digest}"), b"", once)
        except WriteConflictError as error:
            raise UnauthorizedError("the request was accepted before: sign each anew") from error


def sign(secret: str, body: bytes, at: float | None = None) -> str:
    """Return the value of the header that scheme ``trine`` asks for, as its sender makes it."""
    seconds = int(time.time() if at is None else at)
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256)
    return f"t={seconds},v1={digest.hexdigest()}"


def _same(secret: str, content: bytes, given: str) -> bool:
    wanted = hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()
    return hmac.compare_digest(wanted, given)
