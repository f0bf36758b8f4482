"""Which changes of a function's schemas break its callers."""

from typing import Any

Schema = dict[str, Any]

_DEPTH = 20  # of references to references
_CHOICES = 4  # of choices within choices
# Bounds that are stricter when they are larger, and when they are smaller.
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_ANYTHING: Schema = {}
_SAYS = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "not", "$ref"}  # which values fit


def breaking(
    old_input: Schema, new_input: Schema, old_output: Schema, new_output: Schema
) -> list[str]:
    """Return what callers written for the old schemas may trip over; empty when nothing.

    An input may not ask for more, an output may not give less: a new required field, a field of
    another type, a value that is no longer allowed and a bound that is closer break the input; a
    field that is gone, or may now be absent or of another type or value, breaks the output.
    """
    return [f"input: {text}" for text in _Comparison(old_input, new_input, output=False).found] + [
        f"output: {text}" for text in _Comparison(new_output, old_output, output=True).found
    ]


class _Comparison:
    """What fits *given* and may not fit *wanted*, in words for an input or an output."""

    def __init__(self, given: Schema, wanted: Schema, *, output: bool) -> None:
        self._given, self._wanted, self._output = given, wanted, output
        self.found: list[str] = []
        self._seen: set[tuple[int, int]] = set()  # pairs by identity: models refer to themselves
        self._compare(given, wanted, "")

    def _compare(self, given: Any, wanted: Any, place: str) -> None:
        given, wanted = _resolved(given, self._given), _resolved(wanted, self._wanted)
        pair = (id(given), id(wanted))
        if pair in self._seen:
            return
        self._seen.add(pair)
        here = place or "it"
        if not self._types(given, wanted, here):
            return
        self._values(given, wanted, here)
        if not self._output:
            self._bounds(given, wanted, here)
        given = _branch(given, self._given)
        wanted = _branch(wanted, self._wanted)
        self._fields(given, wanted, place)
        for name, path in (("items", f"{here}[]"), ("additionalProperties", f"{here}.*")):
            if isinstance(given.get(name), dict) and isinstance(wanted.get(name), dict):
                self._compare(given[name], wanted[name], path)

    def _types(self, given: Schema, wanted: Schema, here: str) -> bool:
        """Note types that do not fit; return whether it makes sense to look further."""
        types, allowed = _types(given, self._given), _types(wanted, self._wanted)
        if not types and allowed and not _SAYS & given.keys():
            self._note(f"{here} may be anything", f"{here} is no longer anything")
            return False
        if types and allowed and not types <= allowed:
            extra = ", ".join(sorted(types - allowed))
            self._note(f"{here} may be {extra}", f"{here} is no longer {extra}")
            return False
        return True

    def _values(self, given: Schema, wanted: Schema, here: str) -> None:
        values, allowed = _values(given), _values(wanted)
        if allowed is None or (values is None and "anyOf" in given):
            return
        if values is None:
            self._note(f"{here} may be any value", f"{here} takes {allowed} alone")
        elif gone := [value for value in values if value not in allowed]:
            self._note(f"{here} may be {gone}", f"{here} no longer takes {gone}")

    def _bounds(self, given: Schema, wanted: Schema, here: str) -> None:
        for names, sign in ((_LOWER, 1), (_UPPER, -1)):
            for name in names:
                now, before = _number(wanted.get(name)), _number(given.get(name))
                if now is not None and (before is None or sign * now > sign * before):
                    self.found.append(f"{here} has {name} {now}")

    def _fields(self, given: Schema, wanted: Schema, place: str) -> None:
        properties, known = _properties(given), _properties(wanted)
        required, always = _required(wanted), _required(given)
        for name in sorted(required - always):
            path = f"{place}.{name}" if place else name
            gone = "may be absent" if name in properties else "is gone"
            self._note(f"{path} {gone}", f"{path} is now required")
        for name, part in known.items():
            path = f"{place}.{name}" if place else name
            if name in properties:
                self._compare(properties[name], part, path)
            elif self._output and name not in required:
                self.found.append(f"{path} is gone")
        if not self._output and wanted.get("additionalProperties") is False:
            for name in properties.keys() - known.keys():
                self.found.append(f"{f'{place}.{name}' if place else name} is no longer taken")

    def _note(self, of_output: str, of_input: str) -> None:
        self.found.append(of_output if self._output else of_input)


def _resolved(schema: Any, root: Schema) -> Schema:
    """Follow references; what is no schema allows everything."""
    for _ in range(_DEPTH):
        if not isinstance(schema, dict):
            return _ANYTHING
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/$defs/"):
            return schema
        definitions = root.get("$defs")
        name = reference.removeprefix("#/$defs/")
        schema = definitions.get(name) if isinstance(definitions, dict) else None
    return _ANYTHING


def _parts(schema: Schema, root: Schema) -> list[Schema]:
    parts = schema.get("anyOf")
    return [_resolved(part, root) for part in parts] if isinstance(parts, list) else []


def _branch(schema: Schema, root: Schema) -> Schema:
    """Return the one branch with fields or items of an optional schema, or the schema itself."""
    inner = [part for part in _parts(schema, root) if {"properties", "items"} & part.keys()]
    return inner[0] if len(inner) == 1 else schema


def _types(schema: Schema, root: Schema, depth: int = 0) -> frozenset[str]:
    """The JSON types that *schema* allows; empty when it does not say."""
    if "anyOf" in schema:
        if depth > _CHOICES:
            return frozenset()
        parts = [_types(part, root, depth + 1) for part in _parts(schema, root)]
        return frozenset() if not all(parts) else frozenset().union(*parts)
    said = schema.get("type")
    types = {said} if isinstance(said, str) else set(_strings(said))
    if "number" in types:
        types.add("integer")
    return frozenset(types)


def _values(schema: Schema) -> list[Any] | None:
    """The values that *schema* allows; None when it does not list them."""
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def _properties(schema: Schema) -> Schema:
    found = schema.get("properties")
    return found if isinstance(found, dict) else {}


def _required(schema: Schema) -> set[str]:
    return set(_strings(schema.get("required")))


def _strings(said: Any) -> list[str]:
    return [one for one in said if isinstance(one, str)] if isinstance(said, list) else []


def _number(said: Any) -> float | None:
    return said if isinstance(said, int | float) and not isinstance(said, bool) else None
