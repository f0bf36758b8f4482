"""What a handler is given beside its payload."""

from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from trine.invocation import Invocation
from trine.scope import Scope

if TYPE_CHECKING:
    from trine.client import Client
    from trine.events import EventModel
    from trine.state import Store
    from trine.transaction import Transaction

M = TypeVar("M")


class Context:
    """One invocation: who it is, what it may use. A client made for it stands behind every method.

    Calls made through it end when the caller's time is over, and say which invocation caused them.
    """

    def __init__(self, client: "Client", invocation: Invocation) -> None:
        self.client = client
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

    def state(self, scope: Scope[M]) -> "Store[M]":
        return self.client.state(scope)

    def transaction(self) -> "Transaction":
        return self.client.transaction()

    async def call(self, function: Any, value: Any = None, **options: Any) -> Any:
        return await self.client.call(function, value, **options)

    async def send(self, function: Any, value: Any = None, **options: Any) -> Any:
        return await self.client.send(function, value, **options)

    async def emit(self, event: "EventModel", *, id: str | None = None) -> None:
        await self.client.emit(event, id=id)
