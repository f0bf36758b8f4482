"""Which function a request is for: a dictionary for literal paths, a tree for the others."""

import math
import re
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trine.errors import BadRequestError
from trine_triggers.http import PARAMETER

_INT = re.compile(r"-?[0-9]{1,100}")
_FLOAT = re.compile(r"-?[0-9]{1,100}(\.[0-9]{1,100})?([eE][+-]?[0-9]{1,3})?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SLASH = "\0"  # stands for an encoded slash, which is part of a segment and separates none


def _float(text: str) -> float | None:
    if not _FLOAT.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


# In the order in which they are tried; None: the segment is something else.
_CONVERT: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text) if _INT.fullmatch(text) else None,
    "float": _float,
    "uuid": lambda text: str(uuid.UUID(text)) if _UUID.fullmatch(text) else None,
    "str": lambda text: text or None,
}


@dataclass(slots=True)
class _Node:
    """A place in the tree: what may follow, and what ends here."""

    literals: dict[str, "_Node"] = field(default_factory=dict)
    parameters: dict[str, "_Node"] = field(default_factory=dict)  # by conversion
    ends: dict[str, Any] = field(default_factory=dict)  # by method
    rest: dict[str, Any] = field(default_factory=dict)  # by method: {name:path}

    def parameter(self, conversion: str) -> "_Node":
        """Return what follows a parameter, made if need be; the conversions stay in order."""
        if conversion not in self.parameters:
            self.parameters[conversion] = _Node()
            order = list(_CONVERT)
            ordered = sorted(self.parameters.items(), key=lambda one: order.index(one[0]))
            self.parameters = dict(ordered)
        return self.parameters[conversion]


class Table:
    """Routes by method and path. A literal segment wins over a parameter, int over str."""

    def __init__(self) -> None:
        self._literals: dict[bytes, dict[str, Any]] = {}
        self._root = _Node()
        self._shapes: dict[tuple[str, str], Any] = {}

    def add(self, method: str, path: str, target: Any) -> Any:
        """Add a route, and HEAD beside GET; return the one that has its place, if any does.

        What is there stays. Parameters of other names are the same place.
        """
        shape = (method, PARAMETER.sub(lambda found: f"{{:{found[2] or 'str'}}}", path))
        if shape in self._shapes:
            return self._shapes[shape]
        self._shapes[shape] = target
        ends = self._place(path)
        ends[method] = target
        if method == "GET":
            ends.setdefault("HEAD", target)
        if "{" not in path:
            self._literals[path.encode()] = ends
        return None

    def _place(self, path: str) -> dict[str, Any]:
        node = self._root
        for segment in path.split("/")[1:]:
            found = PARAMETER.fullmatch(segment)
            if found is None:
                node = node.literals.setdefault(segment, _Node())
            elif found[2] == "path":
                return node.rest
            else:
                node = node.parameter(found[2] or "str")
        return node.ends

    def find(self, raw_path: bytes, method: str) -> tuple[Any, tuple[Any, ...]]:
        """Return the target and the values of its parameters; (None, ()) when there is none.

        *raw_path* is percent-encoded, as it came; `BadRequestError` when that is no text.
        """
        ends = self._literals.get(raw_path)
        if ends is not None and method in ends:
            return ends[method], ()
        for found, values in _places(self._root, raw_path):
            if method in found:
                return found[method], values
        return None, ()

    def allowed(self, raw_path: bytes) -> list[str]:
        """Return the methods that *raw_path* has."""
        found = _places(self._root, raw_path)
        return sorted({method for ends, _ in found for method in ends})


Place = tuple[dict[str, Any], tuple[Any, ...]]  # by method, and the values on the way


def _places(root: _Node, raw_path: bytes) -> list[Place]:
    """Return every place that the path leads to, the best first."""
    found: list[Place] = []
    _search(root, _segments(raw_path), 0, (), found)
    return found


def _search(
    node: _Node, segments: list[str], at: int, values: tuple[Any, ...], found: list[Place]
) -> None:
    if at == len(segments):
        found.append((node.ends, values))
        return
    segment = segments[at]
    following = node.literals.get(segment)
    if following is not None:
        _search(following, segments, at + 1, values, found)
    for conversion, following in node.parameters.items():
        value = _CONVERT[conversion](segment)
        if value is not None:
            if conversion == "str":
                value = value.replace(_SLASH, "/")
            _search(following, segments, at + 1, (*values, value), found)
    if node.rest:
        rest = "/".join(segments[at:]).replace(_SLASH, "/")
        found.append((node.rest, (*values, rest)))


def _segments(raw_path: bytes) -> list[str]:
    """Split and decode. An encoded slash is part of its segment; a NUL is refused."""
    if b"%" not in raw_path:
        return raw_path.decode("ascii").split("/")[1:]
    try:
        segments = [
            urllib.parse.unquote(segment, errors="strict")
            for segment in raw_path.decode("ascii").split("/")[1:]
        ]
    except UnicodeDecodeError as error:
        raise BadRequestError("the path is not UTF-8") from error
    if any(_SLASH in segment for segment in segments):
        raise BadRequestError("the path holds a NUL")
    return [segment.replace("/", _SLASH) for segment in segments]
