"""The OpenAPI 3.1 description of every route that the catalogue has."""

import re
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from typing import Any

from trine import trigger as triggers
from trine.catalogue import FunctionInfo
from trine_triggers.http import PARAMETER, Http

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457; the details stand beside the members that are listed here, too.",
    "required": ["type", "title", "status", "detail", "code", "message", "details", "error"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "stable, the same on every road"},
        "message": {"type": "string"},
        "details": {"type": "object"},
        "error": {"type": "string", "description": "the message, for older clients"},
    },
}
_CONVERSION_SCHEMAS: dict[str, dict[str, Any]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "uuid": {"type": "string", "format": "uuid"},
}
_NO_BODY = ("get", "delete")


def describe(
    functions: Iterable[FunctionInfo], server: str, refused: Collection[str] = ()
) -> dict[str, Any]:
    """Return the document: the bound routes, and ``POST /fn/<id>`` for every function.

    *refused*: ids of bindings whose place another one has.
    """
    paths: dict[str, Any] = {}
    schemas = _Schemas()
    for info in functions:
        routes = [
            route
            for binding in info.bindings
            if binding.id not in refused and (route := _route(binding)) is not None
        ]
        for route in [*routes, Http("POST", f"/fn/{info.id}")]:
            path = PARAMETER.sub(lambda found: f"{{{found[1]}}}", route.path)
            operations = paths.setdefault(path, {})
            operations.setdefault(route.method.lower(), _operation(info, route, schemas))
    _name(paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Trine", "version": version("trine")},
        "servers": [{"url": server}],
        "paths": paths,
        "components": {
            "schemas": {"Problem": _PROBLEM, **schemas.known},
            "responses": {
                "Problem": {
                    "description": "an error",
                    "content": {
                        "application/problem+json": {
                            "schema": {"$ref": "#/components/schemas/Problem"}
                        }
                    },
                }
            },
        },
    }


def _route(binding: Any) -> Http | None:
    try:
        if not issubclass(triggers.load(binding.kind), Http):
            return None
        route = triggers.parse(binding)
    except Exception:  # noqa: BLE001 - not installed here, broken, or of another version
        return None
    return route if isinstance(route, Http) else None


def _name(paths: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
    """Give every operation an id that no other has."""
    taken: set[str] = set()
    for path, operations in paths.items():
        for method, operation in operations.items():
            words = re.sub("[^a-zA-Z0-9]+", "_", path).strip("_")
            base = id = f"{method}_{words}"
            number = 1
            while id in taken:
                number += 1
                id = f"{base}_{number}"
            taken.add(id)
            operation["operationId"] = id


def _operation(info: FunctionInfo, route: Http, schemas: "_Schemas") -> dict[str, Any]:
    method = route.method.lower()
    given = schemas.take(info.input_schema)
    properties: dict[str, Any] = given.get("properties", {})
    required = set(given.get("required", []))
    operation: dict[str, Any] = {
        "summary": info.doc.partition("\n")[0] or info.id,
        "description": info.doc,
        "responses": {
            str(route.status): _answer(info, route, schemas.take(info.output_schema)),
            "default": {"$ref": "#/components/responses/Problem"},
        },
        "parameters": [],
    }
    parameters: list[dict[str, Any]] = operation["parameters"]
    placed: set[str] = set()
    for found in PARAMETER.finditer(route.path):
        name, conversion = found[1], found[2] or "str"
        schema = _CONVERSION_SCHEMAS.get(conversion) or properties.get(name, {"type": "string"})
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
        placed.add(name)
    for header, name in route.headers.items():
        schema = properties.get(name, {})
        parameters.append(schemas.parameter(header, "header", schema, name in required))
        placed.add(name)
    rest = {name: part for name, part in properties.items() if name not in placed}
    if route.body is not None:
        whole = rest.pop(route.body, {})
        operation["requestBody"] = _body(whole, needed=route.body in required)
    if method in _NO_BODY or route.body is not None:
        parameters += [
            schemas.parameter(name, "query", part, name in required) for name, part in rest.items()
        ]
    elif rest or not properties:
        operation.update(_whole_body(given, rest, required, schemas))
    return operation


def _whole_body(
    given: dict[str, Any], rest: dict[str, Any], required: set[str], schemas: "_Schemas"
) -> dict[str, Any]:
    if not rest:
        # A model that is no object is the body; a function without input takes none.
        plain = set(given) <= {"type", "title", "description", "properties"}
        return {} if plain else {"requestBody": _body(given, needed=True)}
    needed = [name for name in rest if name in required]
    schema = {**given, "properties": rest, "required": needed}
    body = _body(schema, needed=bool(needed))
    if any(schemas.is_upload(part) for part in rest.values()):
        files = {
            name: {"type": "string", "contentMediaType": "application/octet-stream"}
            if schemas.is_upload(part)
            else part
            for name, part in rest.items()
        }
        form = {**schema, "properties": files}
        body["content"]["multipart/form-data"] = {"schema": form}
    return {"requestBody": body}


def _body(schema: dict[str, Any], *, needed: bool) -> dict[str, Any]:
    return {"required": needed, "content": {"application/json": {"schema": schema}}}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return *schema* without null: a query says it by leaving the field out."""
    branches = schema.get("anyOf")
    if not branches:
        return schema
    left = [branch for branch in branches if branch.get("type") != "null"]
    rest = {name: part for name, part in schema.items() if name != "anyOf"}
    return {**rest, **left[0]} if len(left) == 1 else {**rest, "anyOf": left}


def _answer(info: FunctionInfo, route: Http, schema: dict[str, Any]) -> dict[str, Any]:
    if not info.streams:
        content = {"application/json": {"schema": schema}}
        return {"description": "the output of the function", "content": content}
    types = {
        "sse": ["text/event-stream"],
        "jsonl": ["application/jsonl", "application/x-ndjson"],
    }
    listed = types[route.stream] if route.stream else [*types["jsonl"], *types["sse"]]
    # OpenAPI 3.1 describes a stream as its text; what an item is stands beside it.
    text = {"schema": {"type": "string"}, "x-item-schema": schema}
    return {
        "description": "the items that the function yields, as they come",
        "content": dict.fromkeys(listed, text),
    }


class _Schemas:
    """The models of the document, under names of which each means one."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def take(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return *schema* with its ``$defs`` moved to the components; a taken name is changed."""
        names: dict[str, str] = {}
        defs: dict[str, Any] = schema.get("$defs", {})
        for name in defs:
            names[name] = self._free(name, names, defs)
        for name, part in defs.items():
            self.known[names[name]] = _rewrite(part, names)
        rest = {name: part for name, part in schema.items() if name != "$defs"}
        taken: dict[str, Any] = _rewrite(rest, names)
        reference = taken.get("$ref")
        if isinstance(reference, str):  # a model that refers to itself: its fields are needed
            return {**self.known.get(reference.rpartition("/")[2], {})}
        return taken

    def _free(self, name: str, names: dict[str, str], defs: dict[str, Any]) -> str:
        base = re.sub(r"[^a-zA-Z0-9._-]+", "_", name)
        number, free = 1, base
        while free == "Problem" or (
            free in self.known
            and self.known[free] != _rewrite(defs[name], {**_same(defs), **names})
        ):
            number += 1
            free = f"{base}_{number}"
        return free

    def parameter(
        self, name: str, place: str, schema: dict[str, Any], needed: bool
    ) -> dict[str, Any]:
        """Return the description of a query or header parameter."""
        described: dict[str, Any] = {"name": name, "in": place, "required": needed}
        schema = _without_null(schema)
        if self._is_structured(schema):  # as one JSON text: the other spellings are ambiguous
            return {**described, "content": {"application/json": {"schema": schema}}}
        return {**described, "schema": schema}

    def _is_structured(self, schema: dict[str, Any]) -> bool:
        target = self.known.get(str(schema.get("$ref", "")).rpartition("/")[2], schema)
        return target.get("type") == "object" or any(
            self._is_structured(branch) for branch in target.get("anyOf", ())
        )

    def is_upload(self, schema: dict[str, Any]) -> bool:
        """Whether *schema* is, or may be, a reference to a stored file, or a list of them."""
        branches = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
        branches += [
            branch["items"] for branch in branches if isinstance(branch.get("items"), dict)
        ]
        for branch in branches:
            name = str(branch.get("$ref", "")).rpartition("/")[2]
            if {"object", "size", "content_type"} <= set(
                self.known.get(name, {}).get("properties", ())
            ):
                return True
        return False


def _same(defs: Mapping[str, Any]) -> dict[str, str]:
    return {name: re.sub(r"[^a-zA-Z0-9._-]+", "_", name) for name in defs}


def _rewrite(value: Any, names: Mapping[str, str]) -> Any:
    """Return *value* with references to ``$defs`` as references to components."""
    if isinstance(value, dict):
        return {
            name: _reference(part, names)
            if name == "$ref" and isinstance(part, str)
            else _rewrite(part, names)
            for name, part in value.items()
            if not _is_discriminator(name, part)
        }
    if isinstance(value, list):
        return [_rewrite(part, names) for part in value]
    return value


def _is_discriminator(name: str, part: Any) -> bool:
    """Whether it is that of a union: its mapping names ``$defs`` too, and says nothing new."""
    return name == "discriminator" and isinstance(part, dict) and "propertyName" in part


def _reference(reference: str, names: Mapping[str, str]) -> str:
    place, _, name = reference.rpartition("/")
    return f"#/components/schemas/{names.get(name, name)}" if place == "#/$defs" else reference
