"""The decoders that face the network, as pure functions: a value, or one of our errors."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trine import trigger, wire
from trine.bindings import described as binding
from trine.bus import Bus
from trine.catalogue.foreign import _answer, described
from trine.errors import InvalidInputError, TrineError
from trine.transport.connection import Msg

BUS = cast("Bus", SimpleNamespace(names=wire.Names("t")))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)


def tree(keys: list[str], leaves: Any = SCALARS) -> Any:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=4)
        ),
        max_leaves=12,
    )


INFO = tree(
    ["id", "name", "endpoints", "subject", "metadata", "description", "timeout", "input_schema"],
    SCALARS | st.sampled_from(["t.fn.a.b", "t.fn.A", "t.fn.", "[" * 2000, "1e999", "nan", "-5"]),
)


@given(st.dictionaries(st.sampled_from(["endpoints", "description", "metadata"]), INFO))
def test_what_a_service_says_of_itself_is_functions_or_nothing(said):
    for id, info in described(BUS, said).items():
        assert wire.function_id(id) == id == info.id
        assert info.timeout is None or info.timeout > 0
        assert len(info.doc) <= 10_000


@given(INFO.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50))
def test_an_answer_to_discovery_names_a_service_or_is_none(payload):
    said = _answer(cast("Msg", SimpleNamespace(data=payload)))
    if said is not None:
        assert not any(mark in said["name"] + said["id"] for mark in " .*>\r\n\t")


BODIES = tree(["code", "message", "details", "self", "status", "cls"]).map(
    lambda value: json.dumps(value).encode()
)


@given(
    st.dictionaries(
        st.sampled_from([wire.ERROR, wire.ERROR_CODE, wire.OBJECT]),
        st.text(max_size=10) | st.sampled_from(["404", "²", "9" * 5000, "-1", "0", "600"]),
    ),
    BODIES | st.binary(max_size=40) | st.just(b"[" * 100_000),
)
def test_every_failed_reply_is_one_of_our_errors(headers, body):
    error = wire.decode_error(headers, body)
    assert isinstance(error, TrineError)
    assert 400 <= error.status <= 599
    assert isinstance(error.details, dict)


def test_details_may_have_any_name():
    body = b'{"code": "x", "message": "m", "details": {"message": 1, "code": 2, "self": 3}}'
    error = wire.decode_error({wire.ERROR_CODE: "418"}, body)
    assert (error.code, error.message, error.status) == ("x", "m", 418)
    assert error.details == {"message": 1, "code": 2, "self": 3}


@pytest.mark.parametrize("kind", trigger.kinds())
@settings(deadline=None)  # kinds are imported when they are first asked for
@given(data=st.data())
def test_the_settings_of_every_kind_fit_or_are_refused_with_the_field(kind, data):
    fields = [*trigger.load(kind).model_fields, "self", "data", "unknown"]
    words = st.sampled_from(["@daily", "POST", "/x", "a.b", "*", ">", "q", "1e999", "\x00", "²"])
    values = tree(["a", "eq", "lt"], SCALARS | words)
    config = data.draw(st.dictionaries(st.sampled_from(fields), values, max_size=6))
    refused: list[InvalidInputError] = []
    try:
        info = binding(kind, "some.thing", config, cast("Any", None))
        assert info.id.startswith("data-some-thing--")
        wire.key(info.id)
    except InvalidInputError as error:
        refused.append(error)
    assert all(one["field"] for error in refused for one in error.details["fields"])
