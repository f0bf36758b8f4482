"""Http: put a function behind a route of the gateway."""

import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from trine import Trigger
from trine.trigger import GatewayContext, Placement

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
_PATH = re.compile(
    r"/([A-Za-z0-9_.~:-]+|\{[a-z_][a-z0-9_]*\})?(/([A-Za-z0-9_.~:-]+|\{[a-z_][a-z0-9_]*\}))*"
)


class Http(Trigger):
    """``Http("POST", "/api/runs/{run_id}")``: body, query and path parameters make the payload.

    The body is JSON whatever its Content-Type says. The reply is the function's output with 200,
    or its error with the status of the error's class. *timeout* seconds without an answer: 504.
    """

    placement: ClassVar[Placement] = "gateway"

    method: Method
    path: str
    timeout: float = Field(default=30.0, gt=0)

    def __init__(self, method: Method, path: str, **data: Any) -> None:
        super().__init__(method=method, path=path, **data)

    @field_validator("path")
    @classmethod
    def _valid(cls, value: str) -> str:
        if not _PATH.fullmatch(value):
            raise ValueError("a path is /words/and/{parameters}")
        return value

    @classmethod
    async def gateway(cls, ctx: GatewayContext) -> None:
        from trine_triggers.http_server import serve  # only a gateway needs a web server

        await serve(ctx)
