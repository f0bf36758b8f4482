"""What the server sends is read as it was sent, wherever it is cut; anything else is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError

from trine.transport.protocol import LINE_LIMIT, MESSAGE_LIMIT, Message, Parser, publish


class Heard:
    """Keeps what the parser reports."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, ...]] = []
        self.parser = Parser(self)

    def message(self, sid: int, subject: bytes, reply: bytes, head: bytes, payload: bytes) -> None:
        self.operations.append((sid, subject, reply, head, payload))

    def ping(self) -> None:
        self.operations.append(("ping",))

    def pong(self) -> None:
        self.operations.append(("pong",))

    def error(self, text: str) -> None:
        self.operations.append(("error", text))

    def info(self, facts: dict[str, Any]) -> None:
        self.operations.append(("info", facts))


subjects = st.from_regex(rb"[A-Za-z0-9_$*.>-]{1,40}", fullmatch=True)
heads = st.one_of(
    st.just(b""), st.binary(max_size=60).map(lambda text: b"NATS/1.0" + text + b"\r\n\r\n")
)
payloads = st.one_of(
    st.binary(max_size=200), st.sampled_from([b"", b"\r\n", b"PING\r\n", b"MSG a 1 2\r\n", b"\r"])
)
messages = st.tuples(
    st.integers(0, 10**9), subjects, st.one_of(st.just(b""), subjects), heads, payloads
)
others = st.sampled_from(
    [("ping",), ("pong",), ("error", "'Unknown Protocol Operation'"), ("info", {"max_payload": 7})]
)
WIRE = {
    "ping": b"PING\r\n",
    "pong": b"PONG\r\n",
    "error": b"-ERR 'Unknown Protocol Operation'\r\n",
    "info": b'INFO {"max_payload":7}\r\n+OK\r\n',
}


def written(operation: tuple[Any, ...]) -> bytes:
    if operation[0] in WIRE:
        return WIRE[operation[0]]
    sid, subject, reply, head, payload = operation
    reply = reply + b" " if reply else b""
    if head:
        sizes = b"%d %d" % (len(head), len(head) + len(payload))
        return b"HMSG %s %d %s%s\r\n%s%s\r\n" % (subject, sid, reply, sizes, head, payload)
    return b"MSG %s %d %s%d\r\n%s\r\n" % (subject, sid, reply, len(payload), payload)


@given(st.lists(messages | others, max_size=20), st.data())
def test_operations_cut_anywhere_are_read_as_they_were_sent(operations, data):
    stream = b"".join(map(written, operations))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=30).map(sorted))
    heard = Heard()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        heard.parser.feed(stream[start:end])
    assert heard.operations == operations


def test_a_message_may_be_cut_at_every_byte():
    operations = [
        (1, b"a.b", b"", b"", b"one\r\ntwo"),
        (22, b"c", b"_INBOX.x.1", b"NATS/1.0 503\r\n\r\n", b""),
        ("ping",),
        (3, b"d", b"r", b"NATS/1.0\r\nA: b\r\n\r\n", b"\x00\xff"),
    ]
    stream = b"".join(map(written, operations))
    for cut in range(len(stream)):
        heard = Heard()
        heard.parser.feed(stream[:cut])
        heard.parser.feed(stream[cut:])
        assert heard.operations == operations
    heard = Heard()
    for byte in stream:
        heard.parser.feed(bytes([byte]))
    assert heard.operations == operations


@given(st.lists(st.binary(min_size=1, max_size=400), max_size=30))
def test_garbage_ends_the_reading_or_is_kept_within_its_limit(chunks):
    heard = Heard()
    try:
        for chunk in chunks:
            heard.parser.feed(chunk)
    except ProtocolError:
        return
    assert sum(map(len, heard.parser._kept)) <= sum(map(len, chunks))


@pytest.mark.parametrize(
    "line",
    [
        b"\r\n",
        b"HELLO\r\n",
        b"msg a 1 2\r\n",
        b"MSG a 1\r\n",
        b"MSG a 1 r r 2\r\n",
        b"MSG a one 2\r\nab\r\n",
        b"MSG a 1 two\r\n",
        b"MSG a 1 -2\r\n",
        b"MSG a 1 2\r\nabc\r\n",
        b"HMSG a 1 9 2\r\n",
        b"HMSG a 1 -1 2\r\n",
        b"HMSG a 1 2\r\n",
        b"INFO {\r\n",
        b"INFO []\r\n",
        b"MSG a 1 %d\r\n" % (MESSAGE_LIMIT + 1),
        b"MSG a 1 %s\r\n" % (b"9" * 5000),
        b"\xff" * (LINE_LIMIT + 1),
    ],
)
def test_what_is_no_protocol_is_refused_at_once(line):
    heard = Heard()
    with pytest.raises(ProtocolError):
        heard.parser.feed(line)
    assert heard.operations == []


def test_an_endless_line_is_refused_once_it_is_too_long():
    heard = Heard()
    for _ in range(LINE_LIMIT // 1024):
        heard.parser.feed(b"x" * 1024)
    with pytest.raises(ProtocolError):
        heard.parser.feed(b"x" * 1024)


def test_a_large_message_in_many_pieces_is_put_together_once():
    payload = bytes(range(256)) * 4096
    stream = written((5, b"big", b"", b"", payload)) + b"PING\r\n"
    heard = Heard()
    for start in range(0, len(stream), 1500):
        heard.parser.feed(stream[start : start + 1500])
    assert heard.operations == [(5, b"big", b"", b"", payload), ("ping",)]
    assert heard.parser._kept == []


names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True)


@given(subjects, st.dictionaries(names, st.text(), max_size=5), st.binary(max_size=50))
def test_what_is_published_counts_its_own_bytes(subject, headers, payload):
    command, total = publish(subject.decode(), "", headers, len(payload))
    line, _, head = command.partition(b"\r\n")
    words = line.split()
    assert words[1] == subject
    assert int(words[-1]) == total == len(head) + len(payload)
    assert words[0] == (b"HPUB" if headers else b"PUB")
    if headers:
        assert int(words[-2]) == len(head)


def test_a_message_says_what_nats_py_says_of_one():
    head = b"NATS/1.0 404 No Messages\r\nA: b\r\n\r\n"
    message = Message(None, "a.ü".encode(), b"$JS.ACK.s.c.1.22.3.1700000000000000000.0", head, b"x")
    assert (message.subject, message.data) == ("a.ü", b"x")
    assert message.headers == {"Status": "404", "Description": "No Messages", "A": "b"}
    assert message.header is message.headers
    assert message.metadata.sequence.stream == 22
    assert not message.is_acked
    assert Message(None, b"a", b"", b"", b"").headers is None
    assert Message(None, b"a", b"", b"", b"").reply == ""
    assert "404" in repr(message)
