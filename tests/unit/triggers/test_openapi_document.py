"""The description of the gateway's routes."""

from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, Field

from trine import App
from trine.catalogue import FunctionInfo
from trine_triggers import Http, Upload, Webhook
from trine_triggers.openapi import describe


class Part(BaseModel):
    size: int


class Order(BaseModel):
    tag: str
    parts: list[Part] = Field(default_factory=list)
    note: str = ""


def other_part() -> type[BaseModel]:
    class Part(BaseModel):
        colour: str

    return Part


OtherPart = other_part()


class Sent(BaseModel):
    title: str
    photo: Upload


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

    @app.on(Http("GET", "/colours/{n:int}", headers={"X-User": "user"}))
    @app.function("shop.colours")
    async def colours(n: int, user: str, parts: list[OtherPart] | None = None) -> None: ...  # type: ignore[valid-type]

    @app.on(Http("POST", "/photos", status=201))
    @app.on(Webhook("/hook", secret_env="A_SECRET"))
    @app.on(Http("PUT", "/titles", body="title"))
    @app.function("shop.photo")
    async def photo(sent: Sent) -> None: ...

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
    own = {path for path in paths if path.startswith("/fn/")}
    assert own == {"/fn/shop.order", "/fn/shop.watch", "/fn/shop.colours", "/fn/shop.photo"}
    assert set(paths) - own == {"/orders/{tag}", "/colours/{n}", "/photos", "/hook", "/titles"}
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


def test_two_models_of_one_name_are_two_schemas():
    schemas = document()["components"]["schemas"]
    assert set(schemas["Part"]["properties"]) == {"size"}
    assert set(schemas["Part_2"]["properties"]) == {"colour"}


def test_conversions_and_headers_are_parameters_with_their_types():
    get = document()["paths"]["/colours/{n}"]["get"]
    places = {one["name"]: (one["in"], one["required"]) for one in get["parameters"]}
    assert places == {"n": ("path", True), "x-user": ("header", True), "parts": ("query", False)}
    assert get["parameters"][0]["schema"] == {"type": "integer"}


def test_a_stream_is_described_as_what_clients_may_accept():
    answer = document()["paths"]["/fn/shop.watch"]["post"]["responses"]["200"]
    assert set(answer["content"]) == {
        "application/jsonl",
        "application/x-ndjson",
        "text/event-stream",
    }


def test_a_file_may_be_sent_as_a_form_and_a_whole_body_as_one_field():
    paths = document()["paths"]
    content = paths["/photos"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert "201" in paths["/photos"]["post"]["responses"]
    whole = paths["/titles"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    assert whole["type"] == "string"


def test_every_operation_can_end_in_a_problem():
    for operations in document()["paths"].values():
        for operation in operations.values():
            assert operation["responses"]["default"] == {"$ref": "#/components/responses/Problem"}


def test_operation_ids_are_unique():
    paths = document()["paths"].values()
    ids = [operation["operationId"] for path in paths for operation in path.values()]
    assert len(set(ids)) == len(ids)
