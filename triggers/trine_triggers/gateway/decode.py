"""Payloads: path, query, headers and body of a request as the JSON that a function validates.

Texts take the type that the function's schema gives the field, so that strict models and
functions of other languages get numbers where they ask for numbers. What does not fit stays a
text: the function says what is wrong with it.
"""

import contextlib
import math
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic_core

from trine.errors import InvalidInputError

_FIELDS = 1000  # in one query or form
_INT = re.compile(r"[+-]?[0-9]{1,300}")
_BOOLEAN = {"true": True, "false": False, "1": True, "0": False}
_REFERENCES = 16  # how far a schema is followed
_STRUCTURES = {"array", "object"}


class Fields:
    """The types of the fields of one function."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        root = schema
        defs = schema.get("$defs", {})
        if "$ref" in schema:  # a model that refers to itself
            root = _follow(schema, defs)
        properties = root.get("properties", {})
        self.names = frozenset(properties)
        self._types = {name: _types(part, defs) for name, part in properties.items()}
        self._items = {
            name: _items(part, defs)
            for name, part in properties.items()
            if "array" in self._types[name]
        }

    def takes_list(self, name: str) -> bool:
        """Whether the field *name* may be a list."""
        return name in self._items

    def value(self, name: str, texts: list[str]) -> Any:
        """Return what the field *name* is when these texts came for it, one or more."""
        items = self._items.get(name)
        if items is not None:
            one = texts[0].lstrip()[:1] if len(texts) == 1 else ""
            whole = _json(texts[0]) if one == "[" else None
            return whole if isinstance(whole, list) else [_typed(text, items) for text in texts]
        if len(texts) > 1:
            return texts
        return _typed(texts[0], self._types.get(name, frozenset()))


def _follow(schema: Any, defs: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(_REFERENCES):
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = defs.get(reference.rpartition("/")[2], {})
    return {}


def _branches(schema: Any, defs: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    part = _follow(schema, defs)
    unions = [*part.get("anyOf", ()), *part.get("oneOf", ()), *part.get("allOf", ())]
    if not unions or depth > _REFERENCES:
        return [part]
    return [one for union in unions for one in _branches(union, defs, depth + 1)]


def _types(schema: Any, defs: Mapping[str, Any]) -> frozenset[str]:
    found: set[str] = set()
    for part in _branches(schema, defs):
        kind = part.get("type")
        if isinstance(kind, str):
            found.add(kind)
        elif isinstance(kind, list):
            found.update(kind)
        for one in (*part.get("enum", ()), *([part["const"]] if "const" in part else ())):
            found.add("string" if isinstance(one, str) else "number")
    return frozenset(found)


def _items(schema: Any, defs: Mapping[str, Any]) -> frozenset[str]:
    arrays = [part for part in _branches(schema, defs) if part.get("type") == "array"]
    return frozenset(one for part in arrays for one in _types(part.get("items", {}), defs))


def _typed(text: str, types: frozenset[str]) -> Any:
    """Return *text* as the narrowest of *types* that it can be; a text where texts are taken."""
    if not types or "string" in types:
        return text
    if types & {"integer", "number"} and _INT.fullmatch(text):
        return int(text)
    if "number" in types:
        with contextlib.suppress(ValueError):
            if math.isfinite(number := float(text)):
                return number
    if "boolean" in types and text.lower() in _BOOLEAN:
        return _BOOLEAN[text.lower()]
    if text == "null" and "null" in types:
        return None
    if types & _STRUCTURES and text.lstrip()[:1] in ("{", "["):
        return _json(text)
    return text


def _json(text: str) -> Any:
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


# --- the parts of a request ----------------------------------------------------------------------


def pairs(encoded: bytes, what: str, fields: Fields) -> dict[str, Any]:
    """Return the fields of a query or of a url-encoded form; repeated keys become a list."""
    try:
        found = urllib.parse.parse_qsl(
            encoded.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS
        )
    except ValueError as error:
        raise InvalidInputError(f"the {what} is not valid: {error}") from error
    texts: dict[str, list[str]] = {}
    for name, text in found:
        texts.setdefault(name, []).append(text)
    return {name: fields.value(name, values) for name, values in texts.items()}


def json_value(body: bytes) -> Any:
    """Return what *body* says; `InvalidInputError` when it is no JSON, or nested too deeply."""
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidInputError(f"the body is not JSON: {error}") from error


def json_object(body: bytes) -> dict[str, Any]:
    """Return the object that *body* is; an empty one when there is no body."""
    if not body or body.isspace():
        return {}
    value = json_value(body)
    if not isinstance(value, dict):
        raise InvalidInputError("the body must be a JSON object")
    return value


def encode(payload: Any) -> bytes:
    """Return *payload* as JSON."""
    return pydantic_core.to_json(payload, inf_nan_mode="constants")


def from_headers(
    given: Mapping[bytes, bytes], wanted: Iterable[tuple[bytes, str]], fields: Fields
) -> dict[str, Any]:
    """Return the fields that headers set; those whose header is absent are left out."""
    found = {}
    for header, name in wanted:
        raw = given.get(header)
        if raw is not None:
            found[name] = fields.value(name, [raw.decode("utf-8", "replace")])
    return found
