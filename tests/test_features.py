"""The table of features: every test that it names exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "features.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:[\w/]+/)?test_\w+\.py)(?:::(\w+))?`", PAGE)))


def test_the_table_names_tests() -> None:
    assert len(NAMED) > 60


@pytest.mark.parametrize(("file", "test"), NAMED, ids=lambda value: value or "whole")
def test_the_test_that_a_feature_names_exists(file: str, test: str) -> None:
    place = TESTS / file if "/" in file else TESTS / "integration" / file
    source = place.read_text()
    assert not test or re.search(rf"^(async )?def {test}\(", source, re.MULTILINE)
