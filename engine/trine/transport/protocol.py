"""The wire protocol of a NATS client: what the server sends, and how a message is published."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from nats.aio.msg import Msg
from nats.errors import ProtocolError

from trine import wire

LINE_LIMIT = 64 * 1024  # bytes; the longest are the INFO lines of a large cluster
MESSAGE_LIMIT = 64 * 1024 * 1024  # bytes, headers included: no server can be told to take more


class Receiver(Protocol):
    """Who is told what the server sent. None of these may raise."""

    def message(self, sid: int, subject: bytes, reply: bytes, head: bytes, payload: bytes) -> None:
        """A message; *head* is empty when it has no headers."""

    def ping(self) -> None: ...
    def pong(self) -> None: ...
    def error(self, text: str) -> None: ...
    def info(self, facts: dict[str, Any]) -> None: ...


class Parser:
    """Cuts a stream of bytes, however it arrives, into operations.

    It keeps no more than one incomplete operation, whose size is limited: a message by
    `MESSAGE_LIMIT`, any other line by `LINE_LIMIT`.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._message = receiver.message
        self._kept: list[bytes] = []  # of the incomplete operation
        self._kept_size = 0
        self._needed = 0  # bytes of it before another look is worth while

    def feed(self, data: bytes) -> None:
        """Report every operation that *data* completes.

        `ProtocolError` when this is not the protocol; then the stream cannot be read any further.
        """
        if self._kept:
            self._kept.append(data)
            self._kept_size += len(data)
            if self._kept_size < self._needed:
                return
            data = b"".join(self._kept)
            self._kept = []
        position = 0
        end = len(data)
        while position < end:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                if end - position > LINE_LIMIT:
                    raise ProtocolError
                self._keep(data, position, end - position + 1)
                return
            words = data[position:line_end].split()
            start = line_end + 2
            try:
                operation = words[0]
                if operation == b"HMSG":
                    if len(words) == 6:
                        _, subject, sid, reply, head_digits, digits = words
                    else:
                        _, subject, sid, head_digits, digits = words
                        reply = b""
                    size = int(digits)
                    head_size = int(head_digits)
                elif operation == b"MSG":
                    if len(words) == 5:
                        _, subject, sid, reply, digits = words
                    else:
                        _, subject, sid, digits = words
                        reply = b""
                    size = int(digits)
                    head_size = 0
                else:
                    self._other(operation, data[position:line_end])
                    position = start
                    continue
                number = int(sid)
            except (ValueError, IndexError) as error:
                raise ProtocolError from error
            if not 0 <= head_size <= size <= MESSAGE_LIMIT:
                raise ProtocolError
            stop = start + size
            if stop + 2 > end:
                self._keep(data, position, stop + 2 - position)
                return
            if not data.startswith(b"\r\n", stop):
                raise ProtocolError
            position = stop + 2
            if head_size:
                middle = start + head_size
                self._message(number, subject, reply, data[start:middle], data[middle:stop])
            else:
                self._message(number, subject, reply, b"", data[start:stop])

    def _keep(self, data: bytes, position: int, needed: int) -> None:
        self._kept = [data[position:]]
        self._kept_size = len(data) - position
        self._needed = needed

    def _other(self, operation: bytes, line: bytes) -> None:
        if operation == b"PING":
            self._receiver.ping()
        elif operation == b"PONG":
            self._receiver.pong()
        elif operation == b"-ERR":
            self._receiver.error(line[4:].strip().decode(errors="replace"))
        elif operation == b"INFO":
            facts = json.loads(line[4:])  # a ValueError when it is none
            if not isinstance(facts, dict):
                raise ProtocolError
            self._receiver.info(facts)
        elif operation != b"+OK":
            raise ProtocolError


class Message(Msg):
    """A message as nats-py has it; subject and headers are decoded when they are asked for."""

    __slots__ = ("_client", "_head", "_headers", "_subject", "data", "reply")

    def __init__(
        self, client: Any, subject: bytes, reply: bytes, head: bytes, payload: bytes
    ) -> None:
        self._client = client
        self._subject = subject
        self.reply = reply.decode(errors="replace") if reply else ""
        self._head = head
        self._headers: dict[str, str] | None = None
        self.data = payload

    @property
    def subject(self) -> str:  # type: ignore[override]
        return self._subject.decode(errors="replace")

    @property
    def headers(self) -> dict[str, str] | None:  # type: ignore[override]
        """The headers, with an inline status as ``Status`` and ``Description``; None without."""
        if self._headers is None and self._head:
            self._headers = wire.parse_headers(self._head)
        return self._headers

    def __repr__(self) -> str:
        return f"Message({self.subject!r}, {self.reply!r}, {self.headers!r}, {self.data!r})"


def publish(
    subject: str, reply: str, headers: Mapping[str, str] | None, size: int
) -> tuple[bytes, int]:
    """Return the command before a payload of *size* bytes, and the bytes that the server counts."""
    if not headers:
        return f"PUB {subject} {reply} {size}\r\n".encode(), size
    lines = "".join([f"{name}: {text}\r\n" for name, text in headers.items()])
    count = len(headers)
    if lines.count("\n") != count or lines.count("\r") != count:  # else a value could add a header
        lines = "".join([f"{_line(name)}: {_line(text)}\r\n" for name, text in headers.items()])
    length = 12 + (len(lines) if lines.isascii() else len(lines.encode()))
    total = length + size
    command = f"HPUB {subject} {reply} {length} {total}\r\nNATS/1.0\r\n{lines}\r\n"
    return command.encode(), total


def _line(text: str) -> str:
    return " ".join(text.splitlines())
