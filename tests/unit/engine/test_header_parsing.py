"""Headers as NATS writes them."""

from hypothesis import given
from hypothesis import strategies as st

from trine.connection import _one_line
from trine.wire import parse_headers

names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True).filter(
    lambda name: name not in ("Status", "Description")
)
texts = st.text(st.characters(blacklist_categories=("Cc", "Cs"))).map(str.strip)


def raw(headers: dict[str, str], status: str = "") -> bytes:
    lines = "".join(f"{name}: {_one_line(text)}\r\n" for name, text in headers.items())
    return f"NATS/1.0{status}\r\n{lines}\r\n".encode()


@given(st.dictionaries(names, texts))
def test_what_was_written_is_read(headers):
    assert parse_headers(raw(headers)) == headers


@given(names, st.text())
def test_no_value_can_add_a_header(name, text):
    parsed = parse_headers(raw({name: text}))
    assert parsed is not None
    assert set(parsed) == {name}


def test_no_headers_are_none():
    assert parse_headers(b"") is None


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
