"""Names, ids, keys and errors on the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trine import wire
from trine.errors import (
    ConflictError,
    InternalError,
    InvalidInputError,
    RemoteError,
    RetryLater,
    TrineError,
    UsageError,
)
from trine.wire import Names

word = st.from_regex(r"[a-z0-9_]+", fullmatch=True)
ids = st.builds(
    lambda first, rest: ".".join([first, *rest]),
    st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True),
    st.lists(word, max_size=3),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(ids)
def test_both_spellings_of_an_id_are_one_function(value):
    assert wire.function_id(value) == wire.function_id(value.replace(".", "::")) == value


@pytest.mark.parametrize("value", ["", "A.b", "a..b", ".a", "a.", "a b", "a-b", "1a", "a.>", "a\n"])
def test_an_id_that_no_subject_can_hold_is_refused(value):
    with pytest.raises(UsageError):
        wire.function_id(value)


@pytest.mark.parametrize("value", ["a", "a.b", "a/b", "A-1_=.x", "x" * 256])
def test_a_key_is_taken_as_it_is(value):
    assert wire.key(value) == value


@given(st.text())
def test_a_token_is_always_one_token(value):
    token = wire.token(value)
    assert 0 < len(token) <= 128
    assert not set(token) & set(" .*>\t\r\n")
    assert wire.token(token) == token


@pytest.mark.parametrize("namespace", ["", "a.b", "a b", "*", "a>"])
def test_a_namespace_is_one_token(namespace):
    with pytest.raises(UsageError):
        Names(namespace)


def test_every_subject_begins_with_the_namespace():
    names = Names("ns")
    assert names.fn("a.b") == "ns.fn.a.b"
    assert names.on("w", "a.b") == "ns.on.w.fn.a.b"
    assert names.relayed(names.job("q", "any", "low", "1")) == "ns.tx.job.now.q.any.low.1"
    assert names.relayed(names.event("a", "k", "1")) == "ns.tx.event.a.k.1"
    assert names.key_of(names.state("scope", "a.b")) == "scope.a.b"
    assert names.key_of(names.lease("worker.x")) == "worker.x"


@given(st.text(min_size=1), st.dictionaries(st.text(), json_values, max_size=3))
def test_an_error_is_the_same_after_the_wire(message, details):
    for cls in (ConflictError, InvalidInputError):
        error = cls(message)
        error.details = details
        back = wire.decode_error(*wire.encode_error(error))
        assert (type(back), back.message, back.details) == (cls, message, details)
        assert back.status == cls.status


def test_an_exception_that_is_not_ours_is_internal_and_says_its_type():
    headers, body = wire.encode_error(ValueError("wrong"))
    assert headers[wire.ERROR_CODE] == "500"
    back = wire.decode_error(headers, body)
    assert type(back) is InternalError
    assert back.message == "ValueError: wrong"


def test_a_code_that_nobody_knows_is_kept():
    headers = {wire.ERROR: "x", wire.ERROR_CODE: "418"}
    back = wire.decode_error(
        headers, b'{"code": "teapot", "message": "short", "details": {"a": 1}}'
    )
    assert isinstance(back, RemoteError)
    assert (back.code, back.status, back.message, back.details) == (
        "teapot",
        418,
        "short",
        {"a": 1},
    )


@pytest.mark.parametrize("body", [b"", b"plain", b"[]", b'"x"', b'{"code": 1}', b"\xff"])
def test_an_error_of_a_foreign_service_without_our_body_is_internal(body):
    back = wire.decode_error({wire.ERROR: "it broke", wire.ERROR_CODE: "x"}, body)
    assert type(back) is InternalError
    assert back.message == "it broke"


def test_details_that_are_no_object_are_left_out():
    body = b'{"code": "conflict", "message": "m", "details": [1]}'
    assert wire.decode_error({}, body).details == {}


def test_the_line_in_the_header_is_one_short_line():
    headers, _ = wire.encode_error(TrineError("a\r\nb " * 1000))
    assert "\n" not in headers[wire.ERROR]
    assert "\r" not in headers[wire.ERROR]
    assert len(headers[wire.ERROR]) < 600


def test_retry_later_arrives_under_its_code():
    back = wire.decode_error(*wire.encode_error(RetryLater("busy", after=3)))
    assert (back.code, back.status, back.details) == ("retry_later", 503, {"after": 3})


def test_a_subclass_without_a_code_of_its_own_does_not_take_its_parents():
    class OwnError(ConflictError):
        """Somebody's."""

    back = wire.decode_error(*wire.encode_error(OwnError("mine")))
    assert type(back) is ConflictError


def test_a_subclass_with_a_code_arrives_as_itself_whatever_its_constructor():
    class LateError(ConflictError):
        code = "late_for_test"

        def __init__(self, minutes: int) -> None:
            super().__init__(f"{minutes} minutes late", minutes=minutes)

    back = wire.decode_error(*wire.encode_error(LateError(5)))
    assert type(back) is LateError
    assert back.details == {"minutes": 5}


def test_every_code_names_one_class():
    def all_of(root: type[TrineError]) -> list[type[TrineError]]:
        return [root, *(one for cls in root.__subclasses__() for one in all_of(cls))]

    own = [
        c for c in all_of(TrineError)[1:] if c.__module__ == "trine.errors" and "code" in vars(c)
    ]
    assert len({cls.code for cls in own}) == len(own)
