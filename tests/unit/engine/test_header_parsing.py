"""Headers as NATS writes them."""

from hypothesis import given
from hypothesis import strategies as st

from trine.transport.protocol import publish
from trine.wire import parse_headers

names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True).filter(
    lambda name: name not in ("Status", "Description")
)
texts = st.text(st.characters(blacklist_categories=("Cc", "Cs"))).map(str.strip)


def raw(headers: dict[str, str]) -> bytes:
    command, _ = publish("subject", "", headers, 0)
    return command.partition(b"\r\n")[2]


@given(st.dictionaries(names, texts, min_size=1))
def test_what_was_written_is_read(headers):
    assert parse_headers(raw(headers)) == headers


@given(names, st.text())
def test_no_value_can_add_a_header(name, text):
    parsed = parse_headers(raw({name: text}))
    assert parsed is not None
    assert set(parsed) == {name}


def test_no_headers_are_none():
    assert parse_headers(b"") is None
    assert parse_headers(b"NATS/1.0\r\n\r\n") == {}


def test_a_colon_ends_the_name_and_blanks_around_a_value_are_dropped():
    assert parse_headers(b"NATS/1.0\r\nA:b: c\r\nD: \t e \r\nno colon\r\n\r\n") == {
        "A": "b: c",
        "D": "e",
    }


def test_an_inline_status_is_a_header():
    assert parse_headers(b"NATS/1.0 503\r\n\r\n") == {"Status": "503"}
    assert parse_headers(b"NATS/1.0 409 Consumer Deleted\r\nA: b\r\n\r\n") == {
        "Status": "409",
        "Description": "Consumer Deleted",
        "A": "b",
    }


@given(st.binary())
def test_garbage_does_not_raise(garbage):
    parse_headers(b"NATS/1.0" + garbage)
