"""Where: declarative conditions on the fields of a payload, shared by the triggers that filter."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, JsonValue

_CONDITIONS = 32  # bounds: a filter is evaluated for every message
_LEVELS = 16
_PATH = 256
_CHOICES = 256
_MISSING = object()

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}
_OPERATORS = (*_ORDER, "ne", "in", "exists", "prefix")


def matches(where: Mapping[str, Any], payload: Any) -> bool:
    """Whether *payload* meets every condition of *where*.

    A condition names a field, ``a.b`` for a nested one. Its value is what the field must equal, or
    an object of operators that must all hold: ``gt``, ``ge``, ``lt``, ``le`` (two numbers or two
    texts; anything else does not match), ``ne``, ``in`` (a list), ``exists`` (true or false) and
    ``prefix``. A field that is missing equals null. Nothing in a payload makes this raise.
    """
    return all(_holds(_field(path, payload), wanted) for path, wanted in where.items())


def _field(path: str, payload: Any) -> Any:
    value = payload
    for part in path.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is _MISSING:
            break
    return value


def _holds(value: Any, wanted: Any) -> bool:
    given = None if value is _MISSING else value
    if not isinstance(wanted, Mapping):
        return _equal(given, wanted)
    for name, bound in wanted.items():
        if name == "exists":
            held = (value is not _MISSING) == bound
        elif name == "ne":
            held = not _equal(given, bound)
        elif name == "in":
            held = any(_equal(given, one) for one in bound)
        elif name == "prefix":
            held = isinstance(given, str) and given.startswith(bound)
        else:
            alike = (_number(given) and _number(bound)) or (
                isinstance(given, str) and isinstance(bound, str)
            )
            held = alike and _ORDER[name](given, bound)
        if not held:
            return False
    return True


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def validate(where: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return *where* if `matches` can evaluate it; `ValueError` names the condition that is bad."""
    if len(where) > _CONDITIONS:
        raise ValueError(f"at most {_CONDITIONS} conditions")
    for path, wanted in where.items():
        parts = path.split(".")
        if not all(parts) or len(parts) > _LEVELS or len(path) > _PATH:
            raise ValueError(f"{path[:64]!r} is not the path of a field, such as a or a.b")
        if not isinstance(wanted, dict):
            _check_value(path, wanted)
            continue
        if not wanted:
            raise ValueError(f"{path}: an object holds operators: {', '.join(_OPERATORS)}")
        for name, bound in wanted.items():
            _check_operator(path, name, bound)
    return where


def _check_operator(path: str, name: str, bound: JsonValue) -> None:
    if name not in _OPERATORS:
        raise ValueError(f"{path}: no operator {name[:64]!r}; there are {', '.join(_OPERATORS)}")
    if name in _ORDER and not (_number(bound) or isinstance(bound, str)):
        raise ValueError(f"{path}: {name} takes a number or a text")
    if name == "exists" and not isinstance(bound, bool):
        raise ValueError(f"{path}: exists takes true or false")
    if name == "prefix" and not isinstance(bound, str):
        raise ValueError(f"{path}: prefix takes a text")
    if name == "in":
        if not isinstance(bound, list) or len(bound) > _CHOICES:
            raise ValueError(f"{path}: in takes a list of at most {_CHOICES}")
        for one in bound:
            _check_value(path, one)
        return
    _check_value(path, bound)


def _check_value(path: str, value: JsonValue) -> None:
    """NaN and the infinities have no JSON: a binding with them would not survive a restart."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path}: {value} is not a JSON number")


Where = Annotated[dict[str, JsonValue], AfterValidator(validate)]
"""The type of a ``where`` field in a trigger: checked when the trigger is defined."""
