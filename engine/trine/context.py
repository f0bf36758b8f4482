"""What a handler is given beside its payload."""

from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from trine.calls import Calls
from trine.errors import UsageError
from trine.invocation import Invocation
from trine.jobs.results import put_progress
from trine.scope import Scope
from trine.sending import Sends

if TYPE_CHECKING:
    from trine.client import Client
    from trine.state import Store
    from trine.transaction import Transaction

M = TypeVar("M")


class Context(Calls, Sends):
    """One invocation: who it is, and what it may use; calls, sends and emits as a client does.

    Calls made while it runs end when the caller's time is over, and say which invocation caused
    them.
    """

    __slots__ = ("bus", "client", "invocation")

    def __init__(self, client: "Client", invocation: Invocation) -> None:
        self.client = client
        self.bus = client.bus
        self.invocation = invocation

    @property
    def id(self) -> str:
        """The id of this invocation."""
        return self.invocation.id

    @property
    def attempt(self) -> int:
        """1, or more when a durable message is delivered again."""
        return self.invocation.attempt

    @property
    def log(self) -> Any:
        """A structlog logger that names the function and the invocation."""
        return structlog.get_logger("trine").bind(
            function=self.invocation.function, invocation=self.invocation.id
        )

    async def progress(self, value: Any) -> None:
        """Say how far this job is: the latest is what `Job.progress` gives, for a day.

        `UsageError` where no job runs.
        """
        facts = self.invocation.facts
        if "job" not in facts or "queue" not in facts:
            raise UsageError(f"{self.invocation.function} does not run for a job: no progress")
        await put_progress(self.bus, facts["queue"], facts["job"], value)

    def state(self, scope: Scope[M]) -> "Store[M]":
        """Return the store of *scope*."""
        return self.client.state(scope)

    def transaction(self) -> "Transaction":
        """Start a transaction over any scopes, jobs and events."""
        return self.client.transaction()
