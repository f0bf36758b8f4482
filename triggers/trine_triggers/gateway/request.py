"""One request, as the parts of the gateway pass it on."""

from dataclasses import dataclass

from starlette.types import Receive, Scope, Send


@dataclass(slots=True)
class Request:
    """What came, and the way back."""

    scope: Scope
    receive: Receive
    send: Send
    headers: dict[bytes, bytes]  # lower-case names; of a repeated one the last

    def text(self, header: bytes) -> str:
        """Return a header as text; empty when it is absent."""
        return self.headers.get(header, b"").decode("latin-1")
