"""The settings of one process: read once, at the program's edge."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trine.errors import UsageError

Durability = Literal["always", "100ms", "fast"]


class Settings(BaseModel):
    """What a process needs to know; flags of the command line win over ``TRINE_*``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nats: str | None = None  # URL of a running server; without it one is found or embedded
    namespace: str = "trine"
    store: Path = Path(".trine")  # where the embedded server keeps its data
    host: str = "127.0.0.1"
    port: int = 3111  # HTTP
    durability: Durability = "100ms"  # how soon the embedded server syncs to disk
    trace_sample: float = Field(default=1.0, ge=0, le=1)  # share of the traces that is recorded
    tracebacks: bool = False  # send callers the traceback of a function that failed
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def load(cls, **flags: object) -> "Settings":
        """Read ``TRINE_*``, then *flags* that are not None. An unknown variable is an error."""
        given: dict[str, object] = {}
        for variable, value in os.environ.items():
            theirs = variable in _NOT_OURS or variable.startswith(_GATEWAYS)
            if variable.startswith("TRINE_") and not theirs:
                given[variable.removeprefix("TRINE_").lower()] = value
        given.update({name: value for name, value in flags.items() if value is not None})
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            known = ", ".join(f"TRINE_{name.upper()}" for name in cls.model_fields)
            raise UsageError(f"setting {field!r}: {first['msg']} (known: {known})") from error


# Set by click for completion, and by the worker for the programs that it starts.
_NOT_OURS = {"TRINE_COMPLETE", "TRINE_EXPERIMENT", "TRINE_ATTEMPT", "TRINE_CACHE"}
_GATEWAYS = "TRINE_HTTP_"  # read, and checked, by the gateway
