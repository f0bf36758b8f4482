"""What the functions of one process share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trine.client import Client
from trine.middleware import Middleware
from trine.observability.observe import Observed
from trine.serving.inflight import InFlight


@dataclass(slots=True)
class Host:
    """The client, the name and the running calls of a worker, and what surrounds each run."""

    client: Client
    worker: str
    ended: Callable[[], None]  # called after each run
    observed: Observed
    middleware: Sequence[Middleware] = ()
    tracebacks: bool = False  # whether callers are sent the traceback of a failed function
    inflight: InFlight = field(default_factory=InFlight)
