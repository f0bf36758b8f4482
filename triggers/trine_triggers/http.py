"""Http: put a function behind a route of the gateway."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from trine import Client, Trigger, wire
from trine.errors import UsageError
from trine.function import Function
from trine.trigger import GatewayContext, Placement
from trine_triggers.where import Where

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
CONVERSIONS = ("int", "float", "uuid", "str", "path")
PARAMETER = re.compile(rf"\{{([a-z_][a-z0-9_]*)(?::({'|'.join(CONVERSIONS)}))?\}}")
_SEGMENT = re.compile(rf"[A-Za-z0-9_.~:-]+|{PARAMETER.pattern}")
_HEADER = re.compile(r"[a-z0-9][a-z0-9-]*")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+")


class Http(Trigger):
    """``Http("POST", "/api/runs/{run_id:int}")``: path, query, headers and body make the payload.

    The body is JSON whatever its Content-Type says, except the two form types. The reply is the
    function's output with *status*, or its error as ``application/problem+json`` with the status
    of the error's class. A function that streams answers with one JSON line per item, or as
    server-sent events when the client accepts them; *stream* settles which.
    """

    placement: ClassVar[Placement] = "gateway"

    method: Method
    path: str
    timeout: float | None = Field(default=None, gt=0)  # seconds; 30, and for a stream a day
    status: int = Field(default=200, ge=200, le=299)
    headers: dict[str, str] = Field(default_factory=dict)  # header: field, which it alone may set
    body: str | None = None  # the field that the whole body becomes
    body_limit: int | None = Field(default=None, ge=0)  # bytes; None: the gateway's
    stream: Literal["sse", "jsonl"] | None = None  # None: as the client accepts
    where: Where = Field(default_factory=dict)  # unmet: 422
    condition: str | None = None  # a function that is asked first with the payload; false: 422
    max_in_flight: int | None = Field(default=None, ge=1)  # more at once: 429
    cors: tuple[str, ...] = ()  # origins that may call from a browser, or "*"

    def __init__(self, method: Method, path: str, **data: Any) -> None:
        super().__init__(method=method, path=path, **data)

    @field_validator("path")
    @classmethod
    def _valid(cls, value: str) -> str:
        segments = value.split("/")[1:]
        fits = value == "/" or all(_SEGMENT.fullmatch(segment) for segment in segments)
        if not value.startswith("/") or not fits:
            raise ValueError("a path is /words/and/{parameters}, or {one:int}")
        found = [PARAMETER.fullmatch(segment) for segment in segments]
        names = [match[1] for match in found if match]
        if len(set(names)) != len(names):
            raise ValueError("a path parameter appears twice")
        if any(match and match[2] == "path" for match in found[:-1]):
            raise ValueError("a {rest:path} parameter comes last")
        return value

    @field_validator("headers")
    @classmethod
    def _lower(cls, value: dict[str, str]) -> dict[str, str]:
        lowered = {name.lower(): field for name, field in value.items()}
        for name in lowered:
            if not _HEADER.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a header")
        return lowered

    @field_validator("condition")
    @classmethod
    def _function(cls, value: str | None) -> str | None:
        try:
            return None if value is None else wire.function_id(value)
        except UsageError as error:
            raise ValueError(error.message) from error

    @field_validator("cors")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin, such as https://example.org")
        return value

    def check(self, function: Function[Any, Any]) -> None:
        """Refuse names of fields that the function's model does not have."""
        if function.input is None or function.input.model_config.get("extra") == "allow":
            return
        fields = set(function.input_schema.get("properties", ()))
        if not fields:  # a model that is no object, or refers to itself
            return
        named = {*self.headers.values(), *([self.body] if self.body else ())}
        named |= {match[1] for match in PARAMETER.finditer(self.path)}
        if missing := sorted(named - fields):
            raise UsageError(
                f"function {function.id} has no field {missing[0]!r}, which"
                f" {self.method} {self.path} sets; it has {', '.join(sorted(fields))}"
            )

    async def admit(self, client: Client, headers: Mapping[str, str], body: bytes) -> None:
        """Raise to refuse a request before anything is run: for kinds that check who asks.

        *headers* have lower-case names; *body* is what came over the wire, byte for byte.
        """

    @classmethod
    async def gateway(cls, ctx: GatewayContext) -> None:
        from trine_triggers.gateway.server import serve  # only a gateway needs a web server

        await serve(ctx)
