"""Where: which payloads a filter lets through, and which filters are refused."""

import json
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trine_triggers.where import Where, matches, validate

adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(Where)
names = st.text("abc", min_size=1, max_size=3)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 1000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)
payloads = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
ORDER = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}
conditions = st.one_of(
    scalars,
    st.lists(scalars, max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            **{name: st.integers() | st.text(max_size=3) for name in ORDER},
            "ne": scalars,
            "in": st.lists(scalars, max_size=3),
            "exists": st.booleans(),
            "prefix": st.text(max_size=3),
        },
    ).filter(bool),
)
filters = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map(".".join), conditions, max_size=4
)


@given(filters, payloads)
def test_a_filter_that_is_taken_never_fails_and_survives_json(where, payload):
    assert validate(where) == where
    verdict = matches(where, payload)
    assert verdict in (True, False)
    again = adapter.validate_json(adapter.dump_json(where))
    assert matches(again, json.loads(json.dumps(payload))) == verdict


@given(filters, filters, payloads)
def test_conditions_add_up(one, other, payload):
    both = {**one, **{path: other[path] for path in other.keys() - one.keys()}}
    rest = {path: other[path] for path in other.keys() - one.keys()}
    assert matches(both, payload) == (matches(one, payload) and matches(rest, payload))


@given(names, scalars, scalars)
def test_equal_and_ne_are_opposites(name, value, wanted):
    assert matches({name: wanted}, {name: value}) != matches({name: {"ne": wanted}}, {name: value})


@given(names, st.integers(), st.integers(), st.sampled_from(sorted(ORDER)))
def test_numbers_are_ordered(name, value, bound, how):
    assert matches({name: {how: bound}}, {name: value}) == ORDER[how](value, bound)


@given(names, scalars, st.lists(scalars, max_size=4))
def test_in_is_equal_to_any(name, value, choices):
    expected = any(matches({name: one}, {name: value}) for one in choices)
    assert matches({name: {"in": choices}}, {name: value}) == expected


@given(st.lists(names, min_size=1, max_size=4), scalars)
def test_a_path_leads_to_a_nested_field(path, value):
    payload: Any = value
    for part in reversed(path):
        payload = {part: payload}
    assert matches({".".join(path): value}, payload)
    assert matches({".".join(path): {"exists": True}}, payload)
    assert not matches({".".join([*path, "deeper"]): {"exists": True}}, payload)


@pytest.mark.parametrize(
    ("where", "payload", "expected"),
    [
        ({}, None, True),
        ({"a": 1}, {"a": True}, False),  # as in JSON, true is not 1
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": None}, {}, True),  # a missing field equals null
        ({"a": {"exists": True}}, {"a": None}, True),
        ({"a": {"exists": False}}, {"a": None}, False),
        ({"a": {"ne": 1}}, {}, True),
        ({"a": {"gt": 1}}, {}, False),
        ({"a": {"gt": 1}}, {"a": "2"}, False),
        ({"a": {"gt": 0}}, {"a": True}, False),
        ({"at": {"ge": "2026-11-22"}}, {"at": "2026-11-23T00:00:00Z"}, True),
        ({"a": {"gt": 1, "lt": 3}}, {"a": 2}, True),
        ({"a": {"gt": 1, "lt": 3}}, {"a": 3}, False),
        ({"a": {"prefix": "exp-"}}, {"a": "exp-7"}, True),
        ({"a": {"prefix": "exp-"}}, {"a": 7}, False),
        ({"a": [1, 2]}, {"a": [1, 2]}, True),
        ({"a": {"in": [[1], None]}}, {}, True),
        ({"a.b": 1}, "text", False),
    ],
)
def test_what_a_filter_means(where, payload, expected):
    assert matches(adapter.validate_python(where), payload) == expected


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"a": {"above": 1}}, "no operator 'above'"),
        ({"a": {}}, "an object holds operators"),
        ({"a": {"gt": None}}, "takes a number or a text"),
        ({"a": {"lt": True}}, "takes a number or a text"),
        ({"a": {"in": "abc"}}, "takes a list"),
        ({"a": {"in": list(range(300))}}, "at most 256"),
        ({"a": {"exists": 1}}, "true or false"),
        ({"a": {"prefix": 1}}, "takes a text"),
        ({"a..b": 1}, "path of a field"),
        ({"": 1}, "path of a field"),
        ({".".join("a" * 20): 1}, "path of a field"),
        ({"a" * 300: 1}, "path of a field"),
        ({f"a{n}": 1 for n in range(40)}, "at most 32"),
        ({"a": float("nan")}, "not a JSON number"),
        ({"a": {"le": float("inf")}}, "not a JSON number"),
        ({"a": object()}, "JSON"),
        (["a"], "dict"),
    ],
)
def test_a_filter_that_cannot_be_evaluated_is_refused(where, reason):
    with pytest.raises(ValidationError) as refused:
        adapter.validate_python(where)
    assert reason.lower() in str(refused.value).lower()
