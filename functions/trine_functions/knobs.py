"""Knobs: the upper-case constants of a training script, read and set without touching the rest.

A constant is searched when its comment states a category and a range:
``MATRIX_LR = 0.04  # optimizer: 0.005..0.2 log`` or ``WINDOW = "SSSL"  # attention: SSSL | LLLL``.
"""

import ast
import difflib
import re
from dataclasses import dataclass

from trine.errors import InvalidInputError
from trine_functions.contracts import CATEGORIES, KnobValue

_NUMBER = r"-?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_RANGE = re.compile(
    rf"#\s*(?P<category>[a-z]+):\s*(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})(?P<rest>[^#]*)$"
)
_CHOICES = re.compile(r"#\s*(?P<category>[a-z]+):\s*(?P<choices>[^#]*\|[^#]*)$")


@dataclass(frozen=True, slots=True)
class Knob:
    """A constant: its value, and where a search may move it, if its comment says so."""

    name: str
    value: KnobValue
    category: str = "other"
    low: float | None = None
    high: float | None = None
    log: bool = False
    pow2: bool = False
    step: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def searched(self) -> bool:
        return self.low is not None or bool(self.choices)


@dataclass(frozen=True, slots=True)
class _Place:
    knob: Knob
    line: int  # from 0
    start: int  # byte offsets in the line, as `ast` counts
    end: int


def read(source: str) -> list[Knob]:
    """Return the constants of *source* in their order; `InvalidInputError` if it is not Python."""
    return [place.knob for place in _places(source)]


def write(source: str, values: dict[str, KnobValue]) -> str:
    """Return *source* with *values* set; comments and formatting stay as they are.

    `InvalidInputError` names an unknown constant, with the nearest one, or a value of a wrong type.
    """
    places = {place.knob.name: place for place in _places(source)}
    lines = source.splitlines(keepends=True)
    for name, value in values.items():
        place = places.get(name)
        if place is None:
            near = difflib.get_close_matches(name, places, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidInputError(f"knobs: no constant {name!r}{hint}", knob=name)
        raw = lines[place.line].encode()
        text = repr(_fitting(place.knob, value)).encode()
        lines[place.line] = (raw[: place.start] + text + raw[place.end :]).decode()
    return "".join(lines)


def _fitting(knob: Knob, value: KnobValue) -> KnobValue:
    """Return *value* in the type of the constant."""
    old = knob.value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(old, bool | str):
        if type(value) is type(old):
            return value
    elif isinstance(old, int) and number:
        if float(value) == int(value):
            return int(value)
    elif isinstance(old, float) and number:
        return float(value)
    raise InvalidInputError(
        f"knobs: {knob.name} is {old!r}, {value!r} is of another type", knob=knob.name
    )


def _places(source: str) -> list[_Place]:
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise InvalidInputError(f"the script is not valid Python: {error}") from error
    lines = source.splitlines()
    found = []
    for node in module.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target, value = node.targets[0], node.value
        if not isinstance(target, ast.Name) or not target.id.isupper():
            continue
        if value.end_lineno != value.lineno or value.end_col_offset is None:
            continue
        try:
            literal = ast.literal_eval(value)
        except ValueError:
            continue
        if not isinstance(literal, bool | int | float | str):
            continue
        line = value.lineno - 1
        comment = lines[line].encode()[value.end_col_offset :].decode()
        knob = _commented(target.id, literal, comment)
        found.append(_Place(knob, line, value.col_offset, value.end_col_offset))
    return found


def _commented(name: str, value: KnobValue, comment: str) -> Knob:
    """Read the grammar of the module's docstring; what follows ``--`` is for people."""
    said = comment.partition(" -- ")[0].strip()
    if (found := _RANGE.search(said)) and found["category"] in CATEGORIES:
        words = found["rest"].split()
        step = float(words[words.index("step") + 1]) if "step" in words[:-1] else None
        return Knob(
            name,
            value,
            found["category"],
            float(found["low"]),
            float(found["high"]),
            log="log" in words,
            pow2="pow2" in words,
            step=step,
        )
    if (found := _CHOICES.search(said)) and found["category"] in CATEGORIES:
        choices = tuple(choice.strip() for choice in found["choices"].split("|"))
        return Knob(name, value, found["category"], choices=choices)
    return Knob(name, value)
