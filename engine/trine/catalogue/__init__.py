"""The catalogue: who serves what, told by workers and by services of other languages."""

from trine.catalogue.announce import (
    PRESENCE_SECONDS,
    BindingInfo,
    Document,
    FunctionInfo,
    WorkerInfo,
    presence,
    publish,
    read,
    renew,
    serving,
    workers,
)

__all__ = [
    "PRESENCE_SECONDS",
    "BindingInfo",
    "Document",
    "FunctionInfo",
    "WorkerInfo",
    "presence",
    "publish",
    "read",
    "renew",
    "serving",
    "workers",
]
