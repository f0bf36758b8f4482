"""One message of a stream, in the hands of one handler."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from trine.transport.connection import Msg

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as a handler gets it: a large payload has been fetched, and a dead letter that is
    given again shows the subject, headers and sequence that it had at first.
    """

    subject: str
    payload: bytes
    headers: Mapping[str, str]
    attempt: int  # 1 for the first delivery; a redelivery after a death counts too
    sequence: int  # in its stream
    timestamp: float  # unix seconds by the server's clock
    reply: str
    consumer: str = ""

    @classmethod
    def of(cls, message: Msg) -> "Delivery":
        parts = message.reply.split(".")
        if len(parts) > 9:  # newer servers: $JS.ACK.<domain>.<account>.<stream>...
            parts = parts[2:]
        return cls(
            message.subject,
            message.data,
            message.headers or {},
            int(parts[4]),
            int(parts[5]),
            int(parts[7]) / _NS,
            message.reply,
            parts[3],
        )


class NotOursError(Exception):
    """Raised by a handler whose message is in other hands by now: it is not answered at all.

    An acknowledgement from here would end the work of whoever has it.
    """


Handler = Callable[[Delivery], Awaitable[None]]
OnDead = Callable[[Delivery, Exception], Awaitable[None]]
