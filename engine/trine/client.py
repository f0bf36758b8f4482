"""The client: everything that a program outside a function can ask of the system."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self, TypeVar

from trine import discovery
from trine.bus import Bus
from trine.calls import Calls
from trine.objects import Objects
from trine.scope import Scope
from trine.sending import Sends
from trine.state import Store
from trine.transaction import Transaction
from trine.transport.connection import Connection, connect
from trine.wire import Names

M = TypeVar("M")


class Client(Calls, Sends):
    """Calls, jobs, events, state and objects, over one connection.

    ``async with Client.connect() as client`` finds the server that ``trine up`` started here, or
    takes ``TRINE_NATS``; inside a function the context does the same things.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.objects = Objects(bus)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str | None = None, *, namespace: str | None = None, name: str = "trine"
    ) -> AsyncIterator[Self]:
        """Connect to *url*; `UnavailableError` says how to get a server when there is none."""
        space = namespace or os.environ.get("TRINE_NAMESPACE", "trine")
        async with connect(url or discovery.server_url(), name) as connection:
            yield cls.over(connection, space)

    @classmethod
    def over(cls, connection: Connection, namespace: str = "trine") -> Self:
        """Return a client on an open connection."""
        return cls(Bus(connection, Names(namespace)))

    def state(self, scope: Scope[M]) -> Store[M]:
        """Return the store of *scope*."""
        return Store(self.bus, scope)

    def transaction(self) -> Transaction:
        """Start a transaction over any scopes, jobs and events."""
        return Transaction(self.bus)
