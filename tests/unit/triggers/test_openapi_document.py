"""The description of the gateway's routes."""

from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, Field

from trine import App
from trine.catalogue import FunctionInfo
from trine_triggers import Http
from trine_triggers.openapi import describe


class Part(BaseModel):
    size: int


class Order(BaseModel):
    tag: str
    parts: list[Part] = Field(default_factory=list)
    note: str = ""


def document() -> dict[str, Any]:
    app = App("shop")

    @app.on(Http("POST", "/orders/{tag}"))
    @app.on(Http("GET", "/orders/{tag}"))
    @app.function("shop.order")
    async def order(order: Order) -> Order:
        """Take an order.

        More about it.
        """
        return order

    @app.function("shop.watch")
    async def watch() -> AsyncIterator[int]:
        yield 1

    infos = [
        FunctionInfo(
            id=one.id,
            doc=one.doc,
            streams=one.streams,
            input_schema=one.input_schema,
            output_schema=one.output_schema,
            bindings=[binding.info() for binding in app.bindings if binding.function is one],
        )
        for one in app.functions.values()
    ]
    return describe(infos, "http://here")


def test_bound_routes_and_the_generic_one_are_described():
    paths = document()["paths"]
    assert set(paths) == {"/orders/{tag}", "/fn/shop.order"}
    assert set(paths["/orders/{tag}"]) == {"get", "post"}
    assert paths["/orders/{tag}"]["post"]["summary"] == "Take an order."


def test_path_parameters_leave_the_body():
    post = document()["paths"]["/orders/{tag}"]["post"]
    assert [(one["name"], one["in"], one["required"]) for one in post["parameters"]] == [
        ("tag", "path", True)
    ]
    body = post["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"parts", "note"}
    assert body["required"] == []


def test_what_get_takes_beside_the_path_is_the_query():
    get = document()["paths"]["/orders/{tag}"]["get"]
    places = {one["name"]: one["in"] for one in get["parameters"]}
    assert places == {"tag": "path", "parts": "query", "note": "query"}
    assert "requestBody" not in get


def test_every_reference_leads_somewhere():
    whole = document()

    def references(value) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [one for part in value.values() for one in references(part)]
        if isinstance(value, list):
            return [one for part in value for one in references(part)]
        return []

    found = references(whole)
    assert "#/components/schemas/Part" in found
    for reference in found:
        place = whole
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_operation_ids_are_unique():
    paths = document()["paths"].values()
    ids = [operation["operationId"] for path in paths for operation in path.values()]
    assert len(set(ids)) == len(ids)
