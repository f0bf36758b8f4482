"""Which changes of a signature break callers: over the schemas that pydantic really makes."""

import math
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, create_model

from trine.catalogue.compatibility import breaking


def schema(kind: Any, mode: str = "validation") -> dict[str, Any]:
    model = create_model("Payload", a=(kind, ...))
    return model.model_json_schema(mode=mode)  # type: ignore[arg-type]


def of_input(old: Any, new: Any) -> list[str]:
    return breaking(schema(old), schema(new), {}, {})


def of_output(old: Any, new: Any) -> list[str]:
    return breaking({}, {}, schema(old, "serialization"), schema(new, "serialization"))


class Inner(BaseModel):
    x: int


class Narrower(BaseModel):
    x: int
    y: int


class Wider(BaseModel):
    x: int
    y: int = 0


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    y: int = 0


Inner2 = create_model("Inner", x=(str, ...))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (int, str, "input: a is no longer integer"),
        (int | None, int, "input: a is no longer null"),
        (float, int, "input: a is no longer number"),
        (Any, int, "input: a is no longer anything"),
        (Literal["a", "b"], Literal["a"], "input: a no longer takes ['b']"),
        (str, Literal["a", "b"], "input: a takes ['a', 'b'] alone"),
        (list[int], list[str], "input: a[] is no longer integer"),
        (dict[str, int], dict[str, str], "input: a.* is no longer integer"),
        (Inner, Narrower, "input: a.y is now required"),
        (Inner | None, Narrower | None, "input: a.y is now required"),
        (Inner, Closed, "input: a.x is no longer taken"),
        (Inner, Inner2, "input: a.x is no longer integer"),
        (int, Annotated[int, Field(ge=3)], "input: a has minimum 3"),
        (
            Annotated[str, Field(max_length=9)],
            Annotated[str, Field(max_length=5)],
            "input: a has maxLength 5",
        ),
    ],
)
def test_an_input_that_takes_less_breaks_its_callers(old, new, said):
    assert of_input(old, new) == [said]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (int, int | None),
        (int, float),
        (int, Any),
        (Literal["a"], Literal["a", "b"]),
        (Literal["a"], str),
        (Inner, Wider),
        (Inner, Inner | None),
        (Annotated[int, Field(ge=3)], Annotated[int, Field(ge=2)]),
        (Annotated[int, Field(le=3)], int),
    ],
)
def test_an_input_that_takes_more_breaks_nobody(old, new):
    assert of_input(old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (int, str, "output: a may be string"),
        (int, int | None, "output: a may be null"),
        (int, Any, "output: a may be anything"),
        (Wider, Inner, "output: a.y is gone"),
        (Literal["a"], Literal["a", "b"], "output: a may be ['b']"),
        (list[Inner], list[Inner2], "output: a[].x may be string"),
    ],
)
def test_an_output_that_gives_other_things_breaks_its_callers(old, new, said):
    assert of_output(old, new) == [said]


@pytest.mark.parametrize(
    ("old", "new"), [(int | None, int), (float, int), (Inner, Wider), (str, Literal["a"])]
)
def test_an_output_that_gives_more_breaks_nobody(old, new):
    assert of_output(old, new) == []


def test_fields_that_come_and_go_are_named():
    old = create_model("M", a=(int, ...), b=(int, 0)).model_json_schema()
    new = create_model("M", a=(int, ...), c=(int, ...)).model_json_schema()
    assert breaking(old, new, {}, {}) == ["input: c is now required"]
    assert breaking({}, {}, old, new) == ["output: b is gone"]


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


def test_a_schema_that_refers_to_itself_is_compared_with_itself():
    tree = Tree.model_json_schema()
    assert breaking(tree, tree, tree, tree) == []


@pytest.mark.timeout(10)
def test_many_references_to_itself_are_compared_once():
    many = {f"f{n}": {"$ref": "#/$defs/node"} for n in range(30)}
    node = {"type": "object", "properties": many}
    choice = {"anyOf": [{"$ref": "#/$defs/choice"}] * 6}
    one = {"$ref": "#/$defs/node", "$defs": {"node": node, "choice": choice}}
    other = {**one, "$ref": "#/$defs/choice"}
    assert breaking(one, one, one, one) == []
    assert breaking(other, other, other, other) == []


WORDS = ["$ref", "$defs", "type", "enum", "const", "anyOf", "properties", "required", "items"]
WORDS += ["additionalProperties", "minimum", "maxLength", "a", "#/$defs/a"]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS),
            inner | st.sampled_from(["#/$defs/a", "object", "integer", "array"]),
            max_size=4,
        )
    ),
    max_leaves=15,
)
schemas = st.dictionaries(st.text(max_size=3), anything) | anything.filter(
    lambda made: isinstance(made, dict)
)


@given(schemas, schemas, schemas, schemas)
def test_no_schema_whatever_it_holds_is_a_fault(one, two, three, four):
    assert all(isinstance(text, str) for text in breaking(one, two, three, four))


@given(schemas)
def test_no_change_breaks_nothing(one):
    assert breaking(one, one, one, one) == [] or _has_nan(one)


def _has_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_nan(one) for one in value.values())
    if isinstance(value, list):
        return any(_has_nan(one) for one in value)
    return isinstance(value, float) and math.isnan(value)
