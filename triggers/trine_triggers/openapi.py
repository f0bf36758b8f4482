"""The OpenAPI 3.1 description of every route that the catalogue has."""

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from trine.catalogue import FunctionInfo

_PARAMETER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_ERROR = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "details": {"type": "object"},
    },
}


def describe(functions: Iterable[FunctionInfo], server: str) -> dict[str, Any]:
    """Return the document: the bound routes, and ``POST /fn/<id>`` for every function."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": _ERROR}
    for info in functions:
        if info.streams:
            continue
        routes = [
            (binding.config["method"].lower(), binding.config["path"])
            for binding in info.bindings
            if binding.kind == "http"
        ]
        for method, path in [*routes, ("post", f"/fn/{info.id}")]:
            paths.setdefault(path, {})[method] = _operation(info, method, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Trine", "version": version("trine")},
        "servers": [{"url": server}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(
    info: FunctionInfo, method: str, path: str, schemas: dict[str, Any]
) -> dict[str, Any]:
    in_path = set(_PARAMETER.findall(path))
    given = _hoist(info.input_schema, schemas)
    properties = given.get("properties", {})
    operation: dict[str, Any] = {
        "operationId": f"{method}_{re.sub('[^a-zA-Z0-9]+', '_', path).strip('_')}",
        "summary": info.doc.partition("\n")[0] or info.id,
        "description": info.doc,
        "responses": {
            "200": _json("the output of the function", _hoist(info.output_schema, schemas)),
            "default": _json("an error", {"$ref": "#/components/schemas/Error"}),
        },
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": properties.get(name, {})}
            for name in sorted(in_path)
        ],
    }
    rest = {name: part for name, part in properties.items() if name not in in_path}
    required = [name for name in given.get("required", []) if name in rest]
    if method in ("get", "delete"):
        operation["parameters"] += [
            {"name": name, "in": "query", "required": name in required, "schema": part}
            for name, part in rest.items()
        ]
    elif rest:
        body = {"type": "object", "properties": rest, "required": required}
        operation["requestBody"] = {
            "required": bool(required),
            "content": {"application/json": {"schema": body}},
        }
    return operation


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _hoist(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Move the ``$defs`` of a model's schema to the document's components."""
    copied: dict[str, Any] = _rewrite(schema)
    schemas.update(copied.pop("$defs", {}))
    return copied


def _rewrite(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: part.replace("#/$defs/", "#/components/schemas/")
            if name == "$ref" and isinstance(part, str)
            else _rewrite(part)
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [_rewrite(part) for part in value]
    return value
