"""The settings of a gateway: read once, from ``TRINE_HTTP_*``."""

import os
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trine.errors import UsageError

PREFIX = "TRINE_HTTP_"


def _listed(value: object) -> object:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


class GatewayOptions(BaseModel):
    """What holds for all routes that do not say otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_limit: int = Field(default=1024 * 1024, ge=0)  # bytes
    upload_limit: int = Field(default=1024 * 1024 * 1024, ge=0)  # bytes of one object
    body_seconds: float = Field(default=30.0, gt=0)  # for a body; for an upload, without a byte
    max_in_flight: int = Field(default=4096, ge=1)  # requests at once
    gzip_bytes: int = Field(default=1024, ge=0)  # compress replies from this size on; 0: none
    cors: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    keep_alive_seconds: float = Field(default=15.0, gt=0)  # between signs of life of a stream
    stall_seconds: float = Field(default=30.0, gt=0)  # until a client that reads nothing is cut

    @classmethod
    def load(cls) -> "GatewayOptions":
        """Read the environment; `UsageError` names what is unknown or out of range."""
        given = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in os.environ.items()
            if name.startswith(PREFIX)
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            known = ", ".join(f"{PREFIX}{name.upper()}" for name in cls.model_fields)
            name = f"{PREFIX}{'.'.join(map(str, first['loc'])).upper()}"
            raise UsageError(f"{name}: {first['msg']} (known: {known})") from error
