"""Reading and writing the constants of a script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trine.errors import InvalidInputError
from trine_functions import knobs

SOURCE = '''"""Doc."""
import os
RATE = 0.04  # optimizer: 0.005..0.2 log -- Muon, per step
LAYERS = 8  # architecture: 4..24 step 4
ROWS = 128  # hyperparams: 32..256 log pow2
PATTERN = "SSSL"  # attention: SSSL | LLLL
SEED = 42
PAIR = (1, 2)
FAST = True  # not a range
lower = 3  # optimizer: 1..2
def f():
    INSIDE = 1  # optimizer: 1..2
'''


def test_every_literal_constant_is_read_and_only_described_ones_are_searched() -> None:
    found = {knob.name: knob for knob in knobs.read(SOURCE)}
    assert list(found) == ["RATE", "LAYERS", "ROWS", "PATTERN", "SEED", "FAST"]
    assert [name for name, knob in found.items() if knob.searched] == [
        "RATE",
        "LAYERS",
        "ROWS",
        "PATTERN",
    ]
    assert (found["RATE"].low, found["RATE"].high, found["RATE"].log) == (0.005, 0.2, True)
    assert found["LAYERS"].step == 4
    assert found["ROWS"].pow2
    assert found["PATTERN"].choices == ("SSSL", "LLLL")


def test_writing_changes_the_value_and_nothing_else() -> None:
    changed = knobs.write(SOURCE, {"RATE": 0.08, "PATTERN": "LLLL", "SEED": 7})
    assert "RATE = 0.08  # optimizer: 0.005..0.2 log -- Muon, per step" in changed
    assert "PATTERN = 'LLLL'  # attention: SSSL | LLLL" in changed
    untouched = [
        line for line in SOURCE.splitlines() if not line.startswith(("RATE", "PATTERN", "SEED"))
    ]
    assert [line for line in changed.splitlines() if line in untouched] == untouched


@given(
    rate=st.floats(min_value=1e-9, max_value=1e9, allow_nan=False),
    layers=st.integers(-(10**9), 10**9),
    pattern=st.text(max_size=20),
)
def test_what_is_written_is_read_back(rate: float, layers: int, pattern: str) -> None:
    values = {"RATE": rate, "LAYERS": layers, "PATTERN": pattern}
    read = {knob.name: knob.value for knob in knobs.read(knobs.write(SOURCE, values))}
    assert {name: read[name] for name in values} == values


def test_an_unknown_knob_names_the_nearest_and_a_wrong_type_the_knob() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'LAYERS'"):
        knobs.write(SOURCE, {"LAYER": 1})
    with pytest.raises(InvalidInputError, match="PATTERN is 'SSSL'"):
        knobs.write(SOURCE, {"PATTERN": 3})
    with pytest.raises(InvalidInputError, match="LAYERS is 8"):
        knobs.write(SOURCE, {"LAYERS": 2.5})
    with pytest.raises(InvalidInputError, match="not valid Python"):
        knobs.read("def (")


def test_a_value_after_text_of_more_than_one_byte_is_placed_right() -> None:
    source = 'NAME = "é"; RATE = 0.5\n'
    assert knobs.write(source, {"RATE": 0.25}) == 'NAME = "é"; RATE = 0.25\n'
