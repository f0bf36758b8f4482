"""What a function reads from its signature."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import pytest
from pydantic import BaseModel, Field

from trine import App, Context, Function
from trine.errors import InvalidInputError, UsageError, WriteConflictError
from trine.payload import encode
from trine.retry import Retry


class Order(BaseModel):
    n: int
    note: str = ""


def made(handler, **options) -> Function[Any, Any]:
    return Function("shop.order", handler, **options)


def test_one_model_is_the_payload():
    async def order(ctx: Context, order: Order) -> Order:
        return order

    function = made(order)
    assert function.input is Order
    assert function.decode(b'{"n": 1}') == Order(n=1)
    assert function.input_schema["required"] == ["n"]
    assert function.output_schema["properties"]["n"]["type"] == "integer"


def test_plain_parameters_are_the_fields():
    async def order(
        n: Annotated[int, Field(gt=0)], ctx: Context, *, note: str | None = None
    ) -> list[int]:
        return [n]

    function = made(order)
    assert set(function.input_schema["properties"]) == {"n", "note"}
    assert function.input_schema["required"] == ["n"]
    assert function.output_schema == {"type": "array", "items": {"type": "integer"}}
    with pytest.raises(InvalidInputError, match=r"shop\.order: n: .*greater"):
        function.decode(b'{"n": 0}')


def test_a_model_beside_another_parameter_is_a_field():
    async def order(order: Order, urgent: bool = False) -> None: ...

    assert set(made(order).input_schema["properties"]) == {"order", "urgent"}


def test_no_parameters_take_any_payload():
    async def order() -> None: ...

    function = made(order)
    assert function.input_schema == {"type": "object"}
    assert function.decode(b"whatever") is None
    assert function.decode_value({"a": 1}) is None


def test_an_empty_payload_is_an_empty_object():
    async def order(n: int = 5) -> None: ...

    function = made(order)
    assert function.decode(b"") == function.decode_value(None) == function.decode_value({"n": 5})


def test_a_value_may_be_a_model_of_another_class():
    class Similar(BaseModel):
        n: str

    async def order(order: Order) -> None: ...

    function = made(order)
    assert function.decode_value(Similar(n="4")) == Order(n=4)
    assert function.decode_value({"n": 4}) == Order(n=4)
    with pytest.raises(InvalidInputError, match="n"):
        function.decode_value(Similar(n="x"))


def test_all_problems_are_listed_and_the_first_is_named():
    async def order(a: int, b: list[int]) -> None: ...

    with pytest.raises(InvalidInputError, match=r"shop\.order: a") as error:
        made(order).decode(b'{"b": [1, "x"]}')
    assert [one["field"] for one in error.value.details["fields"]] == ["a", "b.1"]


@pytest.mark.parametrize("payload", [b"{", b"[]", b"null", b"\xff\xfe"])
def test_what_is_no_json_object_is_invalid_input(payload):
    async def order(n: int) -> None: ...

    with pytest.raises(InvalidInputError):
        made(order).decode(payload)


def test_parameters_that_a_payload_cannot_name_are_refused():
    async def star(*numbers: int) -> None: ...
    async def only(n: int, /) -> None: ...
    async def names(**rest: int) -> None: ...

    for handler in (star, only, names):
        with pytest.raises(UsageError, match="named"):
            made(handler)


def test_an_annotation_that_means_nothing_is_refused():
    async def order(n: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(UsageError, match="Missing"):
        made(order)


def test_a_generator_streams_its_items():
    async def items() -> AsyncIterator[Order]:
        yield Order(n=1)

    function = made(items)
    assert function.streams
    assert function.output_schema["properties"]["n"]["type"] == "integer"


async def _unused() -> None: ...


def test_a_function_stays_callable_and_documented():
    app = App("shop")

    @app.function()
    def order(n: int) -> int:
        """Take an order."""
        return n * 2

    assert order(4) == 8
    assert order.id == "shop.order"
    assert order.__doc__ == order.doc == "Take an order."
    assert repr(order) == "Function('shop.order')"


def test_two_functions_of_one_id_and_a_bare_bind_are_usage_errors():
    from trine_triggers import Queue

    app, other = App("shop"), App("other")
    app.function("shop.order")(_unused)
    other.function("shop::order")(_unused)
    with pytest.raises(UsageError, match="twice"):
        app.function("shop.order")(_unused)
    with pytest.raises(UsageError, match="twice"):
        app.include(other)
    with pytest.raises(UsageError, match="above"):
        app.on(Queue("q"))(_unused)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        App("not a name")


def test_include_takes_functions_and_bindings_over():
    from trine_triggers import Queue

    app, part = App("shop"), App("part")
    part.on(Queue("q"))(part.function("part.work")(_unused))
    app.include(part)
    assert list(app.functions) == ["part.work"]
    assert [binding.function.id for binding in app.bindings] == ["part.work"]


@pytest.mark.parametrize(
    ("value", "payload"),
    [(None, b"{}"), (b"raw", b"raw"), ({"a": 1}, b'{"a":1}'), (Order(n=1), b'{"n":1,"note":""}')],
)
def test_a_payload_is_bytes_a_model_or_json(value, payload):
    assert encode(value) == payload


@pytest.mark.anyio
async def test_a_write_conflict_runs_the_handler_again_only_with_a_retry():
    runs = 0

    async def order() -> int:
        nonlocal runs
        runs += 1
        if runs % 3:
            raise WriteConflictError("somebody else")
        return runs

    context: Any = None
    assert await made(order, retry=Retry(5)).run(context, None) == 3
    with pytest.raises(WriteConflictError):
        await made(order).run(context, None)
    assert runs == 4
    with pytest.raises(WriteConflictError):
        await made(order, retry=Retry(1)).run(context, None)
    with anyio.fail_after(1):
        assert await made(order, retry=Retry(2)).run(context, None) == 6
